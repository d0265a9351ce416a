"""An artifact's tensors as layers: what belongs together under one name, and its error.

Quantizers store a tensor in parts under names made from its own: codes, scales, zero points. The
parts are counted as the one layer that they are, and multiplied out where its error is asked for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS, Layer, Progress, Source, Weight
from edgeopt.core.ggml import PLAIN_TYPES
from edgeopt.files import packed
from edgeopt.files.sparse import Rows
from edgeopt.files.weights import logical_weights
from edgeopt.measure.tensor_errors import TensorError, tensor_errors
from edgeopt.numerics import ggml

__all__ = ["LayerTensors", "layer_errors", "tensors_of", "with_errors"]

#: Ends of the parts' names, the codes' first: edgeopt's own, ONNX Runtime's, and the latter's
#: where it transposed the tensor first.
_SPELLINGS: Sequence[tuple[str, str, str]] = (
    (".codes", ".scale", ".zero"),
    ("_quantized", "_scale", "_zero_point"),
)
_TRANSPOSED = "_Transposed"
_SHAPE = ".shape"

#: Values above which a layer that is in parts is not multiplied out: it is done whole.
_LARGEST = 1 << 26

_READABLE = frozenset({*PLAIN_TYPES.values(), *DTYPE_BITS})


@dataclass(frozen=True)
class LayerTensors:
    """One artifact: its layers in the file's order, and those that can be read, by name."""

    layers: tuple[Layer, ...]
    readable: Mapping[str, Weight]
    files: tuple[Path, ...]


def tensors_of(source: Source) -> LayerTensors:
    """The layers of an opened file; reads headers and the shapes of quantized tensors only."""
    packing = source.kind == "safetensors" and packed.is_packed(source.details["metadata"])
    if packing:
        return _packed(source)
    stored = {weight.name: weight for weight in source.weights}
    groups = _groups(stored) if source.kind == "onnx" else {}
    part_of = {part.name: name for name, group in groups.items() for part in group.parts}
    layers: list[Layer] = []
    readable: dict[str, Weight] = {}
    slot = _LayerRoom()
    for weight in source.weights:
        name = part_of.get(weight.name)
        if name is None:
            layers.append(_layer(weight))
            if weight.dtype in _READABLE:
                readable[weight.name] = weight
            elif weight.dtype in ggml.decodes():
                readable[weight.name] = replace(weight, reader=_decoding(weight))
        elif groups[name].codes is weight:
            nbytes = sum(part.nbytes for part in groups[name].parts)
            layers.append(Layer(name, weight.dtype, nbytes))
            if weight.size <= _LARGEST:
                readable[name] = groups[name].whole(name, slot)
    return LayerTensors(tuple(layers), readable, source.files)


def layer_errors(
    base: LayerTensors, other: LayerTensors, *, progress: Progress | None = None
) -> tuple[TensorError, ...]:
    """Of each layer that both have under one name and in one shape, and that can be read."""
    pairs = [
        (weight, other.readable[name])
        for name, weight in base.readable.items()
        if name in other.readable and other.readable[name].shape == weight.shape and weight.size
    ]
    return tensor_errors(pairs, files=(*base.files, *other.files), progress=progress)


def with_errors(layers: Sequence[Layer], errors: Sequence[TensorError]) -> tuple[Layer, ...]:
    """The layers with what is known of each; None for a fused, renamed or unreadable one."""
    known = {error.name: error.sqnr_db for error in errors}
    return tuple(replace(layer, sqnr_db=known.get(layer.name)) for layer in layers)


def _layer(weight: Weight) -> Layer:
    if isinstance(weight.reader, Rows):
        return Layer(weight.name, f"sparse {weight.dtype}", weight.reader.nbytes)
    return Layer(weight.name, weight.dtype, weight.nbytes)


def _packed(source: Source) -> LayerTensors:
    header = packed.read_header(source.path, source.details["metadata"])
    weights = {weight.name: weight for weight in logical_weights(source)}
    layers = [
        Layer(
            name,
            f"int{layout.scheme.bits}" if (layout := header.layouts.get(name)) else weight.dtype,
            layout.nbytes if layout else weight.nbytes,
        )
        for name, weight in weights.items()
        if name not in header.tied
    ]
    return LayerTensors(tuple(layers), weights, source.files)


# ---------------------------------------------------------------------------------------------
# parts


@dataclass(frozen=True)
class _Group:
    """``(codes - zero) * scale``, reshaped to ``shape`` and transposed."""

    codes: Weight
    scale: Weight
    zero: Weight | None
    shape: tuple[int, ...]
    transposed: bool
    parts: tuple[Weight, ...]

    def whole(self, name: str, slot: _LayerRoom) -> Weight:
        shape = self.shape[::-1] if self.transposed else self.shape

        def make() -> NDArray[Any]:
            values = self._values().reshape(self.shape)
            return values.T if self.transposed else values

        def read(lo: int, hi: int) -> NDArray[Any]:
            found = slot.get(name, make)
            return found[lo:hi] if shape else found

        return Weight(name, shape, "float32", 4 * math.prod(shape), read)

    def _values(self) -> NDArray[np.float32]:
        codes = self.codes.array().astype(np.float32)
        scale = _along(self.scale.array().astype(np.float32), codes.shape)
        if self.zero is not None:
            codes -= _along(self.zero.array().astype(np.float32), codes.shape)
        return codes * scale


class _LayerRoom:
    """Room for one layer that is only had whole: it is read a few rows at a time, by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._name = ""
        self._array: NDArray[Any] | None = None

    def get(self, name: str, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        with self._lock:
            if self._array is None or self._name != name:
                self._array = None  # before the next is made: two need not fit
                self._array, self._name = make(), name
            return self._array


def _decoding(weight: Weight) -> Callable[[int, int], NDArray[Any]]:
    """Rows of a GGUF block type as floats."""
    columns = weight.shape[-1]

    def rows(lo: int, hi: int) -> NDArray[Any]:
        raw = weight.rows(lo, hi)
        values = ggml.decode(weight.dtype, raw.reshape(-1, raw.shape[-1]), columns)
        return values.reshape(-1, *weight.shape[1:])

    return rows


def _along(values: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Scales or zero points as they broadcast: a vector belongs to the one axis of its length."""
    if values.ndim != 1 or values.size == 1:
        return values.reshape(-1) if values.size == 1 else values
    axes = [axis for axis, size in enumerate(shape) if size == values.size]
    # Where several fit, ONNX Runtime's own choice: output channels first in a kernel, last in a
    # matrix.
    axis = axes[0] if len(shape) > 2 else axes[-1]
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def _groups(stored: Mapping[str, Weight]) -> dict[str, _Group]:
    found: dict[str, _Group] = {}
    for name, codes in stored.items():
        for end, scale_end, zero_end in _SPELLINGS:
            stem = name.removesuffix(end)
            scale, zero = stored.get(stem + scale_end), stored.get(stem + zero_end)
            if stem == name or scale is None or not _fits(codes, scale, zero):
                continue
            shape = stored.get(stem + _SHAPE)
            parts = tuple(part for part in (codes, scale, zero, shape) if part is not None)
            dims = codes.shape if shape is None else tuple(map(int, shape.array()))
            if math.prod(dims) != codes.size:
                continue
            own = stem.removesuffix(_TRANSPOSED)
            found[own] = _Group(codes, scale, zero, dims, own != stem, parts)
    return found


def _fits(codes: Weight, scale: Weight, zero: Weight | None) -> bool:
    """Whether the parts broadcast to the codes: names alone prove nothing."""
    if not scale.is_float or codes.is_float or codes.dtype not in DTYPE_BITS:
        return False
    return all(
        part.size == 1
        or (len(part.shape) == 1 and part.shape[0] in codes.shape)
        or (
            len(part.shape) == len(codes.shape)
            and all(a in (1, b) for a, b in zip(part.shape, codes.shape, strict=True))
        )
        for part in (scale, zero)
        if part is not None
    )
