"""GGUF: gguf-py's writer makes the files, its reader and tables are the oracle."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgeopt.core.ggml import PLAIN_TYPES, REMOVED_TYPES, TYPES
from edgeopt.errors import EdgeoptError, FormatError
from edgeopt.files import gguf, gguf_header
from edgeopt.files.open import open_source
from edgeopt.files.weights import load_weights

gguf_py = pytest.importorskip("gguf")
from gguf import quants  # noqa: E402


def test_the_type_table_is_the_reference_one():
    theirs = {int(t): (t.name, *gguf_py.GGML_QUANT_SIZES[t]) for t in gguf_py.GGMLQuantizationType}
    ours = {number: (t.name, t.block, t.nbytes) for number, t in TYPES.items()}
    assert ours == theirs
    assert not set(REMOVED_TYPES) & set(theirs)


def write(path: Path, *, endian=None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    writer = gguf_py.GGUFWriter(path, "llama", endianess=endian or gguf_py.GGUFEndian.LITTLE)
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 1e-5)
    writer.add_bool("flag", True)
    writer.add_int64("big", -(2**40))
    writer.add_string("general.name", "Tést")
    writer.add_chat_template("{% for m in messages %}" * 40)
    writer.add_token_list(["a", "b", "ç", "<s>"])
    writer.add_token_scores([0.0, 1.0, 2.0, 3.0])
    writer.add_array("small", [1, 2, 3])
    arrays = {
        "token_embd.weight": rng.normal(size=(6, 64)).astype(np.float32),
        "blk.0.attn_norm.weight": rng.normal(size=64).astype(np.float16),
        "blk.0.ids": np.arange(10, dtype=np.int32),
        "cube": rng.normal(size=(2, 3, 32)).astype(np.float32),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    for name, kind in (("q8", "Q8_0"), ("q4", "Q4_0"), ("bf", "BF16")):
        kind = gguf_py.GGMLQuantizationType[kind]
        arrays[name] = quants.quantize(rng.normal(size=(3, 64)).astype(np.float32), kind)
        writer.add_tensor(name, arrays[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def test_what_the_reference_writes(tmp_path):
    path = tmp_path / "x.gguf"
    arrays = write(path)
    source = open_source(path)
    assert source.kind == "gguf"
    assert {w.name for w in source.weights} == set(arrays)
    by_name = {w.name: w for w in source.weights}
    for name in ("token_embd.weight", "blk.0.attn_norm.weight", "blk.0.ids", "cube"):
        weight = by_name[name]
        assert weight.dtype == arrays[name].dtype.name
        assert weight.shape == arrays[name].shape
        np.testing.assert_array_equal(weight.array(), arrays[name])
        np.testing.assert_array_equal(weight.rows(1, 2), arrays[name][1:2])
    assert by_name["blk.0.ids"].role == "buffer"
    assert by_name["bf"].dtype == "bfloat16"
    assert by_name["bf"].array().tobytes() == arrays["bf"].tobytes()
    for name, dtype, row_bytes in (("q8", "Q8_0", 68), ("q4", "Q4_0", 36)):
        weight = by_name[name]
        assert (weight.dtype, weight.shape, weight.nbytes) == (dtype, (3, 64), 3 * row_bytes)
        np.testing.assert_array_equal(weight.array(), arrays[name])
        assert weight.rows(1, 3).shape == (2, row_bytes)
        np.testing.assert_array_equal(weight.rows(1, 3), arrays[name][1:3])
    details = source.details
    assert details["quantized"] is True
    assert details["architecture"] == "llama"
    assert details["metadata"]["llama.block_count"] == 2
    assert details["metadata"]["small"] == [1, 2, 3]
    assert details["metadata"]["tokenizer.ggml.tokens"] == {"array": "string", "count": 4}
    assert details["metadata"]["tokenizer.chat_template"] == {"string": "long", "bytes": 920}
    assert details["split"] is None
    header = gguf.read_header(path)
    assert header.metadata["big"] == -(2**40)
    assert header.metadata["flag"] is True
    assert header.metadata["general.name"] == "Tést"
    assert header.metadata["tokenizer.ggml.tokens"].values() == ["a", "b", "ç", "<s>"]
    np.testing.assert_array_equal(header.metadata["tokenizer.ggml.scores"].values(), range(4))


@pytest.mark.slow
def test_a_real_model_against_the_reference_reader(smollm2):
    source = open_source(smollm2)
    reader = gguf_py.GGUFReader(smollm2)
    assert len(source.weights) == len(reader.tensors)
    for weight, theirs in zip(source.weights, reader.tensors, strict=True):
        assert weight.name == theirs.name
        assert weight.shape == tuple(int(d) for d in reversed(theirs.shape))
        assert weight.nbytes == theirs.n_bytes
        assert PLAIN_TYPES.get(theirs.tensor_type.name, theirs.tensor_type.name) == weight.dtype
        np.testing.assert_array_equal(weight.rows(0, 1), theirs.data[:1])
    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    ours = next(w for w in source.weights if w.name == "token_embd.weight")
    np.testing.assert_array_equal(ours.rows(40_000, 40_010), embedding.data[40_000:40_010])


def test_a_real_model(smollm2):
    source = open_source(smollm2)
    assert len(source.weights) == 272
    assert source.details["types"] == {"Q8_0": 1, "F32": 61, "Q4_1": 210}
    norm, embedding = (
        next(w for w in source.weights if w.name == name)
        for name in ("blk.0.attn_norm.weight", "token_embd.weight")
    )
    assert np.isfinite(norm.array()).all()
    assert np.abs(norm.array()).max() < 10
    rows = quants.dequantize(embedding.rows(100, 110), gguf_py.GGMLQuantizationType.Q8_0)
    assert rows.shape == (10, 576)
    assert np.abs(rows).max() < 10
    assert len(gguf.read_header(smollm2).metadata["tokenizer.ggml.tokens"].values()) == 49152


# ---------------------------------------------------------------------------------------------
# files made by hand


def text(value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str = "t", dims=(4,), kind: int = 0, offset: int = 0) -> bytes:
    shape = b"".join(struct.pack("<Q", d) for d in dims)
    return text(name) + struct.pack("<I", len(dims)) + shape + struct.pack("<IQ", kind, offset)


def build(pairs=(), infos=(), data=b"", *, version=3, n_pairs=None, n_infos=None, magic=b"GGUF"):
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if n_infos is None else n_infos,
        len(pairs) if n_pairs is None else n_pairs,
    )
    whole = head + b"".join(pairs) + b"".join(infos)
    return whole + bytes(-len(whole) % 32) + data


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQB", 0, 1, 7)


def alignment(value: int) -> bytes:
    return pair("general.alignment", 4, struct.pack("<I", value))


HUGE = 2**60
BAD = {
    "bad magic": (build(magic=b"GGUX"), "does not begin with GGUF"),
    "version 0": (build(version=0), "version 0"),
    "version 1": (build(version=1), "version 1"),
    "version 4": (build(version=4), "version 4"),
    "big-endian": (build(version=0x03000000), "big-endian"),
    "pairs 2^64-1": (build(n_pairs=2**64 - 1), "metadata count"),
    "tensors 2^64-1": (build(n_infos=2**64 - 1), "tensor count"),
    "key of 2^60": (build([struct.pack("<Q", HUGE)], n_pairs=1, data=bytes(64)), "string of"),
    "key too long": (build([pair("k" * 70_000, 0, b"\1")]), "limit here is 65535"),
    "key no UTF-8": (build([text(b"\xff\xfe") + struct.pack("<IB", 0, 1)]), "not UTF-8"),
    "string of 2^60": (build([pair("k", 8, struct.pack("<Q", HUGE))]), "string of"),
    "array of 2^60": (build([pair("k", 9, struct.pack("<IQ", 4, HUGE))]), "4 bytes each"),
    "array of 2^60 strings": (build([pair("k", 9, struct.pack("<IQ", 8, HUGE))]), "8 bytes each"),
    "array of 2^60 arrays": (build([pair("k", 9, struct.pack("<IQ", 9, HUGE))]), "12 bytes each"),
    "array wraps to 0": (build([pair("k", 9, struct.pack("<IQ", 10, 2**61))]), "8 bytes each"),
    "strings past the end": (
        build([pair("k", 9, struct.pack("<IQQ", 8, 2, HUGE))], data=bytes(64)),
        "cut short",
    ),
    "last string past the end": (
        build([pair("k", 9, struct.pack("<IQQ", 8, 1, HUGE))], data=bytes(64)),
        "longer than the file",
    ),
    "arrays 3000 deep": (build([pair("k", 9, nested(3000))]), "nested more than"),
    "100,000 arrays": (
        build([pair("k", 9, struct.pack("<IQ", 9, 100_000) + struct.pack("<IQ", 0, 0) * 100_000)]),
        "more than 65536 arrays inside arrays",
    ),
    "array of unknown type": (build([pair("k", 9, struct.pack("<IQ", 77, 1))]), "type 77"),
    "unknown value type": (build([pair("k", 13, b"\0")]), "value type 13"),
    "5 dimensions": (build([], [info(dims=(1,) * 5)], bytes(64)), "5 dimensions"),
    "2^32-1 dimensions": (
        build([], [text("t") + struct.pack("<I", 2**32 - 1)], bytes(64)),
        "4294967295 dimensions",
    ),
    "dims wrap": (build([], [info(dims=(2**32, 2**32))], bytes(64)), "can be counted"),
    "dims wrap to small": (build([], [info(dims=(2**62, 4, 4))], bytes(64)), "can be counted"),
    "bytes wrap in padding": (build([], [info(dims=(2**63 - 1,), kind=24)]), "can be counted"),
    "size past the end": (build([], [info(dims=(2**40,), kind=24)]), "past the end"),
    "alignment 0": (build([alignment(0)]), "alignment 0"),
    "alignment 13": (build([alignment(13)]), "alignment 13"),
    "alignment 2^31": (build([alignment(2**31)]), "alignment 2147483648"),
    "alignment of another type": (
        build([pair("general.alignment", 8, text("32"))]),
        "is string, it must be uint32",
    ),
    "offset past the end": (build([], [info(offset=2**40)], bytes(64)), "past the end"),
    "offset wraps": (build([], [info(offset=2**64 - 32)], bytes(64)), "past the end"),
    "offset not aligned": (build([], [info(offset=4)], bytes(64)), "no multiple of 32"),
    "overlap": (
        build([], [info("a", (16,)), info("b", (4,), offset=32)], bytes(64)),
        "overlaps",
    ),
    "same place": (build([], [info("a"), info("b")], bytes(64)), "overlaps"),
    "tensor twice": (build([], [info("a"), info("a", offset=32)], bytes(64)), "is there twice"),
    "key twice": (build([pair("k", 0, b"\1"), pair("k", 0, b"\1")]), "is there twice"),
    "unknown type": (build([], [info(kind=99)], bytes(64)), "type 99"),
    "removed type": (build([], [info(kind=31)], bytes(64)), "Q4_0_4_4.* no longer"),
    "row no block multiple": (
        build([], [info(dims=(100, 2), kind=12)], bytes(640)),
        "blocks of 256",
    ),
    "tokens of numbers": (
        build([pair("tokenizer.ggml.tokens", 9, struct.pack("<IQI", 4, 1, 7))]),
        "is array of uint32, it must be array of string",
    ),
    "tokens no array": (build([pair("tokenizer.ggml.tokens", 4, bytes(4))]), "is uint32"),
    "scores of strings": (
        build([pair("tokenizer.ggml.scores", 9, struct.pack("<IQ", 8, 1) + text("a"))]),
        "it must be array of float32",
    ),
    "types of int8": (
        build([pair("tokenizer.ggml.token_type", 9, struct.pack("<IQb", 1, 1, 1))]),
        "it must be array of int32",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_file(tmp_path, case):
    data, message = BAD[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    begin = time.process_time()
    with pytest.raises(FormatError, match=message) as caught:
        gguf.describe(path)
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    # The bounds that bad input is held to; a count taken at its word would break both by far.
    assert seconds < 1
    assert peak < 64 << 20


def test_what_is_odd_and_allowed(tmp_path):
    path = tmp_path / "x.gguf"
    template = b"{{ ''.__class__ }}\xff"
    pairs = [
        pair("tokenizer.chat_template", 8, text(template)),
        pair("nested", 9, nested(2)),
        pair("flags", 9, struct.pack("<IQ3B", 7, 3, 1, 0, 2)),
        pair("names", 9, struct.pack("<IQ", 8, 2) + text("a") + text(b"\xff")),
        alignment(64),
    ]
    infos = [
        info("a", (0, 3)),
        info("../b\0", (32,), kind=2),
        info("c", (), offset=64),
        info("d", (64,), kind=2, offset=128),
    ]
    whole = b"".join([build(pairs, infos)])
    head = len(b"".join(pairs) + b"".join(infos)) + 24
    path.write_bytes(whole[:head] + bytes(-head % 64) + bytes(range(164)))
    for version in (2, 3):
        data = bytearray(path.read_bytes())
        data[4] = version
        path.write_bytes(data)
        source = gguf.describe(path)
        header = gguf.read_header(path)
        assert source.details["version"] == version
        # a hostile chat template is kept as bytes and never rendered
        assert header.metadata["tokenizer.chat_template"] == template
        shown = source.details["metadata"]["tokenizer.chat_template"]
        assert shown == {"string": "not UTF-8", "bytes": len(template)}
        assert header.metadata["nested"].values()[0][0].tolist() == [7]
        assert header.metadata["flags"].values().tolist() == [1, 0, 2]
        assert header.metadata["names"].values() == ["a", b"\xff"]
        assert source.details["split"] is None
        a, b, c, d = source.weights
        assert a.array().shape == (3, 0)
        assert b.name == "../b\0"
        assert b.array().tolist() == list(range(18))
        assert c.array().shape == ()
        assert d.rows(32, 64).tolist() == list(range(128 + 18, 164))
        with pytest.raises(IndexError, match="cuts a Q4_0 block"):
            d.rows(1, 32)


@pytest.mark.parametrize("dims", [(0,), (0, 3), (256, 0, 2)])
@pytest.mark.parametrize("kind", [2, 8, 12, 16])
def test_blocks_without_values_decode_to_nothing(tmp_path, dims, kind):
    path = tmp_path / "x.gguf"
    path.write_bytes(build([], [info("t", dims, kind)], bytes(64)))
    assert load_weights(path)["t"].shape == tuple(reversed(dims))


def test_too_many_strings(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_header, "_MAX_STRINGS", 3)
    path = tmp_path / "x.gguf"
    path.write_bytes(build([pair("k", 9, struct.pack("<IQ", 8, 4) + text("") * 4)]))
    with pytest.raises(FormatError, match="more than 3 strings"):
        gguf.describe(path)


def test_truncated_at_every_byte(tmp_path, rewrite):
    path = tmp_path / "x.gguf"
    write(path)
    whole = path.read_bytes()
    start = gguf.read_header(path).data_offset
    for end in [*range(4, start + 8), *range(start + 8, len(whole) - 32, 97)]:
        rewrite(path, whole[:end])
        with pytest.raises(FormatError):
            gguf.describe(path)


def test_flipped_bytes_never_escape_the_error_tree(tmp_path, rewrite):
    path = tmp_path / "x.gguf"
    write(path)
    whole = path.read_bytes()
    start = gguf.read_header(path).data_offset
    rng = random.Random(11)
    opened = 0
    for _ in range(2500):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(4, start)] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        rewrite(path, data)
        try:
            source = gguf.describe(path)
        except EdgeoptError:
            continue
        opened += 1
        for weight in source.weights:
            weight.array()
    assert 0 < opened < 2500


def test_big_endian_as_the_reference_writes_it(tmp_path):
    write(tmp_path / "x.gguf", endian=gguf_py.GGUFEndian.BIG)
    with pytest.raises(FormatError, match="big-endian"):
        open_source(tmp_path / "x.gguf")
