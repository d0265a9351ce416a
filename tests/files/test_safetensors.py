"""safetensors: the reference implementation opens ours, and we open theirs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgeopt.errors import EdgeoptError, FormatError, SourceError
from edgeopt.files import safetensors
from edgeopt.files.reading import FileBytes, numpy_dtype, plain_reader
from edgeopt.files.safetensors import TensorEntry

PLAIN = [
    *("bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32"),
    *("float64", "int64", "uint64", "complex64"),
]
NARROW = ["bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu"]


def entry(name: str, array: np.ndarray, pieces: int = 1) -> TensorEntry:
    raw = np.ascontiguousarray(array).tobytes()
    step = max(1, -(-len(raw) // pieces))
    return TensorEntry(
        name,
        array.dtype.name,
        array.shape,
        lambda: [raw[i : i + step] for i in range(0, len(raw), step)],
    )


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tensors=st.dictionaries(names, st.tuples(st.sampled_from(PLAIN + NARROW), shapes), max_size=6),
    metadata=st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
    seed=st.integers(0, 2**32 - 1),
    pieces=st.integers(1, 4),
)
def test_round_trip_through_both(tmp_path, tensors, metadata, seed, pieces):
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, (dtype, shape) in tensors.items():
        dtype = numpy_dtype(dtype)
        raw = rng.integers(0, 2 if dtype.kind == "b" else 256, (*shape, dtype.itemsize), np.uint8)
        arrays[name] = raw.reshape(-1).view(dtype).reshape(shape)
    path = tmp_path / "x.safetensors"
    entries = [entry(name, array, pieces) for name, array in arrays.items()]
    size = safetensors.write(path, entries, metadata)
    assert size == path.stat().st_size == safetensors.size(entries, metadata)
    # the same bytes, in whatever order the tensors come
    again = tmp_path / "y.safetensors"
    safetensors.write(again, entries[::-1], metadata)
    assert again.read_bytes() == path.read_bytes()
    # theirs
    with safe_open(path, "numpy") as theirs:
        assert set(theirs.keys()) == set(arrays)
        assert (theirs.metadata() or {}) == metadata
    # ours
    source = safetensors.describe(path)
    assert source.details["metadata"] == metadata
    assert {w.name for w in source.weights} == set(arrays)
    for weight in source.weights:
        expected = arrays[weight.name]
        assert weight.shape == expected.shape
        assert weight.nbytes == expected.nbytes
        assert weight.array().dtype == expected.dtype
        assert weight.array().tobytes() == expected.tobytes()
    assert source.details["header_bytes"] % 64 == 0


def test_values_are_the_reference_ones(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (3, 5)).astype(name) for name in PLAIN}
    safetensors.write(
        tmp_path / "ours.safetensors", [entry(n, a) for n, a in arrays.items()], {"format": "np"}
    )
    theirs = load_file(tmp_path / "ours.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
    save_file(arrays, tmp_path / "theirs.safetensors")
    for weight in safetensors.describe(tmp_path / "theirs.safetensors").weights:
        np.testing.assert_array_equal(weight.array(), arrays[weight.name])
        np.testing.assert_array_equal(weight.rows(1, 2), arrays[weight.name][1:2])


def test_torch_bfloat16_and_float8_read_back(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    values = torch.linspace(-3, 3, 24).reshape(4, 6)
    kinds = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}
    save_torch({n: values.to(t) for n, t in kinds.items()}, tmp_path / "x.safetensors")
    for weight in safetensors.describe(tmp_path / "x.safetensors").weights:
        assert weight.dtype == weight.name
        expected = values.to(kinds[weight.name]).float().numpy()
        np.testing.assert_array_equal(weight.rows(1, 3).astype(np.float32), expected[1:3])


@pytest.mark.parametrize(("dtype", "bits"), [("int4", 4), ("uint4", 4), ("int2", 2), ("uint2", 2)])
def test_packed_integers_unpack_from_any_row(tmp_path, dtype, bits):
    path = tmp_path / "packed"
    low, high = (-(1 << bits - 1), 1 << bits - 1) if dtype[0] == "i" else (0, 1 << bits)
    values = np.random.default_rng(1).integers(low, high, (5, 3))
    codes = (values & ((1 << bits) - 1)).reshape(-1)
    whole = sum(int(c) << (bits * i) for i, c in enumerate(codes))
    path.write_bytes(whole.to_bytes(-(-15 * bits // 8), "little"))
    read = plain_reader(FileBytes(path), 0, (5, 3), dtype)
    for lo in range(6):
        for hi in range(lo, 6):
            np.testing.assert_array_equal(read(lo, hi).astype(int), values[lo:hi])


def test_float4_and_float6(tmp_path):
    path = tmp_path / "x.safetensors"
    header = {
        "a": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]},
        "b": {"dtype": "F6_E2M3", "shape": [2, 4], "data_offsets": [2, 8]},
        "c": {"dtype": "F6_E3M2", "shape": [2, 2], "data_offsets": [8, 11]},
    }
    a, b, c = safetensors.describe(raw_file(path, header, bytes(range(11)))).weights
    expected = np.array([[0, 0], [1, 0]], np.uint8).view(ml_dtypes.float4_e2m1fn)
    assert a.dtype == "float4_e2m1fn"
    np.testing.assert_array_equal(a.array().astype(float), expected.astype(float))
    assert b.rows(1, 2).tolist() == [[5, 6, 7]]
    with pytest.raises(FormatError, match="end inside a byte"):
        c.rows(0, 1)


def test_integers_and_running_statistics_are_buffers(tmp_path):
    arrays = {
        "bn.running_mean": np.zeros(2, np.float32),
        "position_ids": np.arange(4),
        "w": np.ones((2, 2), np.float32),
    }
    save_file(arrays, tmp_path / "x.safetensors")
    roles = {w.name: w.role for w in safetensors.describe(tmp_path / "x.safetensors").weights}
    assert roles == {"bn.running_mean": "buffer", "position_ids": "buffer", "w": "weight"}


def test_scalar_and_row_limits(tmp_path):
    save_file({"s": np.array(3.5)}, tmp_path / "x.safetensors")
    (scalar,) = safetensors.describe(tmp_path / "x.safetensors").weights
    assert scalar.rows(0, 1).shape == ()
    assert scalar.array() == 3.5
    with pytest.raises(IndexError):
        scalar.rows(0, 0)
    with pytest.raises(IndexError):
        scalar.rows(0, 2)


def test_a_name_is_never_a_path(tmp_path):
    names = ["../../etc/passwd", "a\0b", "/abs", ""]
    entries = [entry(name, np.ones(1, np.float32)) for name in names]
    safetensors.write(tmp_path / "x.safetensors", entries, {})
    assert sorted(w.name for w in safetensors.describe(tmp_path / "x.safetensors").weights) == (
        sorted(names)
    )
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


# ---------------------------------------------------------------------------------------------
# files that break the format


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD = {
    "hole": ({"a": tensor(), "b": tensor(offsets=(8, 12))}, 12, "hole"),
    "hole at the start": ({"a": tensor(offsets=(4, 8))}, 8, "hole"),
    "overlap": ({"a": tensor(), "b": tensor(offsets=(2, 6))}, 6, "overlaps"),
    "trailing data": ({"a": tensor()}, 5, "belong to no tensor"),
    "short data": ({"a": tensor()}, 3, "cut short"),
    "size mismatch": ({"a": tensor(shape=(2,))}, 4, "takes 8 bytes"),
    "shape overflow": ({"a": tensor(shape=(2**32, 2**32))}, 4, "can be counted"),
    "overflow beside a zero": ({"a": tensor(shape=(0, 2**62), offsets=(0, 0))}, 0, "counted"),
    "huge number": ({"a": tensor(shape=(10**300,))}, 4, "can be counted"),
    "too many dimensions": ({"a": tensor(shape=(1,) * 65)}, 4, "65 dimensions"),
    "negative offset": ({"a": tensor(offsets=(-4, 0))}, 4, "data_offsets"),
    "negative dimension": ({"a": tensor(shape=(-1,))}, 4, "shape"),
    "bool as a size": ({"a": tensor(shape=(True,))}, 4, "shape"),
    "float as a size": ({"a": tensor(shape=(1.0,))}, 4, "shape"),
    "reversed offsets": ({"a": tensor(offsets=(4, 0))}, 4, "give it -4"),
    "unknown dtype": ({"a": tensor(dtype="Q4_K")}, 4, "Q4_K"),
    "dtype no string": ({"a": tensor(dtype=[])}, 4, "dtype"),
    "no object": ({"a": 1}, 0, "has no dtype"),
    "metadata no strings": ({"__metadata__": {"a": 1}}, 0, "strings to strings"),
    "metadata no object": ({"__metadata__": [1]}, 0, "strings to strings"),
    "duplicate tensor": (b'{"a":{},"a":{}}', 0, "'a' is there twice"),
    "duplicate inside": (b'{"a":{"dtype":"F32","dtype":"F32"}}', 0, "'dtype' is there twice"),
    "no JSON": (b"{nonsense}", 0, "no valid JSON"),
    "NaN": (b'{"a":NaN}', 0, "NaN is no JSON"),
    "no UTF-8": (b'{"\xff\xfe":1}', 0, "no valid JSON"),
    "deep nesting": (b'{"a":' + b"[" * 100_000, 0, "no valid JSON"),
    "a list": (b"[]", 0, "brace"),
    "endless digits": (b'{"a":' + b"9" * 10_000 + b"}", 0, "no valid JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_file(tmp_path, case):
    header, data, message = BAD[case]
    path = raw_file(tmp_path / "x.safetensors", header, bytes(data))
    with pytest.raises(FormatError, match=message) as caught:
        safetensors.describe(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 1000])
def test_header_length_is_held_against_limit_and_file(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(FormatError, match=f"header of {length} bytes"):
        safetensors.describe(path)


def small_file(path: Path) -> bytes:
    rng = np.random.default_rng(3)
    arrays = {
        "layer.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "layer.bias": rng.normal(size=3).astype(np.float16),
        "ids": np.arange(5),
    }
    save_file(arrays, path, {"format": "pt"})
    return path.read_bytes()


def test_truncated_anywhere(tmp_path, rewrite):
    path = tmp_path / "x.safetensors"
    whole = small_file(path)
    for end in range(1, len(whole)):
        rewrite(path, whole[:end])
        with pytest.raises(FormatError):
            safetensors.describe(path)


def test_flipped_bytes_never_escape_the_error_tree(tmp_path, rewrite):
    path = tmp_path / "x.safetensors"
    whole = small_file(path)
    rng = random.Random(5)
    opened = 0
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        rewrite(path, data)
        try:
            source = safetensors.describe(path)
        except EdgeoptError:
            continue
        opened += 1
        for weight in source.weights:
            weight.array()
    assert 0 < opened < 2000


def test_a_file_that_shrinks_or_changes_is_an_error_not_a_crash(tmp_path):
    path = tmp_path / "x.safetensors"
    small_file(path)
    mapped, fresh = (safetensors.describe(path).weights[-1] for _ in range(2))
    mapped.array()
    with path.open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(SourceError, match="shrank"):
        mapped.array()
    with pytest.raises(SourceError, match="changed since"):
        fresh.array()


# ---------------------------------------------------------------------------------------------
# shards


def sharded(folder: Path) -> Path:
    save_file({"a": np.ones(2, np.float32)}, folder / "m-1.safetensors", {"format": "pt"})
    save_file({"b": np.zeros(3, np.float32)}, folder / "m-2.safetensors")
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    return index


def test_shards(tmp_path):
    index = sharded(tmp_path)
    source = safetensors.describe(index)
    assert [w.name for w in source.weights] == ["a", "b"]
    assert [f.name for f in source.files] == [index.name, "m-1.safetensors", "m-2.safetensors"]
    assert source.nbytes == sum(f.stat().st_size for f in source.files)
    assert source.details["metadata"] == {"format": "pt"}
    np.testing.assert_array_equal(source.weights[0].array(), [1, 1])


@pytest.mark.parametrize(
    ("placed", "error", "message"),
    [
        ({"a": "m-3.safetensors"}, SourceError, "'m-3.safetensors', which is not beside"),
        ({"a": "m-2.safetensors"}, FormatError, "'a' in 'm-2.safetensors', which does not hold"),
        (
            {"a": "m-2.safetensors", "b": "m-1.safetensors"},
            FormatError,
            "'a' in 'm-2.safetensors', which does not hold",
        ),
        ({"a": "../m-1.safetensors"}, FormatError, "plain file name"),
        ({"a": "/etc/passwd"}, FormatError, "plain file name"),
        ({"a": ".."}, FormatError, "plain file name"),
        ({"a": "x\0y"}, FormatError, "plain file name"),
        ({"a": 3}, FormatError, "plain file name"),
        ({}, FormatError, "no weight_map"),
        (["a"], FormatError, "no weight_map"),
    ],
)
def test_broken_index(tmp_path, placed, error, message):
    index = sharded(tmp_path)
    index.write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(error, match=message):
        safetensors.describe(index)


def test_a_tensor_in_two_shards(tmp_path):
    index = sharded(tmp_path)
    save_file({"a": np.ones(2, np.float32), "b": np.ones(1)}, tmp_path / "m-2.safetensors")
    with pytest.raises(FormatError, match="'a' is in another shard"):
        safetensors.describe(index)


# ---------------------------------------------------------------------------------------------
# writing what cannot be written


@pytest.mark.parametrize("chunks", [[b"123"], [b"12345"], [], [b"1234", b"5"]])
def test_chunks_must_add_up(tmp_path, chunks):
    with pytest.raises(ValueError, match=r"float32\[1\] takes 4"):
        safetensors.write(tmp_path / "x", [TensorEntry("a", "float32", (1,), lambda: chunks)], {})


def test_names_and_dtypes_that_cannot_be_stored(tmp_path):
    one = entry("a", np.ones(1, np.float32))
    with pytest.raises(ValueError, match="'a' is taken"):
        safetensors.size([one, one], {})
    with pytest.raises(ValueError, match="__metadata__"):
        safetensors.size([entry("__metadata__", np.ones(1))], {})
    with pytest.raises(ValueError, match="no dtype int4"):
        safetensors.size([TensorEntry("a", "int4", (2,), lambda: [b"1"])], {})


def test_arrays_of_any_layout_are_written(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    narrow = np.ones((2, 2), ml_dtypes.bfloat16)
    entries = [
        TensorEntry("a", "float32", (3, 2), lambda: [array]),
        TensorEntry(
            "b", "bfloat16", (2, 2), lambda: [narrow[:1], memoryview(narrow[1:].tobytes())]
        ),
    ]
    safetensors.write(tmp_path / "x.safetensors", entries, {})
    a, b = safetensors.describe(tmp_path / "x.safetensors").weights
    np.testing.assert_array_equal(a.array(), array)
    np.testing.assert_array_equal(b.array().astype(float), 1)
