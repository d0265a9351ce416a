"""Every standard operator that changed between opsets 7 and 21, in small: what it takes, how."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import defs, helper
from onnx import numpy_helper as nh

__all__ = ["CASES", "Held", "OperatorCase", "opsets"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OperatorCase:
    """One node; ``inputs``: arrays for when it runs, :class:`Held` constants, None left out."""

    op: str
    first: int
    last: int
    inputs: tuple[Any, ...]
    outputs: int
    attributes: dict[str, Any]

    def build(self, opset: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The model at that opset, and its inputs by name."""
        names, taken, kept, feed = [], [], [], {}
        for number, given in enumerate(self.inputs):
            name = "" if given is None else f"i{number}"
            names.append(name)
            if isinstance(given, Held):
                kept.append(nh.from_array(np.asarray(given.array), name))
            elif given is not None:
                kind = helper.np_dtype_to_tensor_dtype(given.dtype)
                taken.append(helper.make_tensor_value_info(name, kind, given.shape))
                feed[name] = given
        results = [f"y{number}" for number in range(self.outputs)]
        graph = helper.make_graph(
            [helper.make_node(self.op, names, results, **self.attributes)],
            "g",
            taken,
            [helper.make_empty_tensor_value_info(name) for name in results],
            kept,
        )
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8), feed


@dataclass(frozen=True)
class Held:
    array: Any


def opsets(case: OperatorCase) -> Iterator[int]:
    """Under 21, one for each definition of the operator that the case is for."""
    since = {s.since_version for s in defs.get_all_schemas_with_history() if s.name == case.op}
    starts = {max(version, 7, case.first) for version in since} | {max(7, case.first)}
    return (version for version in sorted(starts) if version <= min(case.last, 20))


CASES: list[OperatorCase] = []
_RNG = np.random.default_rng(0)


def _f(*shape: int) -> Array:
    return _RNG.standard_normal(shape).astype(np.float32)


def _i(*values: int) -> Array:
    return np.array(values, np.int64)


def _add(op: str, first: int, last: int, inputs: list[Any], n: int = 1, **attributes: Any) -> None:
    CASES.append(OperatorCase(op, first, last, tuple(inputs), n, attributes))


X = _f(2, 3, 4, 5)
for op in [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Ceil",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "Identity",
    "LeakyRelu",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Celu",
    "HardSwish",
    "Mish",
    "Gelu",
    "IsNaN",
    "IsInf",
    "Trilu",
    "Det",
    "Shape",
    "Size",
    "NonZero",
    "LpNormalization",
    "Not",
]:
    x = X
    if op in ("Acosh",):
        x = np.abs(X) + 1
    if op in ("Acos", "Asin", "Atanh"):
        x = np.tanh(X)
    if op == "Sqrt":
        x = np.abs(X)
    if op == "Det":
        x = _f(2, 3, 3)
    if op == "Not":
        x = X > 0
    _add(op, 1, 99, [x])
_add("Elu", 1, 99, [X], alpha=0.3)
_add("Selu", 1, 99, [X], alpha=0.3, gamma=2.0)
_add("HardSigmoid", 1, 99, [X], alpha=0.3, beta=0.2)
for op in [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Greater",
    "Less",
    "Equal",
    "GreaterOrEqual",
    "LessOrEqual",
    "Max",
    "Min",
    "PRelu",
    "And",
    "Or",
    "Xor",
    "Mod",
]:
    a, b = X, _f(1, 3, 1, 5)
    if op == "Pow":
        a = np.abs(X)
    if op in ("And", "Or", "Xor"):
        a, b = a > 0, b > 0
    if op == "Equal":
        a, b = (a * 2).astype(np.int64), (b * 2).astype(np.int64)
    if op == "PRelu":
        b = _f(3, 1, 1)
    kw = {"fmod": 1} if op == "Mod" else {}
    _add(op, 1, 99, [a, b], **kw)
    if op not in ("And", "Or", "Xor", "Mod"):
        _add(op, 1, 99, [a, Held(b)])
for op in ("Sum", "Mean", "Max", "Min"):
    _add(op, 1, 99, [X, _f(1, 3, 1, 5), _f(5)])
    _add(op, 1, 99, [X])
for op in ["ArgMax", "ArgMin"]:
    _add(op, 1, 99, [X])
    _add(op, 1, 99, [X], axis=2, keepdims=0)
    _add(op, 11, 99, [X], axis=-1)
    _add(op, 12, 99, [np.round(X)], axis=1, select_last_index=1)
for op in [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]:
    x = np.abs(X) + 0.1
    top = 12 if op == "ReduceSum" else 17
    _add(op, 1, top, [x])
    _add(op, 1, top, [x], axes=[1, 3])
    _add(op, 1, top, [x], axes=[2], keepdims=0)
    _add(op, 1, top, [x], keepdims=0)
    _add(op, 11, top, [x], axes=[-1])
    lo = 13 if op == "ReduceSum" else 18
    _add(op, lo, 99, [x, Held(_i(1, 3))])
    _add(op, lo, 99, [x])
    _add(op, lo, 99, [x], noop_with_empty_axes=1)
    _add(op, lo, 99, [x, _i(1, -1)], keepdims=0)
for op in ("Softmax", "LogSoftmax", "Hardmax"):
    _add(op, 1, 99, [X])
    for ax in (0, 1, 2, 3):
        _add(op, 1, 99, [X], axis=ax)
    _add(op, 11, 99, [X], axis=-1)
    _add(op, 11, 99, [X], axis=-2)
    _add(op, 1, 99, [_f(4)], axis=0)
    _add(op, 1, 99, [_f(3, 4)], axis=1)
_add("AveragePool", 1, 99, [X], kernel_shape=[2, 2])
_add("AveragePool", 7, 99, [X], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
_add(
    "AveragePool", 10, 99, [X], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, pads=[0, 0, 1, 1]
)
_add(
    "AveragePool",
    10,
    99,
    [X],
    kernel_shape=[2, 2],
    strides=[2, 2],
    ceil_mode=1,
    pads=[1, 1, 1, 1],
    count_include_pad=1,
)
_add("AveragePool", 1, 99, [X], kernel_shape=[2, 2], auto_pad="SAME_UPPER")
_add("AveragePool", 19, 99, [X], kernel_shape=[2, 2], dilations=[2, 2])
_add("MaxPool", 1, 99, [X], kernel_shape=[2, 2])
_add("MaxPool", 8, 99, [X], 2, kernel_shape=[2, 2])
_add("MaxPool", 10, 99, [X], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
_add("MaxPool", 8, 99, [X], 2, kernel_shape=[2, 2], storage_order=1)
_add("LpPool", 2, 99, [X], kernel_shape=[2, 2], p=3)
for op in ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"]:
    _add(op, 1, 99, [X])
bn = [Held(_f(3)), Held(_f(3)), Held(_f(3)), Held(np.abs(_f(3)) + 0.5)]
_add("BatchNormalization", 7, 99, [X, *bn])
_add("BatchNormalization", 7, 99, [X, *bn], epsilon=0.1, momentum=0.5)
_add("BatchNormalization", 14, 99, [X, *bn], 3, training_mode=1)
_add("BatchNormalization", 7, 8, [X, *bn], spatial=1)
sp = [Held(_f(3, 4, 5)), Held(_f(3, 4, 5)), Held(_f(3, 4, 5)), Held(np.abs(_f(3, 4, 5)) + 0.5)]
_add("BatchNormalization", 7, 8, [X, *sp], spatial=0)
_add("Dropout", 7, 99, [X])
_add("Dropout", 7, 11, [X], ratio=0.7)
_add("Dropout", 12, 99, [X], 2)
_add("Dropout", 12, 99, [X, Held(np.float32(0.7))])
_add("Dropout", 12, 99, [X, Held(np.float32(0.7)), Held(np.bool_(False))], 2)
_add("Cast", 1, 99, [X], to=T.INT64)
_add("Cast", 1, 99, [X], to=T.FLOAT16)
_add("Cast", 1, 99, [X], to=T.DOUBLE)
_add("Cast", 9, 99, [X], to=T.STRING)
_add("CastLike", 15, 99, [X, Held(_i(1))])
_add("Clip", 1, 10, [X], min=-0.5, max=0.5)
_add("Clip", 1, 10, [X], min=0.0)
_add("Clip", 1, 10, [X], max=0.3)
_add("Clip", 1, 99, [X])
_add("Clip", 11, 99, [X, Held(np.float32(-0.5)), Held(np.float32(0.5))])
_add("Clip", 11, 99, [X, None, Held(np.float32(0.5))])
_add("Clip", 12, 99, [_i(1, 5, 9), Held(np.int64(2)), Held(np.int64(6))])
_add("Concat", 4, 99, [X, _f(2, 1, 4, 5)], axis=1)
_add("Concat", 11, 99, [X, _f(2, 3, 4, 2)], axis=-1)
_add("ConstantOfShape", 9, 99, [_i(2, 3)])
_add("ConstantOfShape", 9, 99, [_i(2, 3)], value=nh.from_array(np.array([7], np.int64)))
W = Held(_f(6, 3, 3, 3))
_add("Conv", 1, 99, [X, W], pads=[1, 1, 1, 1])
_add("Conv", 1, 99, [X, W, Held(_f(6))], auto_pad="SAME_LOWER")
_add("Conv", 1, 99, [_f(2, 4, 5, 5), Held(_f(4, 2, 3, 3))], group=2)
_add("ConvTranspose", 1, 99, [X, Held(_f(3, 4, 3, 3))])
_add("ConvTranspose", 1, 99, [X, Held(_f(3, 4, 3, 3))], strides=[2, 2], output_padding=[1, 1])
_add("ConvTranspose", 1, 99, [X, Held(_f(3, 4, 3, 3))], output_shape=[9, 11], strides=[2, 2])
_add("ConvTranspose", 1, 99, [X, Held(_f(3, 4, 3, 3))], auto_pad="SAME_UPPER", strides=[2, 2])
_add("CumSum", 11, 99, [X, Held(np.int64(1))])
_add("CumSum", 11, 99, [X, Held(np.int32(1))], exclusive=1, reverse=1)
_add("DFT", 17, 19, [_f(1, 8, 5, 1)], axis=1)
_add("DFT", 17, 19, [_f(1, 8, 5, 1)])
_add("DFT", 17, 19, [_f(1, 8, 5, 2)], axis=2, inverse=1)
_add("DFT", 17, 19, [_f(1, 8, 5, 1)], axis=1, onesided=1)
_add("DFT", 17, 19, [_f(1, 8, 5, 1), Held(np.int64(6))], axis=1)
_add("DFT", 20, 99, [_f(1, 8, 5, 1), None, Held(np.int64(1))])
_add("DepthToSpace", 1, 99, [_f(1, 8, 2, 3)], blocksize=2)
_add("DepthToSpace", 11, 99, [_f(1, 8, 2, 3)], blocksize=2, mode="CRD")
_add("SpaceToDepth", 1, 99, [_f(1, 2, 4, 6)], blocksize=2)
_add("Einsum", 12, 99, [_f(3, 4), _f(4, 5)], equation="ij,jk->ik")
_add("Expand", 8, 99, [_f(3, 1), Held(_i(2, 3, 4))])
_add("EyeLike", 9, 99, [_f(3, 4)], k=1)
for ax in (0, 1, 2, 4):
    _add("Flatten", 1, 99, [X], axis=ax)
_add("Flatten", 1, 99, [X])
_add("Flatten", 11, 99, [X], axis=-1)
S, B, E, H = 4, 2, 3, 5


def _rnn(op, g, nb, **kw):
    x = _f(S, B, E)
    w = Held(_f(1, g * H, E))
    r = Held(_f(1, g * H, H))
    b = Held(_f(1, nb * H))
    n = 3 if op == "LSTM" else 2
    _add(op, 7, 99, [x, w, r], n, hidden_size=H)
    _add(op, 7, 99, [x, w, r, b], n, hidden_size=H, **kw)
    d = [
        x,
        Held(_f(2, g * H, E)),
        Held(_f(2, g * H, H)),
        Held(_f(2, nb * H)),
        Held(np.array([4, 2], np.int32)),
        Held(_f(2, B, H)),
    ]
    _add(op, 7, 99, d, n, hidden_size=H, direction="bidirectional")


_rnn("LSTM", 4, 8)
_rnn("GRU", 3, 6)
_rnn("GRU", 3, 6, linear_before_reset=1)
_rnn("RNN", 1, 2)
_add("Gather", 1, 99, [X, _i(0, 2)], axis=1)
_add("Gather", 11, 99, [X, _i(0, -1)], axis=-1)
_add("Gather", 1, 99, [Held(_f(9, 4)), _i(1, 3, 8)])
_add("GatherElements", 11, 99, [_f(3, 3), np.array([[0, 1], [2, 0]], np.int64)], axis=1)
_add("GatherND", 11, 99, [_f(3, 3), np.array([[0, 1], [2, 0]], np.int64)])
_add("GatherND", 12, 99, [X, np.array([[1], [2]], np.int64)], batch_dims=1)
_add("Gemm", 7, 99, [_f(3, 4), Held(_f(4, 5)), Held(_f(5))])
_add(
    "Gemm",
    7,
    99,
    [_f(4, 3), Held(_f(5, 4)), Held(_f(3, 1))],
    transA=1,
    transB=1,
    alpha=0.5,
    beta=2.0,
)
_add("Gemm", 11, 99, [_f(3, 4), Held(_f(4, 5))])
_add("MatMul", 1, 99, [_f(2, 3, 4), Held(_f(4, 5))])
_add("GridSample", 16, 99, [_f(1, 2, 4, 4), np.tanh(_f(1, 3, 3, 2))])
_add(
    "GridSample",
    16,
    19,
    [_f(1, 2, 4, 4), np.tanh(_f(1, 3, 3, 2))],
    mode="bilinear",
    padding_mode="border",
    align_corners=1,
)
_add(
    "GridSample",
    16,
    19,
    [_f(1, 2, 4, 4), np.tanh(_f(1, 3, 3, 2))],
    mode="bicubic",
    padding_mode="reflection",
)
_add("GridSample", 16, 19, [_f(1, 2, 4, 4), np.tanh(_f(1, 3, 3, 2))], mode="nearest")
_add("GroupNormalization", 18, 20, [_f(2, 4, 3, 3), Held(_f(2)), Held(_f(2))], num_groups=2)
_add("GroupNormalization", 21, 99, [_f(2, 4, 3, 3), Held(_f(4)), Held(_f(4))], num_groups=2)
_add("GroupNormalization", 18, 20, [_f(2, 4, 3, 3), _f(2), _f(2)], num_groups=2, epsilon=0.1)
_add("InstanceNormalization", 6, 99, [X, Held(_f(3)), Held(_f(3))])
_add("LRN", 1, 99, [X], size=3)
_add("LayerNormalization", 17, 99, [X, Held(_f(5)), Held(_f(5))])
_add("MeanVarianceNormalization", 9, 99, [X])
_add(
    "NonMaxSuppression",
    10,
    99,
    [
        np.abs(_f(1, 6, 4)),
        np.abs(_f(1, 2, 6)),
        Held(_i(3)),
        Held(np.array([0.5], np.float32)),
        Held(np.array([0.1], np.float32)),
    ],
)
_add(
    "NonMaxSuppression",
    10,
    99,
    [np.abs(_f(1, 6, 4)), np.abs(_f(1, 2, 6)), Held(_i(3))],
    center_point_box=1,
)
_add("OneHot", 9, 99, [_i(0, 2, 1), Held(np.int64(4)), Held(np.array([0, 1], np.float32))])
_add("OneHot", 9, 99, [_i(0, 2, -1), Held(np.int64(4)), Held(np.array([0, 1], np.float32))], axis=0)
for m in ("constant", "reflect", "edge"):
    _add("Pad", 2, 10, [X], pads=[0, 0, 1, 1, 0, 0, 2, 1], mode=m)
    _add("Pad", 11, 99, [X, Held(_i(0, 0, 1, 1, 0, 0, 2, 1))], mode=m)
_add("Pad", 2, 10, [X], pads=[0, 0, 1, 1, 0, 0, 2, 1], value=3.0)
_add("Pad", 11, 99, [X, Held(_i(0, 0, 1, 1, 0, 0, 2, 1)), Held(np.float32(3))])
_add("Pad", 2, 10, [X], pads=[0, 0, -1, 0, 0, 0, 0, -1])
_add("Pad", 18, 99, [X, Held(_i(1, 2)), None, Held(_i(-1))])
_add("Pad", 19, 99, [X, Held(_i(0, 0, 1, 1, 0, 0, 2, 1))], mode="wrap")
_add("Range", 11, 99, [Held(np.float32(0)), Held(np.float32(5)), Held(np.float32(0.5))])
_add("Reshape", 5, 99, [X, Held(_i(0, -1))])
_add("Reshape", 5, 99, [X, _i(6, 20)])
_add("Reshape", 14, 99, [_f(0, 3), Held(_i(3, 0))], allowzero=1)
sc = np.array([1, 1, 2, 1.5], np.float32)
for m in ("nearest", "linear"):
    _add("Resize", 10, 10, [X, Held(sc)], mode=m)
    _add("Resize", 10, 10, [X, Held(np.array([1, 1, 0.6, 0.6], np.float32))], mode=m)
    _add("Upsample", 9, 9, [X, Held(sc)], mode=m)
    _add("Upsample", 7, 8, [X], mode=m, scales=[1.0, 1.0, 2.0, 1.5])
    _add("Resize", 10, 10, [X, sc], mode=m)
    _add("Upsample", 9, 9, [X, sc], mode=m)
    for ct in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
        _add(
            "Resize",
            11,
            99,
            [X, Held(np.zeros(0, np.float32)), Held(sc)],
            mode=m,
            coordinate_transformation_mode=ct,
        )
        _add(
            "Resize",
            11,
            99,
            [X, Held(np.zeros(0, np.float32)), Held(np.zeros(0, np.float32)), Held(_i(2, 3, 8, 7))],
            mode=m,
            coordinate_transformation_mode=ct,
        )
for ct in ("half_pixel", "align_corners", "asymmetric"):
    _add(
        "Resize",
        11,
        99,
        [X, Held(np.zeros(0, np.float32)), Held(sc)],
        mode="cubic",
        coordinate_transformation_mode=ct,
    )
_add(
    "Resize",
    11,
    99,
    [X, Held(np.array([0, 0, 0, 0, 1, 1, 0.8, 0.8], np.float32)), Held(sc)],
    mode="linear",
    coordinate_transformation_mode="tf_crop_and_resize",
)
_add(
    "Resize",
    11,
    12,
    [X, Held(np.zeros(0, np.float32)), Held(sc)],
    mode="nearest",
    coordinate_transformation_mode="tf_half_pixel_for_nn",
    nearest_mode="floor",
)
for nm in ("floor", "ceil", "round_prefer_ceil"):
    _add(
        "Resize",
        11,
        99,
        [X, Held(np.zeros(0, np.float32)), Held(sc)],
        mode="nearest",
        nearest_mode=nm,
    )
_add("Resize", 13, 99, [X, None, Held(sc)], mode="linear")
_add("ReverseSequence", 10, 99, [_f(4, 3, 2), _i(1, 2, 3)])
_add(
    "RoiAlign",
    10,
    99,
    [X, np.array([[0, 0, 3, 3], [1, 1, 4, 4]], np.float32), _i(0, 1)],
    output_height=2,
    output_width=2,
)
_add(
    "RoiAlign",
    16,
    99,
    [X, np.array([[0, 0, 3, 3], [1, 1, 4, 4]], np.float32), _i(0, 1)],
    output_height=2,
    output_width=2,
    coordinate_transformation_mode="output_half_pixel",
    mode="max",
)
_add("Scatter", 9, 10, [_f(3, 3), np.array([[0, 1, 0], [2, 0, 1]], np.int64), _f(2, 3)])
_add("ScatterElements", 11, 99, [_f(3, 3), np.array([[0, 1, 0], [2, 0, 1]], np.int64), _f(2, 3)])
_add("ScatterND", 11, 99, [_f(3, 3), _i(1).reshape(1, 1), _f(1, 3)])
_add(
    "ScatterElements",
    16,
    99,
    [_f(3, 3), np.array([[0, 1, 0], [2, 0, 1]], np.int64), _f(2, 3)],
    reduction="add",
)
_add("Slice", 1, 9, [X], starts=[0, 1], ends=[1, 3], axes=[0, 1])
_add("Slice", 1, 9, [X], starts=[1], ends=[1000], axes=[2])
_add("Slice", 1, 9, [X], starts=[0, -2], ends=[2, -1])
_add("Slice", 1, 9, [X], starts=[0], ends=[-1], axes=[3])
_add("Slice", 10, 99, [X, Held(_i(0, 1)), Held(_i(1, 3)), Held(_i(0, 1)), Held(_i(1, 2))])
_add("Slice", 11, 99, [X, _i(0), _i(2), Held(_i(-1))])
_add("Split", 2, 12, [X], 2, axis=1, split=[1, 2])
_add("Split", 2, 12, [X], 2, axis=2)
_add("Split", 13, 99, [X, Held(_i(1, 2))], 2, axis=1)
_add("Split", 13, 17, [X], 2, axis=2)
_add("Split", 18, 99, [X], 2, axis=1, num_outputs=2)
_add("Split", 2, 12, [X], 2)
x1 = _f(1, 3, 1, 5)
_add("Squeeze", 1, 12, [x1], axes=[0, 2])
_add("Squeeze", 1, 99, [x1])
_add("Squeeze", 11, 12, [x1], axes=[-2])
_add("Squeeze", 13, 99, [x1, Held(_i(0))])
_add("Unsqueeze", 1, 12, [X], axes=[0, 3])
_add("Unsqueeze", 11, 12, [X], axes=[-1])
_add("Unsqueeze", 13, 99, [X, Held(_i(0))])
_add("Unsqueeze", 13, 99, [X, _i(0)])
_add("Tile", 6, 99, [X, Held(_i(1, 2, 1, 2))])
_add("TopK", 1, 9, [X], 2, k=2)
_add("TopK", 1, 9, [X], 2, k=2, axis=1)
_add("TopK", 10, 99, [X, Held(_i(2))], 2)
_add("TopK", 10, 99, [X, _i(2)], 2, axis=1)
_add("TopK", 11, 99, [X, Held(_i(2))], 2, largest=0, sorted=1, axis=2)
_add("Transpose", 1, 99, [X])
_add("Transpose", 1, 99, [X], perm=[0, 2, 3, 1])
_add("Unique", 11, 99, [np.round(_f(12))], 4)
_add("Where", 9, 99, [X > 0, X, _f(5)])
_add("Compress", 9, 99, [X, np.array([1, 0, 1], bool)], axis=1)
_add("Pow", 7, 99, [np.abs(X), Held(np.float32(2))])
_add("Pow", 12, 99, [np.abs(X), Held(np.int64(2))])
_add("ThresholdedRelu", 10, 99, [X], alpha=0.4)
_add("BitShift", 11, 99, [np.array([1, 4], np.uint8), np.array([1, 2], np.uint8)], direction="LEFT")
_add(
    "MaxUnpool",
    9,
    99,
    [_f(1, 1, 2, 2), _i(0, 3, 8, 11).reshape(1, 1, 2, 2)],
    kernel_shape=[2, 2],
    strides=[2, 2],
)
_add("IsInf", 10, 99, [np.array([1, np.inf, -np.inf], np.float32)], detect_negative=0)
_add("Constant", 1, 99, [], value=nh.from_array(X))
_add("Constant", 12, 99, [], value_floats=[1.0, 2.0])
_add(
    "STFT",
    17,
    99,
    [_f(1, 32, 1), Held(np.int64(8)), Held(np.hanning(16).astype(np.float32)), Held(np.int64(16))],
)
_add("HannWindow", 17, 99, [Held(np.int64(8))])
_add(
    "MelWeightMatrix",
    17,
    99,
    [
        Held(np.int64(8)),
        Held(np.int64(16)),
        Held(np.int64(8000)),
        Held(np.float32(0)),
        Held(np.float32(4000)),
    ],
)
_add("CenterCropPad", 18, 99, [X, Held(_i(3, 4))], axes=[2, 3])
_add("Col2Im", 18, 99, [_f(1, 5, 5), Held(_i(5, 5)), Held(_i(1, 5))])
_add("AffineGrid", 20, 99, [_f(1, 2, 3), Held(_i(1, 2, 3, 4))])
_add("Bernoulli", 15, 99, [np.zeros((3,), np.float32)])
_add("Not", 1, 99, [X > 0])
_add("DeformConv", 19, 99, [_f(1, 1, 3, 3), Held(_f(1, 1, 2, 2)), _f(1, 8, 2, 2), Held(_f(1))])
