"""Bring a float ONNX graph to the plain form that the rest of this room works on.

Functions are inlined, constants become initializers, what depends on constants alone is computed
now (the exporter gives LSTM and GRU weights as slices of one initializer, and linear weights behind
a Transpose), batch normalisation goes into the convolution before it, equal initializers become
one. What comes out computes the same function with standard operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgeopt.errors import FormatError
from edgeopt.graphs.scopes import infer_types, plain_strings, separate, strings_inside

__all__ = ["constant_array", "fold", "load_model", "set_constant"]

#: Never folded: their result is not a function of their inputs, or has subgraphs.
_IMPURE = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
    }
)

#: A folded result may be this many times its inputs, or this many bytes, whichever is more:
#: an Expand of a scalar to a mask is better left to the runtime than written to the file.
_GROWTH = 1.25
_FREE_BYTES = 4096

#: Below this, a Transpose that other nodes see through costs nothing to fold twice.
_SHARED_BYTES = 4096


#: Bytes at either end of a tensor that tell most of them apart, and of a comparison's steps.
_LOOK = 256
_PART = 16 << 20


def load_model(path: Path) -> ir.Model:
    """Read an ONNX file; external data stays mapped. FormatError where it cannot be parsed."""
    from google.protobuf.message import DecodeError

    try:
        return ir.load(path)
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(path, f"not a readable ONNX model ({reason})") from error


def constant_array(value: ir.Value | None) -> NDArray[Any] | None:
    """The array behind an initializer of the main graph, None for anything else."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    array: NDArray[Any] = value.const_value.numpy()
    return array


def set_constant(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    """Register ``array`` as an initializer under ``name``, made unique if it is taken."""
    unique, n = name, 1
    while unique in graph.initializers:
        unique, n = f"{name}.{n}", n + 1
    tensor = ir.tensor(array, name=unique)
    value = ir.Value(
        name=unique, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def fold(model: ir.Model) -> ir.Model:
    """Fold in place, and give the model back. The output names and order do not change."""
    steps: tuple[Callable[[ir.Model], object], ...] = (
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        plain_strings,
        separate,
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        _drop_identities,
        common.ClearMetadataAndDocStringPass(),
        infer_types,
    )
    for step in steps:
        step(model)
    _drop_training_nodes(model.graph)
    _fold_constants(model)
    _fold_batch_norms(model.graph)
    _merge_equal(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    strings_inside(model.graph)
    return model


def _drop_identities(model: ir.Model) -> None:
    """Readers of an Identity read what it reads, in branches too.

    One that gives a graph's output stays: the output must be a value of that graph, and of that
    place among its outputs. onnx-ir's own pass puts the outer value there, which a branch of an If
    cannot return, and one value where two outputs were.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            continue
        (source,), (copy,) = node.inputs, node.outputs
        if source is None or copy.is_graph_output():
            continue
        copy.replace_all_uses_with(source)
        assert node.graph is not None
        node.graph.remove(node, safe=True)


def _merge_equal(graph: ir.Graph) -> None:
    """Equal initializers become the first of them.

    onnx-ir's own pass holds the bytes of all of them at once; here a tensor is read in full only
    where another of its dtype and shape begins and ends as it does.
    """
    alike: dict[tuple[Any, ...], list[ir.Value]] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if value.is_graph_input() or value.is_graph_output():
            continue
        raw = _raw(value)
        ends = raw[:_LOOK].tobytes(), raw[-_LOOK:].tobytes()
        found = alike.setdefault((tensor.dtype, tuple(tensor.shape), *ends), [])
        kept = next((other for other in found if _same(_raw(other), raw)), None)
        if kept is None:
            found.append(value)
        else:
            value.replace_all_uses_with(kept)
            del graph.initializers[value.name or ""]


def _raw(value: ir.Value) -> NDArray[np.uint8]:
    assert value.const_value is not None
    return np.ascontiguousarray(value.const_value.numpy()).reshape(-1).view(np.uint8)


def _same(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Bytes, not numbers: 0 and -0 differ, a NaN is itself."""
    parts = range(0, a.size, _PART)
    return all(np.array_equal(a[lo : lo + _PART], b[lo : lo + _PART]) for lo in parts)


def _drop_training_nodes(graph: ir.Graph) -> None:
    """Dropout does nothing at inference; its mask output, if used, keeps it."""
    for node in list(graph):
        if node.op_type != "Dropout" or node.domain not in ("", "ai.onnx"):
            continue
        training = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
        if len(node.inputs) > 2 and node.inputs[2] is not None and training is None:
            continue
        if training is not None and bool(np.any(training)):
            continue
        if len(node.outputs) > 1 and node.outputs[1].uses():
            continue
        source, out = node.inputs[0], node.outputs[0]
        if source is None or out.is_graph_output():
            continue
        out.replace_all_uses_with(source)
        graph.remove(node, safe=True)


def _fold_constants(model: ir.Model) -> None:
    graph = model.graph
    for node in list(graph):
        if node.domain not in ("", "ai.onnx") or node.op_type in _IMPURE:
            continue
        if any(attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
               for attr in node.attributes.values()):  # fmt: skip
            continue
        if not node.inputs or any(out.is_graph_output() for out in node.outputs):
            continue
        arrays = [constant_array(value) for value in node.inputs]
        known = _static_shape(node)
        if known is not None:
            value = set_constant(graph, node.outputs[0].name or "shape", known)
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)
            continue
        if any(v is not None and a is None for v, a in zip(node.inputs, arrays, strict=True)):
            continue
        if node.op_type == "Transpose" and _seen_by_others(node):
            continue
        if _asks_for_much(node, arrays):
            continue
        results = _evaluate(model, node, arrays)
        if results is None:
            continue
        given = sum(a.nbytes for a in arrays if a is not None)
        made = sum(r.nbytes for r in results)
        if made > max(_FREE_BYTES, _GROWTH * given):
            continue
        inputs = list(node.inputs)
        names = [_folded_name(node, out) for out in node.outputs]
        graph.remove(_detached(node), safe=False)
        _drop_unused(graph, inputs)
        for name, out, result in zip(names, node.outputs, results, strict=True):
            if out.uses():
                out.replace_all_uses_with(set_constant(graph, name, result))


def _asks_for_much(node: ir.Node, arrays: Sequence[NDArray[Any] | None]) -> bool:
    """Whether a node whose result may be far larger than its inputs is one to leave alone.

    A file of a few bytes can ask for terabytes; these operators are looked at before they run.
    """
    values = [a for a in arrays if a is not None]
    if node.op_type in ("Tile", "Pad", "Resize", "OneHot", "Upsample", "Range", "EyeLike"):
        return True
    if node.op_type in ("ConstantOfShape", "Expand") and values:
        wanted = math.prod(max(int(d), 1) for d in values[-1].reshape(-1))
        return wanted * 8 > _FREE_BYTES
    return False


def _detached(node: ir.Node) -> ir.Node:
    """Let go of the node's inputs, so that an initializer nobody else uses can be dropped."""
    for i in range(len(node.inputs)):
        node.replace_input_with(i, None)
    return node


def _static_shape(node: ir.Node) -> NDArray[np.int64] | None:
    """What a Shape node gives, where every dimension it asks for is fixed."""
    source = node.inputs[0]
    if node.op_type != "Shape" or source is None or source.shape is None:
        return None
    start, end = node.attributes.get("start"), node.attributes.get("end")
    wanted = list(source.shape)[
        slice(start.as_int() if start else 0, end.as_int() if end else None)
    ]
    if not all(isinstance(dim, int) for dim in wanted):
        return None
    return np.array(wanted, np.int64)


def _seen_by_others(node: ir.Node) -> bool:
    """A large tensor that other nodes use as it stands (tied weights) must stay one tensor."""
    value = node.inputs[0]
    if value is None or value.const_value is None:
        return False
    return value.const_value.nbytes >= _SHARED_BYTES and any(
        user is not node for user, _ in value.uses()
    )


def _folded_name(node: ir.Node, out: ir.Value) -> str:
    """Keep the parameter's own name where one initializer became one other."""
    sources = [v for v in node.inputs if v is not None and v.name]
    large = [v for v in sources if v.const_value is not None and v.const_value.size > 64]
    if len(large) == 1 and len(large[0].uses()) == 1 and len(node.outputs) == 1:
        return large[0].name or ""
    return out.name or f"{node.op_type}.folded"


def _drop_unused(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    for value in values:
        if value is not None and value.name in graph.initializers and not value.uses():
            if value.is_graph_output():
                continue
            del graph.initializers[value.name]


def _evaluate(
    model: ir.Model, node: ir.Node, arrays: list[NDArray[np.generic] | None]
) -> list[NDArray[np.generic]] | None:
    """The node's outputs by the reference implementation of its operator, None if it has none."""
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    feeds = {
        value.name: array
        for value, array in zip(node.inputs, arrays, strict=True)
        if value is not None and array is not None
    }
    try:
        evaluator = ReferenceEvaluator(proto, opsets={"": model.opset_imports.get("", 21)})
        results = evaluator.run(None, feeds)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, KeyError):
        # No reference for this operator and these types: the runtime will compute it instead.
        return None
    if not all(isinstance(r, np.ndarray) for r in results):
        return None
    return list(results)


def _fold_batch_norms(graph: ir.Graph) -> None:
    """Conv -> BatchNormalization becomes Conv, with the statistics in its weights and bias."""
    for norm in list(graph):
        if norm.op_type != "BatchNormalization" or norm.domain not in ("", "ai.onnx"):
            continue
        source = norm.inputs[0]
        conv = source.producer() if source is not None else None
        if conv is None or conv.op_type not in ("Conv", "ConvTranspose"):
            continue
        if source is None or len(source.uses()) != 1 or source.is_graph_output():
            continue
        training = norm.attributes.get("training_mode")
        if training is not None and training.as_int():
            continue
        if any(out.uses() for out in norm.outputs[1:]):
            continue
        if _absorb(graph, conv, norm):
            out = norm.outputs[0]
            conv.outputs[0].name, out_name = out.name, out.name
            conv.outputs[0].shape = out.shape
            out.name = f"{out_name}.before_fold"
            if out.is_graph_output():
                for i, value in enumerate(graph.outputs):
                    if value is out:
                        graph.outputs[i] = conv.outputs[0]
            out.replace_all_uses_with(conv.outputs[0])
            parameters = list(norm.inputs[1:])
            graph.remove(norm, safe=True)
            _drop_unused(graph, parameters)


def _absorb(graph: ir.Graph, conv: ir.Node, norm: ir.Node) -> bool:
    weight_value = conv.inputs[1]
    weight = constant_array(weight_value)
    parameters = [constant_array(v) for v in norm.inputs[1:5]]
    if weight is None or weight_value is None or any(p is None for p in parameters):
        return False
    if len(weight_value.uses()) != 1:
        return False
    if any(p is not None and p.ndim != 1 for p in parameters):
        return False  # statistics for every position, as opsets under 9 could have them
    has_bias = len(conv.inputs) > 2 and conv.inputs[2] is not None
    bias = constant_array(conv.inputs[2]) if has_bias else None
    if has_bias and bias is None:
        return False
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    attr = norm.attributes.get("epsilon")
    factor = gamma / np.sqrt(variance + (attr.as_float() if attr is not None else 1e-5))
    group_attr = conv.attributes.get("group")
    group = group_attr.as_int() if group_attr is not None else 1
    if conv.op_type == "Conv":
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:  # ConvTranspose: [C, M/group, ...], output channel g * (M/group) + m for C in group g
        per_group = factor.reshape(group, 1, -1)
        grouped = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        scaled = (grouped * per_group[..., None]).reshape(weight.shape)
    old_bias = np.zeros_like(mean) if bias is None else np.asarray(bias, np.float64)
    shift = (old_bias - mean) * factor + beta
    dtype = weight.dtype
    name = weight_value.name or "conv.weight"
    bias_name = (conv.inputs[2].name if has_bias and conv.inputs[2] else None) or f"{name}.bias"
    old = [conv.inputs[1], conv.inputs[2] if has_bias else None]
    new_weight = set_constant(graph, f"{name}.folded", scaled.astype(dtype))
    new_bias = set_constant(graph, f"{bias_name}.folded", shift.astype(dtype))
    conv.replace_input_with(1, new_weight)
    if len(conv.inputs) > 2:
        conv.replace_input_with(2, new_bias)
    else:
        conv.resize_inputs(3)
        conv.replace_input_with(2, new_bias)
    _drop_unused(graph, old)
    return True
