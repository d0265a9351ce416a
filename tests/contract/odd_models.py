"""Valid but odd ONNX models: small ones, each with one thing that most models do not have.

Written as ONNX's own text, with weights drawn from a seed; what plain ONNX Runtime says of them is
right. ``x`` is a batch of 32 features wherever nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

__all__ = ["ODD", "QUANTIZED", "Odd", "feeds_of"]

Array = np.ndarray[Any, Any]
Edit = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Odd:
    """Text of the graph (and functions), what weights it reads, what rows it takes."""

    name: str
    text: str
    weights: Mapping[str, tuple[int, ...] | Array] = field(default_factory=dict)
    opset: str = '"" : 17'
    ir: int = 8
    edit: Edit | None = None
    rows: Callable[[np.random.Generator, int], dict[str, Array]] | None = None
    functions: str = ""

    def __str__(self) -> str:
        return self.name

    def build(self) -> onnx.ModelProto:
        """The model; weights by name from the seed 0."""
        head = f"<ir_version: {self.ir}, opset_import: [{self.opset}]>\n"
        model = parser.parse_model(f"{head}{self.text}\n{self.functions}")
        rng = np.random.default_rng(0)
        for name, made in self.weights.items():
            model.graph.initializer.append(numpy_helper.from_array(_weight(made, rng), name))
        if self.edit is not None:
            self.edit(model)
        return model


def _weight(made: tuple[int, ...] | Array, rng: np.random.Generator) -> Array:
    if not isinstance(made, tuple):
        return made
    fan = made[0] if len(made) == 2 else int(np.prod(made[1:]))
    return (rng.standard_normal(made) / np.sqrt(max(fan, 1))).astype(np.float32)


def feeds_of(odd: Odd, seed: int = 1, count: int = 32) -> dict[str, Array]:
    """Rows for every input, stacked as ``.npz`` samples are."""
    rng = np.random.default_rng(seed)
    if odd.rows is not None:
        return odd.rows(rng, count)
    return {"x": rng.standard_normal((count, 32)).astype(np.float32)}


W = {"W": (32, 64), "V": (64, 8)}
_START = "h0 = MatMul(x, W)\n h = Relu(h0)\n"
_IO = "agraph (float[batch,32] x) => (float[batch,8] y)"


def _body(middle: str, end: str = "y = MatMul(g, V)") -> str:
    return f"{_IO} {{\n {_START} {middle}\n {end}\n}}"


def _draw(seed: int, *shape: int) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def _inside(op: str, names: Mapping[str, Array]) -> Edit:
    """Initializers of those names in every branch of the nodes of an operator."""

    def edit(model: onnx.ModelProto) -> None:
        found = 0
        for node in model.graph.node:
            if node.op_type != op:
                continue
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    for name, array in names.items():
                        scaled = (array * (1 + found)).astype(array.dtype)
                        attribute.g.initializer.append(numpy_helper.from_array(scaled, name))
                    found += 1

    return edit


_COND = "s = ReduceSum<keepdims=0>(x)\n zero = Constant<value_float=0.0>()\n c = Greater(s, zero)\n"


def _if(then: str, other: str, outs: str = "g", after: str = "") -> str:
    outer = ", ".join(f"float[m,n] {o}" for o in outs.split(", "))
    renamed = ", ".join(f"float[m,n] e_{o}" for o in outs.split(", "))
    return (
        f"{_COND} {outs} = If(c) <then_branch = then () => ({outer.replace(' g', ' t_g')})"
        f" {{ {then} }}, else_branch = other () => ({renamed}) {{ {other} }}>\n {after}"
    )


def _to_float16(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _to_double(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _to_bfloat16(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        made = helper.make_tensor(
            tensor.name, TensorProto.BFLOAT16, array.shape, array.reshape(-1).tolist()
        )
        tensor.CopyFrom(made)


def _inputs_too(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )


def _unsorted(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _training(model: onnx.ModelProto) -> None:
    info = model.training_info.add()
    info.initialization.name = "start"
    info.algorithm.name = "step"


def _sparse(model: onnx.ModelProto) -> None:
    dense = _draw(5, 64, 64)
    dense[np.abs(dense) < 0.1] = 0
    where = np.flatnonzero(dense)
    values = numpy_helper.from_array(dense.reshape(-1)[where], "S")
    indices = numpy_helper.from_array(where.astype(np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dense.shape))


def _sparse_constant(model: onnx.ModelProto) -> None:
    _sparse(model)
    node = next(n for n in model.graph.node if n.output[0] == "S")
    del node.attribute[:]
    sparse = model.graph.sparse_initializer[0]
    node.attribute.append(
        onnx.AttributeProto(
            name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse
        )
    )
    del model.graph.sparse_initializer[:]


def _constants(model: onnx.ModelProto) -> None:
    """Weights as Constant nodes in place of initializers."""
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in model.graph.initializer]
    nodes += list(model.graph.node)
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rename(names: Mapping[str, str]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = [names.get(n, n) for n in node.input]
            node.output[:] = [names.get(n, n) for n in node.output]
        for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
            value.name = names.get(value.name, value.name)

    return edit


def _ai_onnx(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.domain = "ai.onnx"


def _weight_is_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("W", TensorProto.FLOAT, [32, 64]))


def _drop_output_types(model: onnx.ModelProto) -> None:
    for value in model.graph.output:
        value.ClearField("type")


def _append(array: Array, name: str) -> Edit:
    return lambda model: model.graph.initializer.append(numpy_helper.from_array(array, name))


def _mask(*shape: int) -> Array:
    mask = np.zeros(shape, np.float32)
    mask[np.triu_indices(shape[0], 1)] = -np.inf
    return mask


def _table(bottom: float) -> Array:
    table = _draw(7, 64, 16)
    table[:, ::5] = bottom
    return table


def _ids(rng: np.random.Generator, count: int) -> dict[str, Array]:
    return {"ids": rng.integers(0, 64, (count, 12)).astype(np.int64)}


def _words(rng: np.random.Generator, count: int) -> dict[str, Array]:
    words = np.array([f"word{n}" for n in range(60)])
    return {"text": words[rng.integers(0, 60, (count, 6))]}


def _images(rng: np.random.Generator, count: int) -> dict[str, Array]:
    return {"x": rng.standard_normal((count, 3, 12, 12)).astype(np.float32)}


def _sequences(rng: np.random.Generator, count: int) -> dict[str, Array]:
    return {"x": rng.standard_normal((count, 6, 32)).astype(np.float32)}


def _rows_and_flag(rng: np.random.Generator, count: int) -> dict[str, Array]:
    return {
        "x": rng.standard_normal((count, 32)).astype(np.float32),
        "flag": np.arange(count) % 2 == 0,
    }


ODD: tuple[Odd, ...] = (
    # -- branches
    Odd("if_identity_outer", _body(_if("t_g = Identity(h)", "e_g = Sigmoid(h)")), W),
    Odd(
        "if_same_value_twice",
        _body(
            _if("t_g = Identity(h)\n k = Identity(h)", "e_g = Neg(h)\n e_k = Neg(h)", "g, k"),
            "a = Add(g, k)\n y = MatMul(a, V)",
        ),
        W,
    ),
    Odd(
        "if_one_value_listed_twice",
        _body(
            _if("k = Neg(h)\n t_g = Identity(k)", "e_k = Abs(h)\n e_g = Identity(e_k)", "g, k"),
            "a = Add(g, k)\n y = MatMul(a, V)",
        ),
        W,
    ),
    Odd(
        "if_weights_inside",
        _body(_if("t_g = MatMul(h, U)", "e_g = MatMul(h, U)")),
        W,
        edit=_inside("If", {"U": _draw(3, 64, 64)}),
    ),
    Odd(
        "if_weight_is_the_output",
        _body(
            _if("t_g = Identity(U)", "q = Neg(U)\n e_g = Identity(q)"),
            "a = MatMul(h, g)\n y = MatMul(a, V)",
        ),
        W,
        edit=_inside("If", {"U": _draw(3, 64, 64)}),
    ),
    Odd(
        "if_initializer_is_the_output",
        _body(
            _if("", "e_g = Neg(h)").replace("t_g)", "U)"),
            "b = ReduceMean<axes=[0], keepdims=1>(g)\n a = Add(h, b)\n y = MatMul(a, V)",
        ),
        W,
        edit=lambda m: (
            [
                n.attribute[0].g.initializer.append(numpy_helper.from_array(_draw(3, 64, 64), "U"))
                for n in m.graph.node
                if n.op_type == "If"
            ]
            and None
        ),
    ),
    Odd(
        "if_constants_of_one_name",
        _body(
            _if(
                "k = Constant<value_float=2.0>()\n t_g = Mul(h, k)",
                "k = Constant<value_float=3.0>()\n e_g = Mul(h, k)",
            )
        ),
        W,
    ),
    Odd(
        "if_same_inner_names",
        _body(
            _if(
                "k = MatMul(h, U)\n t_g = Relu(k)",
                "k = MatMul(h, U)\n e_g = Sigmoid(k)",
            )
        ),
        {**W, "U": (64, 64)},
    ),
    Odd(
        "if_nested",
        _body(
            _if(
                "t_g = If(c) <then_branch = deep () => (float[m,n] d) { d = Identity(h) },"
                " else_branch = deeper () => (float[m,n] f) { f = MatMul(h, U) }>",
                "e_g = If(c) <then_branch = deep () => (float[m,n] d) { d = MatMul(h, U) },"
                " else_branch = deeper () => (float[m,n] f) { f = Identity(h) }>",
            )
        ),
        {**W, "U": (64, 64)},
    ),
    Odd(
        "if_constant_condition",
        _body(
            "t = Constant<value = bool {1}>()\n g = If(t) <then_branch = a () => (float[m,n] p)"
            " { p = MatMul(h, U) }, else_branch = b () => (float[m,n] q) { q = Identity(h) }>"
        ),
        {**W, "U": (64, 64)},
    ),
    Odd(
        "if_of_an_input",
        "agraph (float[batch,32] x, bool[] flag) => (float[batch,8] y) {\n"
        f" {_START} g = If(flag) <then_branch = a () => (float[m,n] p) {{ p = MatMul(h, U) }},"
        " else_branch = b () => (float[m,n] q) { q = Identity(h) }>\n y = MatMul(g, V)\n}",
        {**W, "U": (64, 64)},
        rows=lambda rng, n: {**feeds_of(ODD[0], 1, n), "flag": np.arange(n) % 2 == 0},
    ),
    Odd(
        "if_different_shapes",
        _body(
            _if("t_g = MatMul(h, U)", "k = Concat<axis=1>(h, h)\n e_g = MatMul(k, T)"),
        ),
        {**W, "U": (64, 64), "T": (128, 64)},
    ),
    Odd(
        "if_output_of_the_graph",
        f"{_IO} {{ {_START} {_COND} y = If(c) <then_branch = a () => (float[m,n] p)"
        " { p = MatMul(h, V) }, else_branch = b () => (float[m,n] q)"
        " { r = MatMul(h, V)\n q = Neg(r) }> }",
        W,
    ),
    # -- loops
    Odd(
        "loop_outer_weight",
        _body(
            "n = Constant<value = int64 {3}>()\n t = Constant<value = bool {1}>()\n"
            " g = Loop(n, t, h) <body = step (int64 i, bool go, float[m,n] s)"
            " => (bool go_on, float[m,n] s_out)"
            " { go_on = Identity(go)\n k = MatMul(s, U)\n s_out = Tanh(k) }>"
        ),
        {**W, "U": (64, 64)},
    ),
    Odd(
        "loop_weight_inside",
        _body(
            "n = Constant<value = int64 {3}>()\n t = Constant<value = bool {1}>()\n"
            " g, all = Loop(n, t, h) <body = step (int64 i, bool go, float[m,n] s)"
            " => (bool go_on, float[m,n] s_out, float[m,n] each)"
            " { go_on = Identity(go)\n k = MatMul(s, U)\n s_out = Tanh(k)\n"
            " each = Identity(s_out) }>"
        ),
        W,
        edit=_inside("Loop", {"U": _draw(3, 64, 64)}),
    ),
    Odd(
        "loop_passes_state_on",
        _body(
            "n = Constant<value = int64 {3}>()\n t = Constant<value = bool {1}>()\n"
            " z = Identity(h)\n"
            " g, w = Loop(n, t, h, z) <body = step (int64 i, bool go, float[m,n] s, float[m,n] u)"
            " => (bool go_on, float[m,n] s_out, float[m,n] u_out)"
            " { go_on = Identity(go)\n s_out = Identity(u)\n u_out = Identity(s) }>"
        ),
        W,
    ),
    Odd(
        "scan_9",
        "agraph (float[6,batch,32] x) => (float[batch,8] y, float[6,batch,8] all) {\n"
        " z = Shape<start=1, end=2>(x)\n w = Constant<value = int64[1] {64}>()\n"
        " d = Concat<axis=0>(z, w)\n s0 = ConstantOfShape(d)\n"
        " last, all = Scan<num_scan_inputs=1, body = step (float[b,64] s, float[b,32] v)"
        " => (float[b,64] s_out, float[b,8] o)"
        " { p = MatMul(v, W)\n q = MatMul(s, U)\n r = Add(p, q)\n s_out = Tanh(r)\n"
        " o = MatMul(s_out, V) }>(s0, x)\n y = MatMul(last, V)\n}",
        {**W, "U": (64, 64)},
        rows=lambda rng, n: {"x": rng.standard_normal((n, 6, 32)).astype(np.float32)},
    ),
    Odd(
        "scan_8",
        "agraph (float[batch,6,32] x, float[batch,64] s0) => (float[batch,6,64] y) {\n"
        " last, y = Scan<num_scan_inputs=1, body = step (float[64] s, float[32] v)"
        " => (float[64] s_out, float[64] o)"
        " { p = MatMul(v, W)\n q = MatMul(s, U)\n r = Add(p, q)\n s_out = Tanh(r)\n"
        ' o = Identity(s_out) }>("", s0, x)\n}'.replace('("", s0, x)', "(none, s0, x)"),
        {"W": (32, 64), "U": (64, 64)},
        opset='"" : 8',
        edit=lambda m: m.graph.node[0].input.__setitem__(0, ""),
        rows=lambda rng, n: {
            "x": rng.standard_normal((n, 6, 32)).astype(np.float32),
            "s0": rng.standard_normal((n, 64)).astype(np.float32),
        },
    ),
    # -- infinities
    Odd(
        "causal_mask",
        "agraph (float[batch,16,32] x) => (float[batch,16,32] y) {\n"
        " q = MatMul(x, Q)\n k = MatMul(x, K)\n v = MatMul(x, V)\n"
        " t = Transpose<perm=[0,2,1]>(k)\n a = MatMul(q, t)\n m = Add(a, mask)\n"
        " p = Softmax<axis=-1>(m)\n y = MatMul(p, v)\n}",
        {"Q": (32, 32), "K": (32, 32), "V": (32, 32), "mask": _mask(32, 32)[:16, :16]},
        rows=lambda rng, n: {"x": rng.standard_normal((n, 16, 32)).astype(np.float32)},
    ),
    Odd(
        "large_mask_sliced",
        "agraph (float[batch,16,32] x) => (float[batch,16,32] y) {\n"
        " q = MatMul(x, Q)\n k = MatMul(x, K)\n v = MatMul(x, V)\n"
        " t = Transpose<perm=[0,2,1]>(k)\n a = MatMul(q, t)\n s = Shape<start=1,end=2>(x)\n"
        " z = Constant<value = int64[1] {0}>()\n o = Constant<value = int64[1] {0}>()\n"
        " r = Slice(mask, z, s, o)\n l = Constant<value = int64[1] {1}>()\n"
        " cut = Slice(r, z, s, l)\n m = Add(a, cut)\n p = Softmax<axis=-1>(m)\n"
        " y = MatMul(p, v)\n}",
        {"Q": (32, 32), "K": (32, 32), "V": (32, 32), "mask": _mask(64, 64)},
        rows=lambda rng, n: {"x": rng.standard_normal((n, 16, 32)).astype(np.float32)},
    ),
    Odd(
        "infinite_table",
        "agraph (int64[batch,12] ids) => (float[batch,12,16] y, float[batch,12,16] z) {\n"
        " y = Gather(table, ids)\n e = Gather(E, ids)\n z = MatMul(e, W)\n}",
        {"table": _table(-np.inf), "E": (64, 64), "W": (64, 16)},
        rows=_ids,
    ),
    Odd(
        "lowest_table",
        "agraph (int64[batch,12] ids) => (float[batch,12,16] y) {\n"
        " t = Gather(table, ids)\n e = Gather(E, ids)\n z = MatMul(e, W)\n a = Add(z, t)\n"
        " y = Softmax<axis=-1>(a)\n}",
        {"table": _table(float(np.finfo(np.float32).min)), "E": (64, 64), "W": (64, 16)},
        rows=_ids,
    ),
    Odd(
        "infinite_bias_of_products",
        _body("g = Relu(h)", "o = MatMul(g, V)\n y = Add(o, bias)"),
        {**W, "bias": np.array([0, -np.inf, 0, 1, np.inf, 0, 0, -np.inf], np.float32)},
    ),
    Odd(
        "infinite_bias_of_gemm",
        _body("g = Relu(h)", "y = Gemm(g, V, bias)"),
        {**W, "bias": np.array([0, -np.inf, 0, 1, 0, 0, 0, -np.inf], np.float32)},
    ),
    Odd(
        "infinite_weights_of_products",
        _body("g = Relu(h)"),
        {"W": (32, 64), "V": np.where(np.arange(8) == 3, np.inf, _draw(4, 64, 8)).astype("f")},
    ),
    Odd(
        "infinity_in_a_branch",
        _body(_if("t_g = Max(h, low)", "e_g = Max(h, low)")),
        W,
        edit=_inside("If", {"low": np.full((64,), -np.inf, np.float32)}),
    ),
    Odd(
        "infinite_clip",
        _body("low = Constant<value_float=-inf>()\n g = Clip(h, low, top)"),
        {**W, "top": np.array(np.inf, np.float32)},
    ),
    # -- functions
    Odd(
        "functions_nested",
        f"{_IO} {{ {_START} g = my.Outer(h, U)\n y = MatMul(g, V) }}",
        {**W, "U": (64, 64)},
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17, "my" : 1]> Outer (a, w) => (o)'
        " { p = my.Inner(a, w)\n q = my.Inner(p, w)\n o = Add(p, q) }\n"
        '<domain: "my", opset_import: ["" : 17]> Inner (a, w) => (o)'
        " { p = MatMul(a, w)\n o = Tanh(p) }",
    ),
    Odd(
        "function_with_attributes",
        f"{_IO} {{ {_START} k = my.Scaled<alpha=0.5>(h)\n g = my.Scaled<alpha=0.1>(k)\n"
        " y = MatMul(g, V) }",
        W,
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Scaled <alpha> (a) => (o)'
        " { o = LeakyRelu<alpha: float = @alpha>(a) }",
    ),
    Odd(
        "function_with_default_attribute",
        f"{_IO} {{ {_START} g = my.Scaled(h)\n y = MatMul(g, V) }}",
        W,
        opset='"" : 17, "my" : 1',
        ir=9,
        functions='<domain: "my", opset_import: ["" : 17]>'
        " Scaled <alpha: float = 0.3> (a) => (o)"
        " { o = LeakyRelu<alpha: float = @alpha>(a) }",
    ),
    Odd(
        "function_with_branches",
        f"{_IO} {{ {_START} {_COND} g = my.Either(c, h, U)\n y = MatMul(g, V) }}",
        {**W, "U": (64, 64)},
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Either (c, a, w) => (o)'
        " { o = If(c) <then_branch = t () => (float[m,n] p) { p = MatMul(a, w) },"
        " else_branch = e () => (float[m,n] q) { q = Identity(a) }> }",
    ),
    Odd(
        "function_called_in_a_branch",
        _body(_if("t_g = my.Layer(h, U)", "e_g = my.Layer(h, U2)")),
        {**W, "U": (64, 64), "U2": (64, 64)},
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Layer (a, w) => (o)'
        " { p = MatMul(a, w)\n o = Relu(p) }",
    ),
    Odd(
        "function_with_constants",
        f"{_IO} {{ {_START} k = my.Shift(h)\n g = my.Twice(k)\n y = MatMul(g, V) }}",
        W,
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Shift (a) => (o)'
        " { k = Constant<value_float=0.5>()\n o = Add(a, k) }\n"
        '<domain: "my", opset_import: ["" : 17]> Twice (a) => (o)'
        " { k = Constant<value = float {2.0}>()\n o = Mul(a, k) }",
    ),
    Odd(
        "function_unused_and_identity",
        f"{_IO} {{ {_START} g = my.Same(h)\n y = MatMul(g, V) }}",
        W,
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Same (a) => (o)'
        " { o = Identity(a) }\n"
        '<domain: "my", opset_import: ["" : 17]> Never (a) => (o) { o = Neg(a) }',
    ),
    Odd(
        "function_gives_the_output",
        f"{_IO} {{ {_START} y = my.Head(h, V) }}",
        W,
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Head (a, w) => (o) { o = MatMul(a, w) }',
    ),
    Odd(
        "function_missing_optional_input",
        f"{_IO} {{ {_START} g = my.Cut(h)\n y = MatMul(g, V) }}",
        W,
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Cut (a, low) => (o)'
        " { o = Clip(a, low) }",
    ),
    Odd(
        "function_at_another_opset",
        f"{_IO} {{ {_START} g = my.Soft(h)\n y = MatMul(g, V) }}",
        W,
        opset='"" : 18, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Soft (a) => (o)'
        " { p = Softmax<axis=-1>(a)\n o = Add(p, a) }",
    ),
    # -- inputs, outputs, names, nodes
    Odd("weights_are_inputs_too", _body("g = Identity(h)"), W, ir=3, edit=_inputs_too),
    Odd(
        "weights_are_inputs_too_opset_9",
        _body("g = Identity(h)"),
        W,
        opset='"" : 9',
        ir=4,
        edit=_inputs_too,
    ),
    Odd("nodes_not_sorted", _body("g = Tanh(h)"), W, edit=_unsorted),
    Odd("no_types_of_outputs", _body("g = Tanh(h)"), W, edit=_drop_output_types),
    Odd("domain_by_its_long_name", _body("g = Tanh(h)"), W, '"ai.onnx" : 17', edit=_ai_onnx),
    Odd("training_info", _body("g = Tanh(h)"), W, edit=_training),
    Odd("weights_as_constants", _body("g = Tanh(h)"), W, edit=_constants),
    Odd("a_weight_is_an_output", _body("g = Tanh(h)"), W, edit=_weight_is_output),
    Odd(
        "an_input_is_an_output",
        f"{_IO.replace('y)', 'y, float[batch,32] x2)')} {{ {_START} x2 = Identity(x)\n"
        " y = MatMul(h, V) }",
        W,
    ),
    Odd(
        "one_value_is_two_outputs",
        "agraph (float[batch,32] x) => (float[batch,8] y, float[batch,8] z, float[batch,64] h)"
        f" {{ {_START} y = MatMul(h, V)\n z = Identity(y) }}",
        W,
    ),
    Odd(
        "unused_input_and_weight",
        f"agraph (float[batch,32] x, float[batch,3] never) => (float[batch,8] y)"
        f" {{ {_START} y = MatMul(h, V) }}",
        {**W, "idle": (64, 64)},
        rows=lambda rng, n: {
            "x": rng.standard_normal((n, 32)).astype(np.float32),
            "never": np.zeros((n, 3), np.float32),
        },
    ),
    Odd(
        "strange_names",
        _body("g = Tanh(h)"),
        W,
        edit=_rename(
            {"x": "in put:0", "y": "été/日本", "W": "W/q", "V": "W/q/scale", "h": "W/q/q"}
        ),
        rows=lambda rng, n: {"in put:0": rng.standard_normal((n, 32)).astype(np.float32)},
    ),
    Odd(
        "left_out_inputs",
        _body("g = Clip(h, none, top)"),
        {**W, "top": np.array(1, np.float32)},
        edit=lambda m: (
            [n.input.__setitem__(1, "") for n in m.graph.node if n.op_type == "Clip"] and None
        ),
    ),
    Odd("dropout_12", _body("p = Constant<value_float=0.3>()\n g, m = Dropout(h, p)"), W),
    Odd(
        "no_batch",
        "agraph (float[32] x) => (float[8] y) { h = MatMul(x, W)\n g = Relu(h)\n"
        " y = MatMul(g, V) }",
        W,
    ),
    Odd(
        "zero_sized",
        _body(
            "t = Transpose(h)\n k = Gather(t, none)\n q = ReduceSum<keepdims=0>(k)\n g = Add(h, q)"
        ),
        W,
        edit=_append(np.zeros((0,), np.int64), "none"),
    ),
    # -- types
    Odd(
        "float16",
        _body("g = Tanh(h)").replace("float[", "float16["),
        W,
        edit=_to_float16,
        rows=lambda rng, n: {"x": rng.standard_normal((n, 32)).astype(np.float16)},
    ),
    Odd(
        "double",
        _body("g = Tanh(h)").replace("float[", "double["),
        W,
        edit=_to_double,
        rows=lambda rng, n: {"x": rng.standard_normal((n, 32))},
    ),
    Odd(
        "bfloat16_weights",
        f"{_IO} {{ w = Cast<to=1>(W)\n v = Cast<to=1>(V)\n h = MatMul(x, w)\n g = Relu(h)\n"
        " y = MatMul(g, v) }",
        W,
        edit=_to_bfloat16,
    ),
    Odd(
        "float16_weights_cast",
        f"{_IO} {{ w = Cast<to=1>(W)\n v = Cast<to=1>(V)\n h = MatMul(x, w)\n g = Relu(h)\n"
        " y = MatMul(g, v) }",
        W,
        edit=_to_float16,
    ),
    Odd("sparse", _body("g = MatMul(h, S)"), W, ir=8, edit=_sparse),
    Odd(
        "sequences",
        _body(
            "a, b = Split<axis=1>(h)\n s = SequenceConstruct(a, b)\n"
            " z = Constant<value = int64 {1}>()\n t = SequenceInsert(s, a, z)\n"
            " k = ConcatFromSequence<axis=1>(t)\n g = MatMul(k, T)",
        ),
        {**W, "T": (96, 64)},
    ),
    Odd(
        "optionals",
        _body("o = Optional(h)\n g = OptionalGetElement(o)"),
        W,
        opset='"" : 15',
    ),
    Odd(
        "sequence_is_the_output",
        "agraph (float[batch,32] x) => (float[batch,8] y, seq(float[batch,32]) parts) {"
        f" {_START} parts = SplitToSequence<axis=1>(h, n)\n y = MatMul(h, V) }}",
        {**W, "n": np.array(32, np.int64)},
    ),
    # -- other domains
    Odd(
        "contrib_operators",
        f"{_IO} {{ h0 = com.microsoft.FusedMatMul<alpha=0.5>(x, W)\n h = com.microsoft.Gelu(h0)\n"
        " y = MatMul(h, V) }",
        W,
        opset='"" : 17, "com.microsoft" : 1',
    ),
    Odd(
        "contrib_at_opset_11",
        f"{_IO} {{ h0 = com.microsoft.FusedMatMul<alpha=0.5>(x, W)\n h = com.microsoft.Gelu(h0)\n"
        " k = Softmax<axis=1>(h)\n y = MatMul(k, V) }",
        W,
        opset='"" : 11, "com.microsoft" : 1',
    ),
    Odd(
        "words",
        "agraph (string[batch,6] text) => (float[batch,6,8] y) {\n"
        ' i = ai.onnx.ml.LabelEncoder<keys_strings=["'
        + '","'.join(f"word{n}" for n in range(60))
        + '"], values_int64s=['
        + ",".join(str(n) for n in range(60))
        + "], default_int64=60>(text)\n"
        " e = Gather(E, i)\n h = MatMul(e, W)\n r = Relu(h)\n y = MatMul(r, V)\n}",
        {"E": (61, 32), **W},
        opset='"" : 17, "ai.onnx.ml" : 3',
        rows=_words,
    ),
    Odd(
        "labels_are_strings",
        "agraph (float[batch,32] x) => (string[batch] label, float[batch,8] y) {\n"
        f" {_START} y = MatMul(h, V)\n i = ArgMax<axis=1, keepdims=0>(y)\n"
        " label = ai.onnx.ml.LabelEncoder<keys_int64s=[0,1,2,3,4,5,6,7],"
        ' values_strings=["a","b","c","d","e","f","g","h"]>(i)\n}',
        W,
        opset='"" : 17, "ai.onnx.ml" : 3',
    ),
    Odd(
        "scaler_and_normalizer",
        f"{_IO} {{ s = ai.onnx.ml.Scaler<offset=[0.1], scale=[2.0]>(x)\n h = MatMul(s, W)\n"
        ' n = ai.onnx.ml.Normalizer<norm="L2">(h)\n y = MatMul(n, V) }',
        W,
        opset='"" : 17, "ai.onnx.ml" : 1',
    ),
    # -- several of these at once
    Odd(
        "if_lstm_inside",
        "agraph (float[batch,6,32] x) => (float[m,n,o] y) { t = "
        "Transpose<perm=[1,0,2]>(x) \n s = ReduceSum<keepdims=0>(x) \n zero = "
        "Constant<value_float=0.0>() \n c = Greater(s, zero) \n y = If(c) "
        "<then_branch = a () => (float[m,n,o] p) { q, p = LSTM<hidden_size=24>(t, "
        "Wl, Rl) }, else_branch = b () => (float[m,n,o] r) { u, r = "
        "LSTM<hidden_size=24>(t, Wl, Rl) }> }",
        {"Wl": (1, 96, 32), "Rl": (1, 96, 24)},
        rows=_sequences,
    ),
    Odd(
        "if_table_inside",
        "agraph (int64[batch,12] ids) => (float[m,n,o] y) { s = "
        "ReduceMax<keepdims=0>(ids) \n k = Constant<value_int=32>() \n c = "
        "Greater(s,k) \n y = If(c) <then_branch = a () => (float[m,n,o] p) { p = "
        "Gather(E, ids) }, else_branch = b () => (float[m,n,o] r) { q = Gather(E, "
        "ids) \n r = Neg(q) }> }",
        {"E": (64, 64)},
        rows=_ids,
    ),
    Odd(
        "loop_in_a_branch",
        "agraph (float[batch,32] x) => (float[batch,8] y) { \n h0 = MatMul(x, W) \n h"
        " = Relu(h0) \n s = ReduceSum<keepdims=0>(x) \n zero = "
        "Constant<value_float=0.0>() \n c = Greater(s, zero) \n g = If(c) "
        "<then_branch = then () => (float[m,n] t_g) { n = Constant<value = int64 "
        "{2}>() \n t = Constant<value = bool {1}>() \n t_g = Loop(n, t, h) <body = "
        "step (int64 i, bool go, float[m,n] s) => (bool go_on, float[m,n] s_out) { "
        "go_on = Identity(go) \n k = MatMul(s, U) \n s_out = Tanh(k) }> }, "
        "else_branch = other () => (float[m,n] e_g) { e_g = Identity(h) }> \n y = "
        "MatMul(g, V) \n }",
        {**W, "U": (64, 64)},
    ),
    Odd(
        "loop_returns_outer",
        "agraph (float[batch,32] x) => (float[batch,8] y) { \n h0 = MatMul(x, W) \n h"
        " = Relu(h0) \n n = Constant<value = int64 {2}>() \n t = Constant<value = "
        "bool {1}>() \n g, all = Loop(n, t, h) <body = step (int64 i, bool go, "
        "float[m,n] s) => (bool go_on, float[m,n] s_out, float[m,n] each) { go_on ="
        " Identity(t) \n s_out = Identity(h) \n each = Identity(U) }> \n y = MatMul(g,"
        " V) \n }",
        {**W, "U": (64, 64)},
    ),
    Odd(
        "sequence_map",
        "agraph (float[batch,32] x) => (float[batch,8] y) { \n h0 = MatMul(x, W) \n h"
        " = Relu(h0) \n s = SequenceConstruct(h, h) \n m = SequenceMap(s) <body = b "
        "(float[m,n] v) => (float[m,n] o) { o = MatMul(v, U) }> \n g0 = "
        "ConcatFromSequence<axis=1>(m) \n g = MatMul(g0, T) \n y = MatMul(g, V) \n }",
        {**W, "U": (64, 64), "T": (128, 64)},
    ),
    Odd(
        "optional_in_a_branch",
        "agraph (float[batch,32] x) => (float[batch,8] y) { \n h0 = MatMul(x, W) \n h"
        " = Relu(h0) \n o = Optional(h) \n e = OptionalHasElement(o) \n g = If(e) "
        "<then_branch = a () => (float[m,n] p) { p = OptionalGetElement(o) }, "
        "else_branch = b () => (float[m,n] q) { q = MatMul(h, U) }> \n y = MatMul(g,"
        " V) \n }",
        {**W, "U": (64, 64)},
        opset='"":18',
    ),
    Odd(
        "function_with_a_list",
        "agraph (float[batch,32] x) => (float[batch,8] y) { h0 = MatMul(x, W) \n h ="
        " Relu(h0) \n g = my.S<axes=[1]>(h) \n k = Mul(h, g) \n y = MatMul(k, V) }",
        W,
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> S <axes> (a) => (o) { o = '
        "ReduceMean<axes: ints = @axes, keepdims=1>(a) }",
    ),
    Odd(
        "constant_texts",
        "agraph (float[batch,32] x) => (float[batch,8] y, string[1] t) { h0 = "
        "MatMul(x, W) \n h = Relu(h0) \n y = MatMul(h, V) \n a = "
        'Constant<value_strings=["é"]>() \n b = Constant<value_string="b">() \n t = '
        "StringConcat(a,b) }",
        W,
        opset='"":20',
    ),
    Odd(
        "table_of_texts",
        "agraph (int64[batch,12] ids) => (float[batch,12,64] y, string[batch,12] w)"
        " { y = Gather(E, ids) \n w = Gather(S, ids) }",
        {"E": (64, 64), "S": np.array([f"word{n}" for n in range(64)], object)},
        rows=_ids,
    ),
    Odd(
        "infinite_answers",
        "agraph (float[batch,32] x) => (float[batch,8] y) { h0 = MatMul(x, W) \n h ="
        " Relu(h0) \n q = MatMul(h, V) \n i = Constant<value_float=-inf>() \n c = "
        "Greater(q, lim) \n y = Where(c, q, i) }",
        {**W, "lim": np.array([-9, 9, -9, 9, -9, -9, -9, -9], np.float32)},
    ),
    Odd(
        "infinities_among_biases",
        "agraph (int64[batch,12] ids, float[batch,12,64] f) => (float[batch,12,16] "
        "y) { t = Gather(B, ids) \n z = MatMul(f, W) \n y = Add(z, t) }",
        {"B": _table(-np.inf), "W": (64, 16)},
        rows=lambda rng, n: {
            **_ids(rng, n),
            "f": rng.standard_normal((n, 12, 64)).astype(np.float32),
        },
    ),
    Odd(
        "batch_normalization_8_by_position",
        "agraph (float[batch,3,12,12] x) => (float[b,c,h,w] y) { c = "
        "Conv<kernel_shape=[3,3]>(x,K) \n u = "
        "BatchNormalization<spatial=0>(c,s,b,m,v) \n y = "
        "Conv<kernel_shape=[3,3]>(u,L) }",
        {
            "K": (16, 3, 3, 3),
            "L": (16, 16, 3, 3),
            **{k: np.ones((16, 10, 10), np.float32) for k in "sbmv"},
        },
        opset='"":8',
        ir=3,
        rows=_images,
    ),
    # -- weights in other places
    Odd(
        "if_constant_is_the_output",
        _body(
            _if(
                "t_g = Constant<value = float[1,64] {"
                + ",".join("0.5" for _ in range(64))
                + "}>()",
                "k = Constant<value_float=3.0>()\n e_g = Mul(h, k)",
            ),
            "a = Add(h, g)\n y = MatMul(a, V)",
        ),
        W,
    ),
    Odd(
        "a_name_in_one_branch_is_a_weight_in_the_other",
        _body(
            _if("t_g = MatMul(h, U)", "U = Tanh(h)\n e_g = MatMul(U, X)"),
        ),
        {**W, "X": (64, 64)},
        edit=lambda m: (
            [
                n.attribute[0].g.initializer.append(numpy_helper.from_array(_draw(3, 64, 64), "U"))
                for n in m.graph.node
                if n.op_type == "If"
            ]
            and None
        ),
    ),
    Odd(
        "a_sequence_in_a_branch",
        _body(
            "t = SequenceConstruct(h, h)\n" + _COND + "o = Constant<value = int64 {1}>()\n"
            " g = If(c) <then_branch = a () => (float[m,n] p) { p = SequenceAt(t, o) },"
            " else_branch = b () => (float[m,n] q) { n = SequenceAt(t, o)\n q = MatMul(n, U) }>"
        ),
        {**W, "U": (64, 64)},
    ),
    Odd(
        "a_branch_returns_a_sequence",
        _body(
            "t = SequenceConstruct(h, h)\n" + _COND + "o = Constant<value = int64 {1}>()\n"
            " r = If(c) <then_branch = a () => (seq(float[m,n]) p) { p = Identity(t) },"
            " else_branch = b () => (seq(float[m,n]) q) { n = MatMul(h, U)\n"
            " q = SequenceConstruct(n, n) }>\n g = SequenceAt(r, o)"
        ),
        {**W, "U": (64, 64)},
    ),
    Odd(
        "sparse_constant",
        _body("S = Constant<value = float[1] {0.0}>()\n g = MatMul(h, S)"),
        W,
        ir=8,
        edit=_sparse_constant,
    ),
    Odd(
        "function_of_the_same_name_as_an_operator",
        f"{_IO} {{ {_START} g = my.Relu(h)\n y = MatMul(g, V) }}",
        W,
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Relu (a) => (o)'
        " { p = Neg(a)\n o = Tanh(p) }",
    ),
    Odd(
        "function_in_a_loop",
        _body(
            "n = Constant<value = int64 {3}>()\n t = Constant<value = bool {1}>()\n"
            " g = Loop(n, t, h) <body = step (int64 i, bool go, float[m,n] s)"
            " => (bool go_on, float[m,n] s_out)"
            " { go_on = Identity(go)\n s_out = my.Layer(s, U) }>"
        ),
        {**W, "U": (64, 64)},
        opset='"" : 17, "my" : 1',
        functions='<domain: "my", opset_import: ["" : 17]> Layer (a, w) => (o)'
        " { p = MatMul(a, w)\n o = Tanh(p) }",
    ),
    Odd(
        "weight_on_the_left",
        "agraph (float[batch,32,5] x) => (float[batch,8,5] y) { h = MatMul(A, x)\n"
        " r = Relu(h)\n y = MatMul(B, r) }",
        {"A": (64, 32), "B": (8, 64)},
        rows=lambda rng, n: {"x": rng.standard_normal((n, 32, 5)).astype(np.float32)},
    ),
    Odd(
        "einsum",
        _body('g = Einsum<equation="bi,ij->bj">(h, U)'),
        {**W, "U": (64, 64)},
    ),
    Odd(
        "one_weight_in_and_out_of_a_branch",
        _body(
            "k = MatMul(h, U)\n "
            + _if("t_g = MatMul(k, U)", "t = Transpose(U)\n e_g = MatMul(k, t)")
        ),
        {**W, "U": (64, 64)},
    ),
    Odd(
        "conv_norm_in_a_branch",
        "agraph (float[batch,3,12,12] x) => (float[batch,4] y) {\n"
        " c = Conv<kernel_shape=[3,3]>(x, K)\n"
        " s = ReduceSum<keepdims=0>(x)\n zero = Constant<value_float=0.0>()\n"
        " p = Greater(s, zero)\n g = If(p) <then_branch = t () => (float[a,b,h,w] o)"
        " { k = Conv<kernel_shape=[3,3]>(c, L)\n"
        " o = BatchNormalization(k, scale, shift, mean, var) },"
        " else_branch = e () => (float[a,b,h,w] q) { q = Conv<kernel_shape=[3,3]>(c, L) }>\n"
        " r = Relu(g)\n m = ReduceMean<axes=[2,3], keepdims=0>(r)\n y = MatMul(m, V)\n}",
        {
            "K": (16, 3, 3, 3),
            "L": (16, 16, 3, 3),
            "V": (16, 4),
            "scale": np.linspace(0.5, 1.5, 16).astype(np.float32),
            "shift": np.linspace(-1, 1, 16).astype(np.float32),
            "mean": np.linspace(-0.1, 0.1, 16).astype(np.float32),
            "var": np.linspace(0.5, 1.5, 16).astype(np.float32),
        },
        rows=_images,
    ),
    Odd(
        "group_normalization_18",
        "agraph (float[batch,3,12,12] x) => (float[batch,4] y) {\n"
        " c = Conv<kernel_shape=[3,3]>(x, K)\n"
        " g = GroupNormalization<num_groups=4>(c, scale, shift)\n"
        " r = Relu(g)\n m = GlobalAveragePool(r)\n f = Flatten(m)\n y = MatMul(f, V)\n}",
        {
            "K": (32, 3, 3, 3),
            "V": (32, 4),
            "scale": np.linspace(0.5, 1.5, 4).astype(np.float32),
            "shift": np.linspace(-1, 1, 4).astype(np.float32),
        },
        opset='"" : 18',
        rows=_images,
    ),
    Odd(
        "upsample_9_linear",
        "agraph (float[batch,3,12,12] x) => (float[batch,4] y) {\n"
        ' c = Conv<kernel_shape=[3,3]>(x, K)\n u = Upsample<mode="linear">(c, sizes)\n'
        " d = Conv<kernel_shape=[3,3], strides=[2,2]>(u, L)\n r = Relu(d)\n"
        " m = GlobalAveragePool(r)\n f = Flatten(m)\n y = MatMul(f, V)\n}",
        {
            "K": (16, 3, 3, 3),
            "L": (16, 16, 3, 3),
            "V": (16, 4),
            "sizes": np.array([1, 1, 2, 2], np.float32),
        },
        opset='"" : 9',
        rows=_images,
    ),
    Odd(
        "lstm_with_left_out_outputs",
        "agraph (float[6,batch,32] x) => (float[1,batch,24] y) {\n"
        " a, y = LSTM<hidden_size=24>(x, Wl, Rl)\n}",
        {"Wl": (1, 96, 32), "Rl": (1, 96, 24)},
        edit=lambda m: m.graph.node[0].output.__setitem__(0, ""),
        rows=lambda rng, n: {"x": rng.standard_normal((n, 6, 32)).astype(np.float32)},
    ),
    *(
        Odd(f"opset_{opset}", _body("g = Tanh(h)"), W, opset=f'"" : {opset}', ir=ir)
        for opset, ir in ((7, 3), (8, 3), (10, 5), (12, 7), (15, 8), (22, 10), (24, 11))
    ),
)


def _codes(*shape: int) -> Array:
    return np.random.default_rng(9).integers(-127, 128, shape).astype(np.int8)


_LINEAR = {"Wq": _codes(32, 8), "s": np.array(0.01, np.float32), "z": np.array(0, np.int8)}
_NBITS = {
    "B": np.random.default_rng(9).integers(0, 256, (8, 1, 16)).astype(np.uint8),
    "S": np.full((8,), 0.02, np.float32),
}

#: Models that are quantized already, in each of the ways that are in use, and an operator of each.
QUANTIZED: tuple[tuple[str, Odd], ...] = (
    (
        "DequantizeLinear",
        Odd("qdq", f"{_IO} {{ w = DequantizeLinear(Wq, s, z)\n y = MatMul(x, w) }}", _LINEAR),
    ),
    (
        "MatMulInteger",
        Odd(
            "dynamic",
            f"{_IO} {{ q, t, u = DynamicQuantizeLinear(x)\n i = MatMulInteger(q, Wq, u, z)\n"
            " f = Cast<to=1>(i)\n g = Mul(f, t)\n y = Mul(g, s) }",
            _LINEAR,
        ),
    ),
    (
        "QLinearMatMul",
        Odd(
            "integer_operators",
            f"{_IO} {{ q = QuantizeLinear(x, s, z)\n r = QLinearMatMul(q, s, z, Wq, s, z, s, z)\n"
            " y = DequantizeLinear(r, s, z) }",
            _LINEAR,
        ),
    ),
    (
        "MatMulNBits",
        Odd(
            "four_bits",
            f"{_IO} {{ y = com.microsoft.MatMulNBits<K=32, N=8, bits=4, block_size=32>(x, B, S) }}",
            _NBITS,
            opset='"" : 17, "com.microsoft" : 1',
        ),
    ),
    (
        "MatMulInteger",
        Odd(
            "dynamic_in_a_branch",
            f"{_IO} {{ total = ReduceSum<keepdims=0>(x)\n none = Constant<value_float=0.0>()\n"
            " c = Greater(total, none)\n y = If(c) <then_branch = a () => (float[m,n] p)"
            " { q, t, u = DynamicQuantizeLinear(x)\n i = MatMulInteger(q, Wq, u, z)\n"
            " f = Cast<to=1>(i)\n p = Mul(f, t) },"
            " else_branch = b () => (float[m,n] o) { w = Cast<to=1>(Wq)\n o = MatMul(x, w) }> }",
            _LINEAR,
        ),
    ),
    (
        "DequantizeLinear",
        Odd(
            "qdq_in_a_function",
            f"{_IO} {{ y = my.Linear(x, Wq, s, z) }}",
            _LINEAR,
            opset='"" : 17, "my" : 1',
            functions='<domain: "my", opset_import: ["" : 17]> Linear (a, q, s, z) => (o)'
            " { w = DequantizeLinear(q, s, z)\n o = MatMul(a, w) }",
        ),
    ),
)
