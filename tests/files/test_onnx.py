"""ONNX: the onnx package makes the models and reads them back; ours must see the same."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import EdgeoptError, FormatError, SourceError
from edgeopt.files import onnx as ours
from edgeopt.files.open import open_source

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

RNG = np.random.default_rng(3)


def value(name, shape=("batch", 4), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes=(), initializers=(), inputs=None, outputs=None, **options):
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["x", "w"], ["y"], name="first")],
        "main",
        inputs if inputs is not None else [value("x")],
        outputs if outputs is not None else [value("y", ("batch", "out"))],
        list(initializers),
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        producer_name="maker",
        producer_version="1.2",
        ir_version=10,
        **options,
    )


def tensor(name="w", shape=(4, 3)):
    return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)


def save(path: Path, made) -> Path:
    path.write_bytes(made.SerializeToString())
    return path


def test_what_a_model_says_about_itself(tmp_path):
    made = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Add", ["h", "b"], ["y"]),
            helper.make_node("Add", ["h", "b"], ["z"]),
        ],
        [tensor(), tensor("b", (3,)), tensor("spare", (5,))],
        inputs=[value("x", ("batch", None, 4, "seq")), value("b", (3,)), value("n", ())],
    )
    helper.set_model_props(made, {"key": "värde"})
    source = open_source(save(tmp_path / "x.onnx", made))
    assert source.kind == "onnx"
    # what an initializer provides is no input, though older files list it
    assert [str(spec) for spec in source.inputs] == ["x: float32[batch, ?, 4, seq]", "n: float32[]"]
    details = source.details
    assert [str(spec) for spec in details["outputs"]] == ["y: float32[batch, out]"]
    assert details["opset"] == {"": 21, "com.microsoft": 1}
    assert details["ir_version"] == 10
    assert details["producer"] == "maker 1.2"
    assert details["metadata"] == {"key": "värde"}
    assert details["graph"] == "main"
    assert details["ops"] == {"Add": 2, "MatMul": 1}
    assert details["nodes"] == 3
    assert details["unused"] == ("spare",)
    assert details["quantized"] is False
    assert source.nbytes == (tmp_path / "x.onnx").stat().st_size


NUMPY = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT64: np.int64,
    TensorProto.INT32: np.int32,
    TensorProto.INT16: np.int16,
    TensorProto.INT8: np.int8,
    TensorProto.UINT64: np.uint64,
    TensorProto.UINT32: np.uint32,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT8: np.uint8,
    TensorProto.BOOL: np.bool_,
    TensorProto.COMPLEX64: np.complex64,
    TensorProto.COMPLEX128: np.complex128,
    **{
        getattr(TensorProto, name): helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name))
        for name in (
            "BFLOAT16",
            "FLOAT8E4M3FN",
            "FLOAT8E4M3FNUZ",
            "FLOAT8E5M2",
            "FLOAT8E5M2FNUZ",
            "INT4",
            "UINT4",
            "FLOAT4E2M1",
        )
    },
}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", NUMPY, ids=TensorProto.DataType.Name)
def test_every_data_type_raw_and_typed(tmp_path, kind, raw):
    low = 0 if np.dtype(NUMPY[kind]).kind in "ub" or kind == TensorProto.UINT4 else -6
    values = RNG.integers(low, 7, (5, 3)).astype(NUMPY[kind])
    if raw:
        made = numpy_helper.from_array(values, "w")
    else:
        made = helper.make_tensor("w", kind, (5, 3), values.reshape(-1))
    assert made.HasField("raw_data") is raw
    source = open_source(save(tmp_path / "x.onnx", model(initializers=[made])))
    (weight,) = source.weights
    expected = numpy_helper.to_array(made)
    assert weight.dtype == helper.tensor_dtype_to_np_dtype(kind).name
    assert weight.shape == (5, 3)
    for lo, hi in ((0, 5), (1, 2), (3, 5), (2, 2)):
        got = weight.rows(lo, hi)
        assert got.dtype == expected.dtype
        assert got.astype(np.complex128).tolist() == expected[lo:hi].astype(np.complex128).tolist()


def test_extreme_varints(tmp_path):
    values = np.array([0, 1, -1, 127, 128, 2**63 - 1, -(2**63), 300], np.int64)
    made = helper.make_tensor("w", TensorProto.INT64, (8,), values)
    unsigned = helper.make_tensor("u", TensorProto.UINT64, (2,), [2**64 - 1, 2**63])
    source = open_source(save(tmp_path / "x.onnx", model(initializers=[made, unsigned])))
    assert source.weights[0].array().tolist() == values.tolist()
    assert source.weights[1].array().tolist() == [2**64 - 1, 2**63]


def field(number: int, wire: int, payload: bytes) -> bytes:
    return varint(number << 3 | wire) + (varint(len(payload)) if wire == 2 else b"") + payload


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def wrap(tensor_bytes: bytes = b"", *, node: bytes = b"", tail: bytes = b"") -> bytes:
    graph = field(1, 2, node or field(1, 2, b"w") + field(4, 2, b"Relu"))
    graph += field(5, 2, tensor_bytes) if tensor_bytes else b""
    return field(1, 0, varint(10)) + field(7, 2, graph) + tail


def test_unpacked_fields_as_old_writers_leave_them(tmp_path):
    body = field(1, 0, varint(3)) + field(2, 0, varint(1)) + field(8, 2, b"w")
    body += b"".join(field(4, 5, np.float32(v).tobytes()) for v in (1.5, -2.0, 3.25))
    ints = field(1, 2, varint(2)) + field(2, 0, varint(6)) + field(8, 2, b"i")
    ints += field(5, 0, varint(300)) + field(5, 0, varint(2**64 - 2))
    for data, expected in ((body, [1.5, -2.0, 3.25]), (ints, [300, -2])):
        path = tmp_path / "x.onnx"
        path.write_bytes(wrap(data))
        (weight,) = ours.describe(path).weights
        assert weight.array().tolist() == expected
        theirs = onnx.load_model_from_string(wrap(data)).graph.initializer[0]
        assert numpy_helper.to_array(theirs).tolist() == expected


def test_strings_scalars_and_empty_tensors(tmp_path):
    made = [
        helper.make_tensor("s", TensorProto.STRING, (2,), [b"ab", b"c"]),
        numpy_helper.from_array(np.float32(2.5), "scalar"),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "none"),
    ]
    source = open_source(save(tmp_path / "x.onnx", model(initializers=made)))
    assert [w.name for w in source.weights] == ["scalar", "none"]
    assert source.weights[0].array() == 2.5
    assert source.weights[1].array().shape == (0, 4)
    (text,) = source.extras
    assert (text.dtype, text.nbytes, text.role) == ("string", 3, "other")
    assert text.array().tolist() == [b"ab", b"c"]


def test_constants_subgraphs_functions_and_sparse_tensors(tmp_path):
    branch = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "inner"], ["i"]),
            helper.make_node("Add", ["i", "outer_only_here"], ["then_out"]),
        ],
        "then",
        [],
        [value("then_out")],
        [tensor("inner", (4, 4)), tensor("inner_spare", (2,))],
    )
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["else_out"], value=tensor("ignored", (1, 4)))],
        "else",
        [],
        [value("else_out")],
    )
    function = helper.make_function(
        "local",
        "F",
        ["a"],
        ["c"],
        [helper.make_node("Constant", [], ["c"], value=tensor("t", (6,)))],
        [helper.make_opsetid("", 21)],
    )
    indices = numpy_helper.from_array(np.array([1, 5]), "")
    sparse = helper.make_sparse_tensor(tensor("sp", (2,)), indices, [3, 3])
    made = model(
        [
            helper.make_node("Constant", [], ["k"], value=tensor("", (4, 4))),
            helper.make_node("MatMul", ["x", "k"], ["h"]),
            helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=other),
        ],
        [tensor("outer_only_here", (4,)), tensor("out_direct", (2,))],
        outputs=[value("y"), value("out_direct", (2,))],
        functions=[function],
    )
    made.graph.sparse_initializer.append(sparse)
    source = open_source(save(tmp_path / "x.onnx", made))
    by_name = {w.name: w for w in source.weights}
    assert set(by_name) == {
        *("c", "else_out", "inner", "inner_spare", "k", "out_direct", "outer_only_here"),
        *("sp", "sp.indices"),
    }
    assert sorted(source.details["constants"]) == ["c", "else_out", "k"]
    assert sorted(source.details["unused"]) == ["inner_spare", "sp"]
    assert source.details["ops"]["MatMul"] == 2
    assert source.details["ops"]["Constant"] == 3
    expected = numpy_helper.to_array(made.graph.node[0].attribute[0].t)
    np.testing.assert_array_equal(by_name["k"].array(), expected)
    assert by_name["sp.indices"].role == "buffer"


def test_quantized_models_say_so(tmp_path):
    made = model(
        [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("MatMulNBits", ["x", "p", "s"], ["z"], domain="com.microsoft"),
        ]
    )
    details = open_source(save(tmp_path / "x.onnx", made)).details
    assert details["quantized"] is True
    assert details["quantized_ops"] == {"DequantizeLinear": 1, "MatMulNBits": 1}


def test_values_that_are_no_tensors(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, None)
    source = open_source(save(tmp_path / "x.onnx", model(inputs=[sequence, value("d", None)])))
    assert [(s.name, s.dtype, s.shape) for s in source.inputs] == [
        ("q", "sequence", ()),
        ("d", "float32", ()),
    ]


# ---------------------------------------------------------------------------------------------
# external data


def external(folder: Path, location: str = "x.data") -> Path:
    made = model(initializers=[tensor("w", (40, 30)), tensor("v", (7,))])
    path = folder / "x.onnx"
    onnx.save(made, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def test_external_data(tmp_path):
    path = external(tmp_path)
    source = open_source(path)
    assert source.files == (path, tmp_path / "x.data")
    size = (tmp_path / "x.data").stat().st_size
    assert source.details["external"] == {"x.data": size}
    assert source.nbytes == path.stat().st_size + size
    theirs = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for weight in source.weights:
        np.testing.assert_array_equal(weight.array(), theirs[weight.name])
        np.testing.assert_array_equal(weight.rows(2, 5), theirs[weight.name][2:5])


def test_external_data_in_a_folder_below(tmp_path):
    (tmp_path / "data").mkdir()
    path = external(tmp_path)
    made = onnx.load(path, load_external_data=False)
    (tmp_path / "x.data").rename(tmp_path / "data" / "x.data")
    for item in made.graph.initializer:
        for entry in item.external_data:
            if entry.key == "location":
                entry.value = "data/x.data"
    save(path, made)
    assert open_source(path).weights[0].array().shape == (40, 30)
    (tmp_path / "data").rename(tmp_path / "real")
    (tmp_path / "data").symlink_to("real")
    with pytest.raises(FormatError, match="symbolic link"):
        open_source(path)


def with_entry(path: Path, **entries: str) -> None:
    made = onnx.load(path, load_external_data=False)
    item = made.graph.initializer[0]
    kept = {entry.key: entry.value for entry in item.external_data} | entries
    del item.external_data[:]
    for key, text in kept.items():
        item.external_data.add(key=key, value=text)
    save(path, made)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../x.data"}, "outside the model's folder"),
        ({"location": "a/../../x.data"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": ""}, "no file name"),
        ({"location": "a\0b"}, "no file name"),
        ({"location": "..\\x.data"}, "no file name"),
        ({"location": "."}, "no regular file"),
        ({"location": "missing"}, "is not there"),
        ({"location": "n" * 300}, "is not there"),
        ({"location": "soft"}, "symbolic link"),
        ({"location": "hard"}, "2 hard links"),
        ({"location": "line\nbreak"}, "is not there"),
        ({"location": "fifo"}, "no regular file"),
        ({"location": "folder"}, "no regular file"),
        ({"offset": "-1"}, "offset is '-1', no byte count"),
        ({"offset": "0x10"}, "no byte count"),
        ({"offset": "1e3"}, "no byte count"),
        ({"offset": ""}, "no byte count"),
        ({"offset": "٣"}, "no byte count"),
        ({"offset": "9" * 19}, "past the end"),
        ({"offset": "9" * 30}, "no byte count"),
        ({"offset": "4000"}, "past the end"),
        ({"length": "12"}, "takes 4800 bytes, external data has 12"),
        ({"length": "-4800"}, "no byte count"),
        ({"length": str(2**64 + 4800)}, "no byte count"),
    ],
)
def test_hostile_external_data(tmp_path, entries, message):
    path = external(tmp_path)
    (tmp_path / "soft").symlink_to("x.data")
    (tmp_path / "other").write_bytes(bytes(5000))
    os.link(tmp_path / "other", tmp_path / "hard")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with_entry(path, **entries)
    with pytest.raises(FormatError, match=message) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_external_data_that_shrinks(tmp_path):
    path = external(tmp_path)
    source = open_source(path)
    with (tmp_path / "x.data").open("r+b") as stream:
        stream.truncate(10)
    with pytest.raises(SourceError, match="changed since"):
        source.weights[0].array()


# ---------------------------------------------------------------------------------------------
# files that break the format


def nested(depth: int) -> bytes:
    """A graph in an If in a graph in an If ..."""
    graph = field(2, 2, b"g")
    for _ in range(depth):
        graph = field(
            1, 2, field(4, 2, b"If") + field(5, 2, field(1, 2, b"t") + field(6, 2, graph))
        )
    return field(1, 0, varint(10)) + field(7, 2, graph)


def dims(*sizes: int, kind: int = 1, rest: bytes = b"") -> bytes:
    body = b"".join(field(1, 0, varint(size % 2**64)) for size in sizes)
    return wrap(body + field(2, 0, varint(kind)) + field(8, 2, b"w") + rest)


BAD = {
    "no graph": (field(1, 0, varint(10)) + field(2, 2, b"p"), "0 graphs"),
    "two graphs": (wrap() + field(7, 2, b""), "2 graphs"),
    "graphs 1000 deep": (nested(1000), "nested more than 32"),
    "a length past the end": (wrap(tail=b"\x72\xff\xff\xff\x7f"), "are left"),
    "a length of 2^63": (wrap(tail=b"\x72" + varint(2**63)), "are left"),
    "an endless number": (wrap(tail=b"\x08" + b"\xff" * 20), "more than 10 bytes"),
    "ends inside a number": (wrap(tail=b"\x08\xff"), "ends inside a number"),
    "field 0": (wrap(tail=b"\x00\x00"), "field number 0"),
    "a group": (wrap(tail=b"\x0b"), "wire type 3"),
    "wire type 7": (wrap(tail=b"\x0f"), "wire type 7"),
    "model field of another type": (wrap(tail=field(7, 0, varint(1))), "wire type 0"),
    "short raw data": (dims(4, rest=field(9, 2, bytes(15))), "takes 16 bytes, has 15"),
    "long raw data": (dims(4, rest=field(9, 2, bytes(17))), "takes 16 bytes, has 17"),
    "negative dimension": (dims(-1, rest=field(9, 2, b"")), "negative dimension"),
    "dims wrap": (dims(2**32, 2**32, rest=field(9, 2, b"")), "can be counted"),
    "dims wrap beside zero": (dims(0, 2**62, rest=field(9, 2, b"")), "can be counted"),
    "65 dimensions": (dims(*(1,) * 65, rest=field(9, 2, bytes(4))), "65 dimensions"),
    "packed dimensions": (
        wrap(field(1, 2, b"\1" * 10_000) + field(2, 0, b"\1")),
        "too many dimensions",
    ),
    "unknown data type": (dims(1, kind=99), "data type 99"),
    "no data type": (dims(1, kind=0), "data type 0"),
    "no data": (dims(4), "4 values, in 0 bytes"),
    "data in another field": (dims(4, rest=field(7, 2, bytes(16))), "in 0 bytes"),
    "short typed data": (dims(4, rest=field(4, 2, bytes(12))), "in 12 bytes"),
    "few numbers": (dims(4, kind=7, rest=field(7, 2, bytes(3))), "in 3 bytes"),
    "typed field of another type": (
        dims(1, rest=field(4, 0, varint(1))),
        "field 4 has wire type 0",
    ),
    "strings that are not there": (dims(2, kind=8), "0 strings"),
    "no name": (wrap(field(2, 0, varint(1)) + field(9, 2, bytes(4))), "without a name"),
    "name twice": (
        field(1, 0, b"\1")
        + field(7, 2, field(5, 2, field(1, 0, b"\0") + field(2, 0, b"\1") + field(8, 2, b"w")) * 2),
        "there twice",
    ),
    "sparse without values": (
        field(1, 0, b"\1") + field(7, 2, field(15, 2, b"")),
        "without values or indices",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_file(tmp_path, case):
    data, message = BAD[case]
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(FormatError, match=message) as caught:
        ours.describe(path)
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert seconds < 1
    assert peak < 64 << 20


def test_too_few_numbers_are_seen_when_read(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(dims(2, kind=7, rest=field(7, 2, varint(2**63))))
    (weight,) = ours.describe(path).weights
    with pytest.raises(FormatError, match="has 1 values, 2 were expected"):
        weight.array()


def whole_model() -> bytes:
    made = model(
        [
            helper.make_node("Constant", [], ["k"], value=tensor("", (4, 4))),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        [tensor(), helper.make_tensor("i", TensorProto.INT64, (3,), [1, 2, 3])],
    )
    return made.SerializeToString()


def test_truncated_at_every_byte(tmp_path, rewrite):
    path = tmp_path / "x.onnx"
    whole = whole_model()
    for end in range(8, len(whole)):
        rewrite(path, whole[:end])
        try:
            source = ours.describe(path)
        except FormatError:
            continue
        # The model's last fields can be lost without a trace: a protobuf does not know its length.
        onnx.load_model_from_string(whole[:end])
        assert len(source.weights) == 3


def test_a_truncated_model_is_a_broken_file_not_an_unknown_one(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(whole_model()[:200])
    with pytest.raises(FormatError, match="cut short"):
        open_source(path)


def test_flipped_bytes_never_escape_the_error_tree(tmp_path, rewrite):
    path = tmp_path / "x.onnx"
    whole = whole_model()
    rng = random.Random(17)
    opened = 0
    for _ in range(2500):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        rewrite(path, data)
        try:
            source = ours.describe(path)
            opened += 1
            for weight in source.weights:
                weight.array()
        except EdgeoptError:
            continue
    assert 0 < opened < 2500


# ---------------------------------------------------------------------------------------------
# what an exporter writes


def test_an_exported_model(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 2),
    ).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        net, (torch.zeros(1, 3, 4, 4),), path, dynamo=True, external_data=True, verbose=False
    )
    source = open_source(path)
    made = onnx.load(path)
    theirs = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "Constant":
            theirs[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    assert {w.name for w in source.weights} == set(theirs)
    for weight in source.weights:
        np.testing.assert_array_equal(weight.array(), theirs[weight.name])
    assert [spec.name for spec in source.inputs] == [i.name for i in made.graph.input]


def test_branches_and_functions_may_use_one_name_for_different_tensors(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
    agraph (float[2,3] x, bool c) => (float[2,3] y) {
      b = If(c) <then_branch = t () => (float[2,3] p) { k = Constant<value = float {1.0}>()
        p = Mul(x, k) }, else_branch = e () => (float[2,3] q)
        { k = Constant<value = float[2] {1.0, 2.0}>()  q = Identity(x) }>
      y = my.F(b)
    }
    <domain: "my", opset_import: ["" : 17]> F (a) => (o)
    { k = Constant<value = float {3.0}>()  o = Add(a, k) }"""
    model = onnx.parser.parse_model(text)
    for attribute in model.graph.node[0].attribute:
        attribute.g.initializer.append(numpy_helper.from_array(np.ones((4, 4), "f"), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    source = open_source(tmp_path / "m.onnx")
    names = sorted(weight.name for weight in source.weights)
    assert names == ["k", "k#2", "k#3", "w", "w#2"]
    assert sorted(w.nbytes for w in source.weights) == [4, 4, 8, 64, 64]
