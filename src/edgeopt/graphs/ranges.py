"""What a graph says about the floats it takes, how coarsely it looks, and the rates it knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

__all__ = ["all_nodes", "asked_sizes", "coarsest", "compared_with", "is_wave", "statistics"]

Vector = NDArray[np.float64]
Readers = Mapping[str, Sequence[Any]]
Constants = Mapping[str, Any]

#: Operators through which floats pass as they are.
_SAME = frozenset({"Cast", "Identity"})

#: Operators after which a cell stands for several, by the attribute that says for how many.
_STRIDED = {
    "Conv": "strides",
    "ConvInteger": "strides",
    "QLinearConv": "strides",
    "MaxPool": "strides",
    "AveragePool": "strides",
    "LpPool": "strides",
    "SpaceToDepth": "blocksize",
}

#: Share of a made-up picture's variance that neighbouring cells have in common.
_COMMON = 0.8

_COMPARES = frozenset({"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"})
_THROUGH = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Gather"})


def all_nodes(nodes: Sequence[Any]) -> Iterator[Any]:
    """These nodes and those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from all_nodes(graph.node)


def coarsest(name: str, nodes: Sequence[Any]) -> int:
    """How many of an input's cells, along an axis, lie under one of the coarsest map made of it.

    ``nodes`` are in topological order, as a file has them.
    """
    strides = {name: 1}
    for node in nodes:
        known = [strides[i] for i in node.input if i in strides]
        if not known:
            continue
        attribute = _STRIDED.get(node.op_type)
        step = 1
        for each in node.attribute:
            if each.name == attribute:
                step = max([each.i, *each.ints], default=1)
        for output in node.output:
            strides[output] = max(known) * max(1, step)
    return max(strides.values())


def compared_with(name: str, readers: Readers, constants: Constants) -> tuple[int, ...]:
    """Integers that a value is compared with, in the order of the graph, each once."""
    found: dict[int, None] = {}
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop(0)
        for node in readers.get(current, ()):
            if node.op_type in _COMPARES:
                for other in node.input:
                    found.update(dict.fromkeys(_integers(constants.get(other))))
            elif node.op_type in _THROUGH and node.input[0] == current:
                waiting += [o for o in node.output if o not in seen]
                seen.update(node.output)
    return tuple(found)


def asked_sizes(name: str, readers: Readers, constants: Constants) -> tuple[tuple[int, int], ...]:
    """(axis, size) of the axes of an input that its products with weights ask for: the width of a
    MatMul or Gemm, the channels of a convolution, the features of a recurrent layer."""
    found: dict[tuple[int, int], None] = {}
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop(0)
        for node in readers.get(current, ()):
            if node.op_type in _SAME:
                waiting += [o for o in node.output if o not in seen]
                seen.update(node.output)
            weight = constants.get(node.input[1]) if len(node.input) > 1 else None
            if weight is None or node.input[0] != current or len(weight.dims) < 2:
                continue
            number = {a.name: a.i for a in node.attribute}
            if node.op_type == "MatMul":
                found[-1, weight.dims[-2]] = None
            elif node.op_type == "Gemm" and not number.get("transA"):
                found[-1, weight.dims[1 if number.get("transB") else 0]] = None
            elif node.op_type == "Conv":
                found[1, weight.dims[1] * number.get("group", 1)] = None
            elif node.op_type in ("LSTM", "GRU", "RNN") and len(weight.dims) == 3:
                found[-1, weight.dims[2]] = None
    return tuple(found)


#: Operators through which a wave passes as one: cut, padded and laid out anew.
_LAID_OUT = _SAME | {
    *("Concat", "Flatten", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
    *("Split", "Expand", "If"),
}

#: Taps from which a first filter over one channel is one of sound: windows of a spectrum.
_TAPS = 64


def is_wave(name: str, readers: Readers, constants: Constants) -> bool:
    """Whether an input's values are filtered as sound is: a spectrum is taken of them, by an
    operator or by a convolution over one channel, in one direction, with many taps."""
    waiting, seen = [name], {name}
    while waiting:
        current = waiting.pop(0)
        for node in readers.get(current, ()):
            if node.op_type in ("STFT", "DFT") and node.input[0] == current:
                return True
            if node.op_type in _LAID_OUT:
                waiting += [o for o in node.output if o not in seen]
                seen.update(node.output)
            if node.op_type == "Conv" and node.input[0] == current:
                weight = constants.get(node.input[1])
                dims = () if weight is None else tuple(weight.dims)
                taps = sorted(dims[2:])
                if taps and dims[1] == 1 and taps[-1] >= _TAPS and set(taps[:-1]) <= {1}:
                    return True
    return False


def statistics(
    name: str, readers: Readers, constants: Constants
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) of an input's values, one number or one a channel; None where nothing tells.

    A normalisation in front of the network tells them: constants that are subtracted, divided or
    multiplied by, so that what comes out has a mean of zero and a deviation of one; then the
    running statistics of a first BatchNormalization, or of one behind the first convolution.
    """
    scale, shift, touched = np.ones(1), np.zeros(1), False
    current = name
    while True:
        nodes = [node for node in readers.get(current, ()) if node.op_type != "Shape"]
        if len(nodes) != 1:
            break
        node = nodes[0]
        if node.op_type in _SAME:
            current = node.output[0]
            continue
        if node.op_type == "BatchNormalization":
            parts = [_vector(constants.get(i)) for i in node.input[1:5]]
            mean, variance = parts[2], parts[3]
            if mean is None or variance is None:
                break
            return _undone(mean, np.sqrt(np.maximum(variance, 0)), scale, shift)
        if node.op_type == "Conv":
            found = _behind_convolution(node, readers, constants)
            if found is not None:
                return _undone(*found, scale, shift)
            break
        step = _affine(node, current, constants)
        if step is None:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        touched, current = True, node.output[0]
    if not touched:
        return None
    if not shift.any():  # scaled alone, from bytes as a rule: what comes out is from 0 to 1
        return _undone(np.full(1, 0.5), np.full(1, 0.25), scale, shift)
    return _undone(np.zeros(1), np.ones(1), scale, shift)


def _undone(
    mean: Vector, std: Vector, scale: Vector, shift: Vector
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Statistics of x, where those of ``scale * x + shift`` are known."""
    with np.errstate(all="ignore"):
        before, deviation = (mean - shift) / scale, np.abs(std / scale)
    width = max(before.size, deviation.size)
    both = np.stack([np.broadcast_to(before, width), np.broadcast_to(deviation, width)])
    if not np.isfinite(both).all() or not (both[1] > 0).any() or np.abs(both).max() > 1e6:
        return None
    return tuple(map(float, both[0])), tuple(map(float, both[1]))


def _affine(node: Any, current: str, constants: Constants) -> tuple[Vector, Vector] | None:
    """(factor, term) of an operation with a constant: one number, or one a channel."""
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    first = node.input[0] == current
    other = _vector(constants.get(node.input[1 if first else 0]))
    if other is None or (node.op_type == "Div" and (not first or not other.all())):
        return None
    one, zero = np.ones_like(other), np.zeros_like(other)
    if node.op_type == "Add":
        return one, other
    if node.op_type == "Sub":
        return (one, -other) if first else (-one, other)
    return (other if node.op_type == "Mul" else one / other), zero


def _behind_convolution(
    node: Any, readers: Readers, constants: Constants
) -> tuple[Vector, Vector] | None:
    """Mean and deviation of a convolution's input, from the BatchNormalization that follows it.

    Its running means are linear in those of the input's channels: least squares gives them. Its
    variances give one deviation, the median over channels, for pictures as smooth as those made.
    """
    after = readers.get(node.output[0], ())
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if len(after) != 1 or after[0].op_type != "BatchNormalization" or group != 1:
        return None
    weight = _array(constants.get(node.input[1]))
    mean, variance = (_vector(constants.get(i)) for i in after[0].input[3:5])
    if weight is None or mean is None or variance is None or weight.ndim < 3:
        return None
    if len(node.input) > 2:
        bias = _vector(constants.get(node.input[2]))
        mean = mean if bias is None else mean - bias
    taps = weight.reshape(*weight.shape[:2], -1).astype(np.float64)
    if taps.shape[0] < taps.shape[1] or mean.size != taps.shape[0]:
        return None
    found, *_ = np.linalg.lstsq(taps.sum(-1), mean, rcond=1e-3)
    spread = _COMMON * taps.sum(-1) ** 2 + (1 - _COMMON) * (taps**2).sum(-1)
    power = spread.sum(-1)
    good = (power > 0) & (variance > 0)
    if not good.any():
        return None
    return found, np.full(1, np.sqrt(np.median(variance[good] / power[good])))


def _vector(tensor: Any) -> Vector | None:
    """A constant of one number, or of one a channel (all other axes are of one)."""
    array = _array(tensor)
    if array is None or array.size == 0 or array.size != max(array.shape, default=1):
        return None
    return array.reshape(-1).astype(np.float64)


def _array(tensor: Any) -> NDArray[Any] | None:
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return np.asarray(numpy_helper.to_array(tensor))


def _integers(tensor: Any) -> list[int]:
    array = _array(tensor)
    if array is None or array.size > 16 or array.dtype.kind not in "iu":
        return []
    return [int(value) for value in array.reshape(-1)]
