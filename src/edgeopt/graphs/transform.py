"""Carry a plan out on a folded float graph: encode every tensor that it names, and place it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgeopt.core import Affine, Change, Codes, Decision, Progress
from edgeopt.errors import UsageError
from edgeopt.graphs.forms import FORMS, Placing
from edgeopt.graphs.forms.build import Builder
from edgeopt.graphs.forms.store import int8_codes
from edgeopt.graphs.sites import Site, find_sites
from edgeopt.numerics.affine import dequantize, noise_power, ratio_db
from edgeopt.numerics.methods import METHODS

__all__ = ["BlankCodes", "CodeCache", "apply_decisions", "encode_site"]

#: Weights that are decoded at a time to measure their error.
_CHUNK = 1 << 20


@dataclass
class CodeCache:
    """Codes already found in this run: candidates of a contest share most of them.

    Holds at most ``limit`` bytes, the latest ones: encoding again costs seconds, memory costs the
    user's other programs.
    """

    limit: int = 64 << 20
    _codes: OrderedDict[tuple[object, ...], Codes] = field(default_factory=OrderedDict)
    _nbytes: int = 0

    def get(self, site: Site, method: str, scheme: Affine) -> Codes:
        # Taking outlier channels out changes a tensor under its name.
        key = (site.name, site.value.meta.get("outlier_channels"), method, scheme)
        if key in self._codes:
            self._codes.move_to_end(key)
            return self._codes[key]
        codes = encode_site(site.matrix(), method, scheme)
        self._codes[key] = codes
        self._nbytes += _nbytes(codes)
        while self._nbytes > self.limit and len(self._codes) > 1:
            _, oldest = self._codes.popitem(last=False)
            self._nbytes -= _nbytes(oldest)
        return codes

    def clear(self) -> None:
        self._codes.clear()
        self._nbytes = 0


def _nbytes(codes: Codes) -> int:
    zero = 0 if codes.zero is None else codes.zero.nbytes
    return int(codes.q.nbytes + codes.scale.nbytes + zero)


class BlankCodes(CodeCache):
    """Zeros in the shape of a site's codes, for whoever wants the graph and not the weights."""

    def get(self, site: Site, method: str, scheme: Affine) -> Codes:
        rows, columns = site.matrix_shape
        blocks = 1 if scheme.block is None else -(-columns // scheme.block)
        dtype: Any = np.int8 if scheme.symmetric else np.uint8
        zero = None if scheme.symmetric else np.zeros((rows, blocks), np.uint8)
        return Codes(np.zeros((rows, columns), dtype), np.ones((rows, blocks), np.float32), zero)


def encode_site(matrix: NDArray[np.float32], method: str, scheme: Affine) -> Codes:
    """Codes of a matrix [rows, columns] under a scheme whose blocks run along the columns."""
    return METHODS[method](
        matrix,
        bits=scheme.bits,
        block=scheme.block,
        symmetric=scheme.symmetric,
        scale_dtype=scheme.scale,
    )


def _error_db(site: Site, codes: Codes, decision: Decision) -> float:
    """SQNR of what the consumers will really compute with, some rows at a time."""
    matrix = site.matrix()
    rows, columns = matrix.shape
    step = max(1, _CHUNK // max(columns, 1))
    signal = noise = 0.0
    for lo in range(0, rows, step):
        part = slice(lo, lo + step)
        zero = None if codes.zero is None else codes.zero[part]
        got = _decoded(Codes(codes.q[part], codes.scale[part], zero), decision, columns)
        s, n = noise_power(matrix[part], got)
        signal, noise = signal + s, noise + n
    return ratio_db(signal, noise)


def _decoded(codes: Codes, decision: Decision, columns: int) -> NDArray[np.float32]:
    scheme = decision.affine
    assert scheme is not None
    form = FORMS[decision.form]
    if form.compute == "int8" and not form.packs:
        q, scale = int8_codes(codes, scheme)
        return q.astype(np.float32) * scale[:, None]
    return dequantize(codes, scheme.block, columns)


def apply_decisions(
    model: ir.Model,
    decisions: Mapping[str, Decision],
    placing: Placing,
    *,
    cache: CodeCache | None = None,
    measure: bool = True,
    progress: Progress | None = None,
    done: Callable[[Change], None] | None = None,
) -> tuple[Change, ...]:
    """Rewrite ``model`` in place; one Change a tensor, in the graph's order.

    Raises UsageError where a decision does not fit its tensor.
    """
    cache = cache if cache is not None else CodeCache()
    builder = Builder(model)
    sites, left = find_sites(model.graph)
    changes: list[Change] = []
    for i, site in enumerate(sites):
        decision = decisions.get(site.name)
        if decision is None or decision.affine is None:
            continue
        if progress is not None:
            progress("quantizing", i / len(sites))
        why_not = FORMS[decision.form].misfits(site, decision.affine)
        if why_not is not None:
            raise UsageError(f"the plan cannot be carried out on {site.name}: {why_not}")
        codes = cache.get(site, decision.method, decision.affine)
        error = None
        if measure:
            error = _error_db(site, codes, decision)
        before, names = site.nbytes, set(model.graph.initializers)
        FORMS[decision.form].apply(builder, site, codes, decision.affine, placing)
        after = sum(
            value.const_value.nbytes
            for name, value in model.graph.initializers.items()
            if name not in names and value.const_value is not None
        )
        changes.append(Change(decision, before, after, error))
    common.RemoveUnusedNodesPass()(model)
    model.ir_version = max(model.ir_version, 10)
    del left
    return tuple(changes)
