"""The folded float graph that every candidate is made from."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.core import Progress, Source
from edgeopt.errors import SourceError
from edgeopt.graphs.fold import constant_array, fold, load_model
from edgeopt.graphs.identity import Identity, identify, read_identity
from edgeopt.graphs.sites import Site, find_sites, float_initializers, quantized_ops
from edgeopt.graphs.tune import can_tune
from edgeopt.targets.onnx.source import Prepared

__all__ = [
    "Base",
    "fold_base",
    "fold_float",
    "identity_of",
    "needs_unsigned",
    "open_base",
    "require_finite",
    "require_float",
]


@dataclass(frozen=True)
class Base:
    """The folded float graph on disk (weights beside it, to be mapped), ready to be rewritten."""

    path: Path
    sites: tuple[Site, ...]
    left: tuple[tuple[ir.Value, str], ...]
    float_bytes: int
    residuals: bool

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(site.kind for site in self.sites)

    @property
    def has_products(self) -> bool:
        return bool(self.kinds & {"product", "tied"})

    def load(self) -> ir.Model:
        """A fresh graph to rewrite; its weights stay mapped."""
        return ir.load(self.path)


def open_base(prepared: Prepared, workdir: Path, progress: Progress | None = None) -> Base:
    """Fold the captured graph, and refuse what cannot be quantized (SourceError)."""
    base = fold_base(prepared.source, prepared.captured.model, workdir, progress)
    if not base.sites and not base.left:
        raise SourceError(f"{prepared.source.path}: no float weights; nothing to quantize")
    return base


def fold_base(
    source: Source, captured: Path, workdir: Path, progress: Progress | None = None
) -> Base:
    """Fold a captured graph; SourceError if it is quantized already, or has broken weights.

    ``source`` is named in errors; what an ONNX source says of itself is kept.
    """
    if progress is not None:
        progress("folding", None)
    model = fold_float(load_model(captured), source.path)
    identify(model, identity_of(source))
    path = workdir / "base.onnx"
    ir.save(model, path, external_data="base.onnx.data")
    del model
    gc.collect()
    mapped = ir.load(path)
    sites, left = find_sites(mapped.graph)
    require_finite(source.path, mapped.graph)
    total = sum(site.nbytes for site in sites)
    total += sum(v.const_value.nbytes for v, _ in left if v.const_value is not None)
    return Base(path, tuple(sites), tuple(left), total, can_tune(mapped.graph))


def identity_of(source: Source) -> Identity:
    """What the source says of itself; nothing where it is no ONNX file."""
    return read_identity(source.path) if source.kind == "onnx" else Identity()


def require_float(source: Source) -> None:
    """SourceError where the source's description shows that it is quantized already."""
    already = source.details.get("quantized_ops") if source.kind == "onnx" else None
    if already:
        found = ", ".join(f"{n} {op}" for op, n in sorted(already.items()))
        raise SourceError(f"{source.path}: already quantized ({found}); give the float model")
    if source.kind == "onnx" and _quantized_by_us(source.details.get("metadata", {})):
        raise SourceError(f"{source.path}: already quantized by edgeopt; give the float model")


def _quantized_by_us(metadata: Mapping[str, str]) -> bool:
    """Whether a file says that edgeopt gave its weights fewer bits, by whatever operators."""
    try:
        said = json.loads(metadata.get("edgeopt", ""))
    except ValueError:
        return False
    options = said.get("options") if isinstance(said, dict) else None
    return isinstance(options, dict) and options.get("bits") in (8, 4)


def fold_float(model: ir.Model, source: Path) -> ir.Model:
    """Fold in place; SourceError, naming ``source``, where the graph is quantized already."""
    already = quantized_ops(model)
    if already:
        found = ", ".join(f"{n} {op}" for op, n in sorted(already.items()))
        raise SourceError(f"{source}: already quantized ({found}); give the float model")
    return fold(model)


def require_finite(source: Path, graph: ir.Graph) -> None:
    """SourceError where a weight is NaN, or infinite and summed over."""
    for value in float_initializers(graph):
        _require_finite(source, value)


#: Operators whose weights are multiplied and summed, and the inputs that are: an infinity there is
#: no mask, as it may be in a bias.
_SUMMED: Mapping[str, frozenset[int]] = {
    "MatMul": frozenset({0, 1}),
    "Gemm": frozenset({0, 1}),
    "Conv": frozenset({0, 1}),
    "ConvTranspose": frozenset({0, 1}),
    "LSTM": frozenset(range(8)),
    "GRU": frozenset(range(6)),
    "RNN": frozenset(range(6)),
}


def _require_finite(path: Path, value: ir.Value) -> None:
    summed = any(slot in _SUMMED.get(node.op_type, ()) for node, slot in value.uses())
    array = constant_array(value)
    if array is None:
        return
    flat = array.reshape(-1)
    for lo in range(0, flat.size, 1 << 20):
        part = np.asarray(flat[lo : lo + (1 << 20)], np.float32)
        if np.isfinite(part).all():
            continue
        nan = bool(np.isnan(part).any())
        if not nan and not summed:
            continue  # a mask's, which stay as they are
        raise SourceError(
            f"{path}: {value.name} holds {'NaN' if nan else 'Inf'}; a model with broken weights"
            " cannot be proven, repair it first"
        )


def needs_unsigned(machine: Mapping[str, Any]) -> bool:
    """int8 weights saturate on x86-64 without VNNI (vpmaddubsw sums pairs in 16 bits).

    ``machine`` is its environment, as measured there.
    """
    if str(machine["machine"]).lower() not in ("x86_64", "amd64"):
        return False
    features = machine["features"]
    known = set(features) if isinstance(features, (list, tuple)) else set()
    return not known & {"avx512_vnni", "avx_vnni"}
