"""Which tensors of a model become packed weights, and how: one decision each, no data read.

The defaults come from the errors on MiniLM's weights and on random ones, tabled in
``docs/formats.md``:

- 8 bits, blocks of 128, symmetric, round to nearest: 42.7 dB at 8.13 bits a weight. One scale a
  row costs 3.6 dB to save a hundredth of the file; searching the scale gains 0.1 dB.
- 4 bits, blocks of 64, with zero points, least squared error: 20.8 dB at 4.31 bits a weight.
  Symmetric blocks of 32 (Q4_0's form) reach 21.4 dB at 4.5 bits, where 6 dB a bit would make 21.9
  of it. HQQ, made for robustness to outliers, stays 0.2 dB under least squares.
- Scales in bfloat16: since codes are chosen for the scale as stored, it is as good as float32 to
  0.02 dB, and unlike float16 it neither overflows nor underflows, whatever the weights' size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeopt.core import Affine, Decision, Plan, Source, Weight
from edgeopt.errors import SourceError, UsageError
from edgeopt.files import packed
from edgeopt.files.packed import PackedLayout
from edgeopt.files.spans import ties_of
from edgeopt.numerics.affine import SCALE_DTYPES
from edgeopt.numerics.methods import METHODS

__all__ = ["MIN_ELEMENTS", "plan_weights"]

#: Smaller tensors are kept: their names in the header would outweigh what they save.
MIN_ELEMENTS = 1024


@dataclass(frozen=True)
class _Default:
    method: str
    block: int
    symmetric: bool


_DEFAULTS: Mapping[int, _Default] = {
    8: _Default("rtn", 128, True),
    4: _Default("mse", 64, False),
}
_SCALE = "bfloat16"


def plan_weights(
    source: Source,
    *,
    bits: int,
    block_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    sha256: str | None = None,
) -> Plan:
    """One decision for every tensor of ``source``, without reading them.

    ``bits`` is 8 or 4, ``block_size`` a power of two from 16 to 256 (default 128 or 64).
    ``options`` may set ``method`` (``rtn``, ``mse``, ``hqq``), ``symmetric`` and ``scale``
    (``bfloat16``, ``float16``, ``float32``); all of them are recorded in the plan. ``sha256`` is
    the source's digest where it is known; computing it reads every byte.

    Raises UsageError for options outside those, SourceError where nothing can be quantized: no
    float weights, only small ones, or a file that is quantized already.
    """
    options = dict(options or {})
    method, scheme = _scheme(bits, block_size, options)
    _require_floats(source)
    ties = ties_of(source.weights)
    decisions = tuple(_decide(w, method, scheme, ties) for w in source.weights)
    if not any(d.scheme for d in decisions):
        reasons = sorted({d.reason for d in decisions if d.reason})
        raise SourceError(f"{source.path}: no tensor can be quantized ({'; '.join(reasons[:3])})")
    return Plan(
        source_sha256=source.sha256() if sha256 is None else sha256,
        options={**options, "to": "safetensors", "bits": bits, "block_size": scheme.block},
        decisions=decisions,
    )


def _scheme(bits: int, block_size: int | None, options: Mapping[str, Any]) -> tuple[str, Affine]:
    if bits not in _DEFAULTS:
        raise UsageError(f"{bits} bits, packed weights have 8 or 4; use --bits 8 or --bits 4")
    default = _DEFAULTS[bits]
    block = default.block if block_size is None else block_size
    if not (16 <= block <= 256 and block & (block - 1) == 0):
        raise UsageError(
            f"block size {block} is not a power of two from 16 to 256; "
            "use --block-size 32, 64 or 128"
        )
    method = options.get("method", default.method)
    if method not in METHODS:
        raise UsageError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    scale = options.get("scale", _SCALE)
    if scale not in SCALE_DTYPES:
        raise UsageError(f"scale dtype {scale!r} is unknown; use one of {', '.join(SCALE_DTYPES)}")
    symmetric = bool(options.get("symmetric", default.symmetric))
    return method, Affine(bits, block, symmetric=symmetric, scale=scale)


def _require_floats(source: Source) -> None:
    if source.kind == "safetensors" and packed.is_packed(source.details["metadata"]):
        raise SourceError(f"{source.path}: is already quantized by edgeopt; give the original")
    weights = [w for w in source.weights if w.role == "weight"]
    if not any(w.is_float for w in weights):
        dtypes = sorted({w.dtype for w in source.weights})
        holds = f"only {', '.join(dtypes[:6])}" if dtypes else "no tensors"
        raise SourceError(
            f"{source.path}: holds {holds}, and no float weights to quantize; "
            "if it is quantized already, give the original"
        )


def _decide(weight: Weight, method: str, scheme: Affine, ties: Mapping[str, str]) -> Decision:
    def keep(reason: str, form: str = "keep", nbytes: int = weight.nbytes) -> Decision:
        return Decision(weight.name, _kind(weight), form, form, None, reason, nbytes, weight.shape)

    if weight.name in ties:
        return keep(f"stored once, as {ties[weight.name]}", "tied", 0)
    reason = _reason_to_keep(weight)
    if reason:
        return keep(reason)
    stored = PackedLayout.of(weight, scheme).nbytes
    if stored >= weight.nbytes:
        return keep(f"{stored} bytes quantized, {weight.nbytes} as it is")
    return Decision(weight.name, _kind(weight), method, "packed", scheme, "", stored, weight.shape)


def _reason_to_keep(weight: Weight) -> str | None:
    if weight.role != "weight":
        return f"a {weight.role}, not a weight"
    if not weight.is_float:
        return f"{weight.dtype} is not a float type"
    if weight.size == 0:
        return "no elements"
    if len(weight.shape) < 2:
        return f"{len(weight.shape)}-dimensional: a bias, a norm or a scale"
    if weight.size < MIN_ELEMENTS:
        return f"{weight.size} elements, fewer than {MIN_ELEMENTS}"
    return None


_KINDS = {0: "scalar", 1: "vector", 2: "matrix"}


def _kind(weight: Weight) -> str:
    if len(weight.shape) == 2 and "emb" in weight.name.lower():
        return "embedding"
    return _KINDS.get(len(weight.shape), "kernel")
