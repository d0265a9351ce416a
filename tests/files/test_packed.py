"""The packed format: what its reader refuses, and what is read from files of other kinds."""

from __future__ import annotations

import gc
import json
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from edgeopt.core import Affine, Source, Weight
from edgeopt.errors import FormatError, SourceError
from edgeopt.files import packed, safetensors
from edgeopt.files.open import open_source
from edgeopt.files.packed import PackedHeader, PackedLayout
from edgeopt.files.weights import Weights, load_weights
from edgeopt.numerics.affine import dequantize
from edgeopt.numerics.methods import METHODS


def packed_file(path, shape=(40, 96), scheme=None, dtype="float32", **header):
    """One tensor ``w``, packed by hand, and a plain one."""
    scheme = scheme or Affine(4, 32, symmetric=False, scale="bfloat16")
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight = Weight("w", shape, dtype, w.nbytes, lambda lo, hi: w[lo:hi])
    layout = PackedLayout.of(weight, scheme)
    matrix = w.reshape(packed.matrix_shape(shape))
    codes = METHODS["rtn"](
        matrix,
        bits=scheme.bits,
        block=scheme.block,
        symmetric=scheme.symmetric,
        scale_dtype=scheme.scale,
    )
    plain = safetensors.TensorEntry("bias", "float32", (3,))
    metadata = PackedHeader({"w": layout}, **header).metadata()
    with safetensors.filling(path, [*layout.entries, plain], metadata) as put:
        for entry, part in zip(layout.entries, layout.pack(codes), strict=True):
            put(entry.name, part)
        put("bias", np.float32([1, 2, 3]))
    return dequantize(codes, scheme.block, matrix.shape[1]).reshape(shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [None, 32])
@pytest.mark.parametrize("shape", [(6, 33), (5, 3, 3, 3), (1, 64)])
def test_rows_are_dequantized_as_they_are_read(tmp_path, bits, symmetric, block, shape):
    path = tmp_path / "p.safetensors"
    scheme = Affine(bits, block, symmetric=symmetric, scale="float16")
    want = packed_file(path, shape, scheme)
    (weight,) = (w for w in packed.unpack(open_source(path)) if w.name == "w")
    assert (weight.shape, weight.dtype) == (shape, "float32")
    np.testing.assert_array_equal(weight.array(), want)
    for lo in range(shape[0]):
        np.testing.assert_array_equal(weight.rows(lo, lo + 1), want[lo : lo + 1])
    assert weight.rows(0, 0).shape == (0, *shape[1:])


def test_header_survives(tmp_path):
    path = tmp_path / "p.safetensors"
    packed_file(path, tied={"v": "w"}, source_sha256="ab", plan="cd", versions={"edgeopt": "1"})
    source = open_source(path)
    assert packed.is_packed(source.details["metadata"])
    header = packed.read_header(path, source.details["metadata"])
    assert (header.tied, header.source_sha256, header.plan) == ({"v": "w"}, "ab", "cd")
    assert header.versions == {"edgeopt": "1"}
    assert header.metadata() == source.details["metadata"]
    weights = load_weights(path)
    np.testing.assert_array_equal(weights["v"], weights["w"])


def rewritten(path, change):
    """The same file with its edgeopt document changed."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    document = json.loads(metadata["edgeopt"])
    change(document, metadata)
    metadata["edgeopt"] = json.dumps(document)
    entries = [
        safetensors.TensorEntry(w.name, w.dtype, w.shape, lambda w=w: [w.array()])
        for w in safetensors.weights_of(path)[0]
    ]
    out = path.with_name("changed.safetensors")
    safetensors.write(out, entries, metadata)
    return out


def set_in(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(document, _metadata):
        for key in keys:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d, m: m.update(edgeopt_packed="2"), "format version 2, this edgeopt reads 1"),
        (lambda d, m: d.pop("schemes"), "malformed"),
        (set_in("schemes", 0, "bits", 5), "unknown scheme"),
        (set_in("schemes", 0, "bits", 4.0), "unknown scheme"),
        (set_in("schemes", 0, "block", -1), "unknown scheme"),
        (set_in("schemes", 0, "block", 0), "unknown scheme"),
        (set_in("schemes", 0, "scale", "int8"), "unknown scheme"),
        (set_in("schemes", 0, "symmetric", "no"), "unknown scheme"),
        (set_in("tensors", "w", "scheme", 7), "malformed"),
        (set_in("tensors", "w", "shape", [40]), "has the shape"),
        (set_in("tensors", "w", "shape", [40, -96]), "has the shape"),
        (set_in("tensors", "w", "shape", [40, 1 << 70]), "its scheme makes it"),
        (set_in("tensors", "w", "shape", [41, 96]), "its scheme makes it"),
        (set_in("tensors", "w", "dtype", "float99"), "has the dtype"),
        (set_in("tensors", "w", "stored", "elsewhere"), "is missing"),
        (set_in("tensors", []), "malformed"),
        (set_in("tied", {"v": "nowhere"}), "ties 'v' to 'nowhere'"),
        (set_in("tied", {"bias": "w"}), "ties 'bias' to 'w'"),
    ],
)
def test_a_broken_document_is_a_format_error(tmp_path, change, problem):
    path = tmp_path / "p.safetensors"
    packed_file(path)
    out = rewritten(path, change)
    with pytest.raises(FormatError, match=problem) as caught:
        load_weights(out)
    assert "\n" not in str(caught.value)


def test_filling_wants_every_byte_once(tmp_path):
    entry = safetensors.TensorEntry("a", "uint8", (4,))
    path = tmp_path / "f.safetensors"
    with (
        pytest.raises(ValueError, match="3 bytes were never given"),
        safetensors.filling(path, [entry], {}) as put,
    ):
        put("a", b"1")
    with (
        pytest.raises(ValueError, match="more than the 4 bytes"),
        safetensors.filling(path, [entry], {}) as put,
    ):
        put("a", b"12345")
    with safetensors.filling(path, [entry], {"k": "v"}) as put:
        put("a", b"12")
        put("a", b"34")
    filled = path.read_bytes()
    entry = safetensors.TensorEntry("a", "uint8", (4,), lambda: [b"1234"])
    safetensors.write(path, [entry], {"k": "v"})
    assert path.read_bytes() == filled


def test_weights_are_a_read_only_map(tmp_path):
    path = tmp_path / "plain.safetensors"
    tensors = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.float16([1, 2]),
        "c": np.array(7, np.int64),
    }
    save_file(tensors, path)
    weights = load_weights(path)
    assert list(weights) == list(weights.keys())
    assert set(weights) == set(tensors)
    assert len(weights) == 3
    assert "a" in weights
    assert "z" not in weights
    assert weights.nbytes == 48 + 4 + 8
    assert repr(weights) == f"<3 tensors, 60 B, of {str(path)!r}>"
    assert weights.describe("a").shape == (3, 4)
    with pytest.raises(KeyError):
        weights["z"]
    for name, want in tensors.items():
        np.testing.assert_array_equal(weights[name], want)
        with pytest.raises(ValueError, match="read-only"):
            weights[name][...] = 0


def test_plain_arrays_are_mapped_and_outlive_their_map(tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file({"a": np.ones((1000, 1000), np.float32)}, path)
    tracemalloc.start()
    try:
        array = load_weights(path)["a"]
        gc.collect()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    path.unlink()
    assert array.sum() == 1_000_000


def test_packed_arrays_are_read_only_too(tmp_path):
    path = tmp_path / "p.safetensors"
    packed_file(path)
    with pytest.raises(ValueError, match="read-only"):
        load_weights(path)["w"][0] = 1


def test_gguf_block_types_are_told_not_guessed(tmp_path):
    weight = Weight("w", (2, 256), "Q8_K", 584, lambda lo, hi: np.zeros((2, 292), np.uint8))
    weights = Weights(Source(tmp_path / "m.gguf", "gguf", (), 584, (weight,)))
    with pytest.raises(SourceError, match="tensor 'w' is stored as Q8_K"):
        weights["w"]


def test_torch_files_are_read_without_torch_knowing_better(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    state = {
        "a.weight": torch.randn(40, 30),
        "b.weight": torch.randn(8, 16, dtype=torch.bfloat16),
        "t.weight": torch.randn(6, 4).t(),
    }
    torch.save(state, path)
    weights = load_weights(path)
    assert set(weights) == set(state)
    for name, want in state.items():
        got = weights[name]
        assert got.shape == tuple(want.shape)
        np.testing.assert_array_equal(got.astype(np.float32), want.float().numpy())
        assert not got.flags.writeable
