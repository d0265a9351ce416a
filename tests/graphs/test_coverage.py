"""The independent reader of coverage, held against files whose true coverage is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.graphs.nets import INT64, arrays, model, node, normal, to_ir, value

from edgeopt.core import Affine, Change, Decision
from edgeopt.graphs.coverage import Coverage, float_bytes, misplaced, read_coverage
from edgeopt.graphs.forms import FORMS, Placing
from edgeopt.graphs.outliers import split_outliers
from edgeopt.graphs.sites import find_sites
from edgeopt.graphs.transform import apply_decisions

BIAS = 48 * 4


def net() -> Any:
    """A table, two products (one a Gemm with a bias), a convolution, a GRU; 48 floats of bias."""
    return model(
        [
            node("Gather", ["table", "i"], ["e"]),
            node("MatMul", ["e", "fc1"], ["h"]),
            node("Gemm", ["h", "fc2", "bias"], ["g"], transB=1, alpha=0.5),
            node("Unsqueeze", ["g", "last"], ["u"]),
            node("Conv", ["u", "kernel"], ["c"]),
            node("Transpose", ["c"], ["t"], perm=[2, 0, 1]),
            node("GRU", ["t", "gates", "recurrence"], ["y"], hidden_size=16),
        ],
        [value("i", ["n"], INT64)],
        {"y": [1, 1, "n", 16]},
        {
            "table": normal(64, 64),
            "fc1": normal(64, 64, seed=1),
            "fc2": normal(48, 64, seed=2),
            "bias": normal(48, seed=3),
            "kernel": normal(32, 48, 1, seed=4),
            "gates": normal(1, 48, 32, seed=5),
            "recurrence": normal(1, 48, 16, seed=6),
            "last": np.array([2]),
        },
    )


FORM_OF = {
    8: {"product": "matmul-integer", "table": "gather"},
    4: {"product": "expanded", "table": "gather-nibbles"},
}


def quantized(
    made: Any,
    path: Path,
    forms: dict[str, str],
    bits: int,
    *,
    symmetric: bool = True,
    scale: str = "float32",
    unsigned: bool = False,
    skip: frozenset[str] = frozenset(),
    outliers: dict[str, list[int]] | None = None,
) -> Path:
    graph = to_ir(made)
    split_outliers(graph.graph, outliers or {})
    decisions = {}
    for site in find_sites(graph.graph)[0]:
        name = forms.get(site.kind, "folded")
        if site.name in skip:
            continue
        scheme = FORMS[name].scheme(site, bits, 32, symmetric, scale)
        decisions[site.name] = Decision(site.name, site.op, "rtn", name, scheme, "", 0, site.shape)
    apply_decisions(graph, decisions, Placing(unsigned=unsigned))
    ir.save(graph, path)
    return path


def total(made: Any) -> int:
    return sum(a.nbytes for a in arrays(made).values() if a.dtype.kind == "f")


def coverage(made: Any, path: Path) -> Coverage:
    return read_coverage(path, total(made))


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("scale", ["float32", "float16"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("bits", "product", "table"),
    [
        (8, "matmul-integer", "gather"),
        (8, "folded", "folded"),
        (8, "matmul-nbits", "gather"),
        (4, "expanded", "gather-nibbles"),
        (4, "matmul-nbits", "gather-nibbles"),
        (4, "folded", "folded"),
    ],
)
def test_everything_but_the_bias(
    tmp_path: Path, bits: int, product: str, table: str, symmetric: bool, scale: str, unsigned: bool
) -> None:
    symmetric = symmetric or bits == 8
    made = net()
    forms = {"product": product, "table": table}
    path = quantized(
        made,
        tmp_path / "q.onnx",
        forms,
        bits,
        symmetric=symmetric,
        scale=scale,
        unsigned=unsigned,
    )
    found = coverage(made, path)
    kept = {name for name, size in found.kept if size > 4}
    assert kept == {"bias"}
    assert BIAS <= found.kept_bytes <= BIAS + 16
    assert found.share == pytest.approx(1 - found.kept_bytes / total(made))
    assert found.codes >= 6


def test_tied_tables(tmp_path: Path) -> None:
    made = model(
        [
            node("Gather", ["w", "i"], ["h"]),
            node("Transpose", ["w"], ["t"], perm=[1, 0]),
            node("MatMul", ["h", "t"], ["y"]),
        ],
        [value("i", ["n"], INT64)],
        {"y": ["n", 64]},
        {"w": normal(64, 64)},
    )
    for bits, form in ((8, "matmul-integer"), (4, "expanded"), (4, "matmul-nbits"), (8, "folded")):
        for unsigned in (False, True):
            path = quantized(made, tmp_path / "q.onnx", {"tied": form}, bits, unsigned=unsigned)
            assert coverage(made, path).kept_bytes <= 4, (form, coverage(made, path).kept)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["table", "fc1", "fc2", "kernel", "gates", "recurrence"])
def test_a_tensor_left_in_float_is_found(tmp_path: Path, name: str, bits: int) -> None:
    made = net()
    whole = coverage(made, quantized(made, tmp_path / "a.onnx", FORM_OF[bits], bits))
    path = quantized(made, tmp_path / "b.onnx", FORM_OF[bits], bits, skip=frozenset({name}))
    found = coverage(made, path)
    assert dict(found.kept)[name] == arrays(made)[name].nbytes
    assert found.kept[0][0] == name, "the largest first"
    lost = arrays(made)[name].nbytes / total(made)
    assert found.share == pytest.approx(whole.share - lost, abs=5e-4)


def test_the_float_model_itself_has_no_coverage(tmp_path: Path) -> None:
    made = net()
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    assert float_bytes(path) == total(made)
    found = coverage(made, path)
    assert found.share == 0 and found.kept_bytes == total(made) and found.codes == 0


def test_outlier_columns_are_counted_as_kept(tmp_path: Path) -> None:
    made = net()
    path = quantized(made, tmp_path / "q.onnx", FORM_OF[8], 8, outliers={"e": [1, 5]})
    found = coverage(made, path)
    kept = dict(found.kept)
    assert kept["fc1.outliers"] == 2 * 64 * 2  # in float16
    assert found.kept_bytes >= BIAS + 2 * 64 * 2


def qdq(made: Any, names: set[str], *, activations: bool) -> Any:
    """The same graph with DequantizeLinear on some weights, as other tools write it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    nodes = []
    for tensor in list(copy.graph.initializer):
        if tensor.name not in names:
            continue
        w = numpy_helper.to_array(tensor)
        scale = np.abs(w).reshape(w.shape[0], -1).max(axis=1) / 127
        shape = [-1, *[1] * (w.ndim - 1)]
        q = np.rint(w / scale.reshape(shape)).astype(np.int8)
        name = tensor.name
        copy.graph.initializer.remove(tensor)
        copy.graph.initializer.extend(
            [
                numpy_helper.from_array(q, f"{name}_q"),
                numpy_helper.from_array(scale.astype(np.float32), f"{name}_s"),
                numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}_z"),
            ]
        )
        parts = [f"{name}_q", f"{name}_s", f"{name}_z"]
        nodes.append(node("DequantizeLinear", parts, [name], axis=0))
    if activations:
        copy.graph.initializer.extend(
            [
                numpy_helper.from_array(np.float32(0.02), "h_s"),
                numpy_helper.from_array(np.uint8(128), "h_z"),
            ]
        )
        gemm = next(n for n in copy.graph.node if n.op_type == "Gemm")
        at = list(copy.graph.node).index(gemm)
        gemm.input[0] = "h_dq"
        pair = [
            node("QuantizeLinear", ["h", "h_s", "h_z"], ["h_q"]),
            node("DequantizeLinear", ["h_q", "h_s", "h_z"], ["h_dq"]),
        ]
        body = [*copy.graph.node[:at], *pair, *copy.graph.node[at:]]
        del copy.graph.node[:]
        copy.graph.node.extend(body)
    body = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend([*nodes, *body])
    onnx.checker.check_model(copy)
    return copy


@pytest.mark.parametrize("activations", [False, True])
def test_files_with_quantize_and_dequantize_pairs(tmp_path: Path, activations: bool) -> None:
    made = net()
    path = tmp_path / "qdq.onnx"
    every = {"table", "fc1", "fc2", "kernel", "gates", "recurrence"}
    onnx.save(qdq(made, every, activations=activations), path)
    assert coverage(made, path).kept == (("bias", BIAS),)
    onnx.save(qdq(made, every - {"fc1", "kernel"}, activations=activations), path)
    assert {name for name, _ in coverage(made, path).kept} == {"fc1", "kernel", "bias"}


def test_operators_that_carry_quantized_operands(tmp_path: Path) -> None:
    """QLinearMatMul, as onnxruntime's QOperator format has it."""
    made = model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 32]}, {"y": ["n", 32]},
        {"w": normal(32, 32)},
    )  # fmt: skip
    scales = {name: np.float32(0.05) for name in ("xs", "ws", "ys")}
    zeros = {"xz": np.uint8(128), "wz": np.int8(0), "yz": np.uint8(128)}
    other = model(
        [
            node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
            node("QLinearMatMul", ["xq", "xs", "xz", "wq", "ws", "wz", "ys", "yz"], ["yq"]),
            node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
        ],
        {"x": ["n", 32]},
        {"y": ["n", 32]},
        {"wq": np.ones((32, 32), np.int8), **scales, **zeros},
    )
    path = tmp_path / "q.onnx"
    onnx.save(other, path)
    found = coverage(made, path)
    assert found.kept == () and found.share == 1.0


def test_a_float_weight_multiplied_onto_an_activation_is_no_scale(tmp_path: Path) -> None:
    """A gain behind an integer product scales numbers, not codes: it was kept in float."""
    made = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]),
         node("Mul", ["r", "gain"], ["y"])],
        {"x": [64, 64]},
        {"y": [64, 64]},
        {"w": normal(64, 64), "gain": normal(64, 64, seed=1)},
    )  # fmt: skip
    path = quantized(made, tmp_path / "q.onnx", FORM_OF[8], 8, skip=frozenset({"gain"}))
    assert dict(coverage(made, path).kept) == {"gain": 64 * 64 * 4}


def test_a_float_weight_multiplied_right_onto_a_product_is_no_scale(tmp_path: Path) -> None:
    made = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Mul", ["h", "gain"], ["y"])],
        {"x": [64, 64]},
        {"y": [64, 64]},
        {"w": normal(64, 64), "gain": normal(64, 64, seed=1)},
    )
    for form in ("matmul-integer", "folded"):
        path = quantized(made, tmp_path / "q.onnx", {"product": form}, 8, skip=frozenset({"gain"}))
        assert dict(coverage(made, path).kept) == {"gain": 64 * 64 * 4}, form
    rows = model(
        [node("Gather", ["w", "i"], ["h"]), node("Mul", ["h", "gain"], ["y"])],
        [value("i", [64], INT64)],
        {"y": [64, 64]},
        {"w": normal(64, 64), "gain": normal(64, 64, seed=1)},
    )
    for form in ("gather", "folded"):
        path = quantized(rows, tmp_path / "q.onnx", {"table": form}, 8, skip=frozenset({"gain"}))
        assert dict(coverage(rows, path).kept) == {"gain": 64 * 64 * 4}, form


def test_weights_in_constant_nodes_and_subgraphs_count(tmp_path: Path) -> None:
    w, v = normal(32, 32), normal(32, 32, seed=1)
    inner = numpy_helper.from_array(w, "inner")
    then = helper.make_graph(
        [node("MatMul", ["x", "inner"], ["a"])], "t", [], [value("a", ["n", 32])], [inner]
    )
    other = helper.make_graph(
        [
            node("Constant", [], ["c"], value=numpy_helper.from_array(v)),
            node("MatMul", ["x", "c"], ["b"]),
        ],
        "e",
        [],
        [value("b", ["n", 32])],
    )
    made = model(
        [node("If", ["flag"], ["y"], then_branch=then, else_branch=other)],
        [value("x", ["n", 32]), value("flag", [], TensorProto.BOOL)],
        {"y": ["n", 32]},
        {},
    )
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    assert float_bytes(path) == w.nbytes + v.nbytes
    found = read_coverage(path, w.nbytes + v.nbytes)
    assert {name for name, _ in found.kept} == {"inner", "c"} and found.share == 0


def test_subgraph_consumers_of_quantized_weights(tmp_path: Path) -> None:
    out = [value("a", ["n", 48])]
    then = helper.make_graph([node("MatMul", ["x", "w"], ["a"])], "t", [], out)
    other = helper.make_graph([node("Gemm", ["x", "w"], ["a"])], "e", [], out)
    made = model(
        [node("If", ["flag"], ["y"], then_branch=then, else_branch=other)],
        [value("x", ["n", 32]), value("flag", [], TensorProto.BOOL)],
        {"y": ["n", 48]},
        {"w": normal(32, 48)},
    )
    for bits, form in ((8, "matmul-integer"), (4, "expanded"), (4, "matmul-nbits"), (4, "folded")):
        path = quantized(made, tmp_path / "q.onnx", {"product": form}, bits)
        assert coverage(made, path).kept == (), form


def test_nothing_to_cover() -> None:
    assert Coverage(0, 0, (), 0).share == 0
    assert Coverage(100, 150, (), 0).share == 0, "more floats than the source is no cover at all"
    document = Coverage(100, 25, (("w", 25),), 3).to_json()
    assert document["share"] == 0.75 and document["kept"] == [{"tensor": "w", "nbytes": 25}]


#: Elements of the weights of :func:`net`, of its bias and of what its kinds of node may add.
WEIGHTS = 64 * 64 + 64 * 64 + 48 * 64 + 32 * 48 + 48 * 32 + 48 * 16


@pytest.mark.parametrize(
    ("bits", "product", "table"),
    [
        (8, "matmul-integer", "gather"),
        (8, "folded", "folded"),
        (8, "matmul-nbits", "gather"),
        (4, "expanded", "gather-nibbles"),
        (4, "matmul-nbits", "gather-nibbles"),
        (4, "folded", "folded"),
    ],
)
def test_bits_are_read_from_the_file(tmp_path: Path, bits: int, product: str, table: str) -> None:
    """In each form: as many codes as the net has weights, zero points not among them."""
    made = net()
    forms = {"product": product, "table": table}
    path = quantized(made, tmp_path / "q.onnx", forms, bits, symmetric=bits == 8)
    found = coverage(made, path)
    assert set(found.bits) == {str(bits), "float"}
    assert found.bits[str(bits)] == WEIGHTS
    assert 48 <= found.bits["float"] <= 52
    named = {name: array for name, array in arrays(made).items() if array.dtype.kind == "f"}
    scheme = Affine(bits, 32)
    said = [
        Change(Decision(name, "", "rtn", "", scheme, "", 0, array.shape), array.nbytes, 0, None)
        for name, array in named.items()
        if name != "bias"
    ]
    assert misplaced(found.tensors, said) == ()
    # a plan that says other bits, more weights, or a tensor that the file left in float
    other = Affine(12 - bits, 32)
    wrong = dataclasses.replace(
        said[0], decision=dataclasses.replace(said[0].decision, scheme=other)
    )
    assert len(misplaced(found.tensors, [wrong, *said[1:]])) == 1
    more = dataclasses.replace(said[0].decision, shape=(64, 65))
    assert len(misplaced(found.tensors, [dataclasses.replace(said[0], decision=more)])) == 1
    bias = Change(Decision("bias", "", "rtn", "", scheme, "", 0, (48,)), 192, 48, None)
    assert misplaced(found.tensors, [bias]) == (f"bias: no codes, said to be 48 in {bits}",)
