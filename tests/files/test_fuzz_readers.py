"""Files that no writer would make, built piece by piece: every reader answers with a description
or a typed error of one line, within a second of work and 64 MB, whatever the file claims.

Each generator knows its format: most of a file is sound, so that what is not is reached. Counts,
lengths, offsets and kinds lie now and then, and a few bytes are damaged at the end.
"""

from __future__ import annotations

import gc
import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.files.test_torch_hostile import gadgets, state_dict, tensor

from edgeopt.core import Source
from edgeopt.core.ggml import TYPES
from edgeopt.errors import SourceError
from edgeopt.files import gguf, hf_folder, onnx, safetensors, torch_legacy, torch_zip
from edgeopt.files.gguf_header import MetadataArray, read_header
from edgeopt.files.imatrix import read_imatrix
from edgeopt.files.weights import load_weights
from edgeopt.llm.tokenizers.sentencepiece import parse_model

Draw: TypeAlias = st.DrawFn

#: The readers' own tests count what they cover; here a tracer would take half of the time.
pytestmark = pytest.mark.no_cover

SECONDS, PEAK = 1.0, 64 << 20

fuzzed = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@contextmanager
def within_bounds() -> Iterator[None]:
    """Nothing but our own errors, in one line, and no more time and memory than promised."""
    gc.disable()  # a collection of what 20,000 examples left behind is not the reader's time
    tracemalloc.start()
    begin = time.process_time()
    try:
        yield
    except SourceError as error:
        text = str(error)
        assert "\n" not in text and "\r" not in text, text
        assert len(text) < 2000, len(text)
    finally:
        seconds = time.process_time() - begin
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        gc.enable()
    assert seconds < SECONDS
    assert peak < PEAK


def read_all(source: Source) -> None:
    """What is described can be read, as it was described."""
    for weight in (*source.weights, *source.extras):
        if weight.nbytes < 1 << 20:
            array = weight.array()
            assert array.dtype.itemsize * array.size < 1 << 24
            if len(weight.shape) != 1:  # a lone row of blocks is cut between blocks only
                weight.rows(0, min(1, weight.shape[0] if weight.shape else 1))


def decoded(path: Path) -> None:
    """Every tensor as numbers, as who loads the file gets them."""
    weights = load_weights(path)
    for name in weights:
        weight = weights.describe(name)
        if weight.nbytes < 1 << 20:
            assert weights[name].shape == weight.shape


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------------------------------------
# what all generators share

#: Numbers at which readers have gone wrong.
NUMBERS = st.sampled_from(
    [
        *(0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 127, 128, 255, 256, 65_535, 65_536),
        *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**60, 2**61, 2**62, 2**63 - 1, 2**63),
        *(2**64 - 32, 2**64 - 1),
    ]
)
NAMES = st.sampled_from(
    [
        *("a", "b", "w", "blk.0.attn_q.weight", "n" * 300, "", "%s{}", "\u202e", "😀", "x\ny"),
        *("../../etc/passwd", "/abs", "a\0b", "..", "a/b", "C:\\x"),
    ]
)


def mostly(draw: Draw, times: int = 12) -> bool:
    """True, but for one time in so many. (Not 0: hypothesis likes to draw the ends.)"""
    return draw(st.integers(0, times - 1)) != times // 2 + 1


def rarely(draw: Draw, honest: int, bits: int = 64) -> int:
    """The honest number; now and then another."""
    if mostly(draw, 60):
        return honest
    return draw(NUMBERS) % (1 << bits)


@st.composite
def damaged(draw: Draw, sound: st.SearchStrategy[bytes]) -> bytes:
    """The bytes; every fourth time a few of them overwritten, inserted, taken out or cut off."""
    raw = bytearray(draw(sound))
    if mostly(draw, 4):
        return bytes(raw)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(raw) - 1)))
        patch = draw(
            st.one_of(
                st.binary(min_size=1, max_size=4),
                NUMBERS.map(lambda n: struct.pack("<Q", n)),
                NUMBERS.map(lambda n: struct.pack("<I", n % 2**32)),
            )
        )
        how = draw(st.sampled_from(["write", "write", "insert", "delete", "cut"]))
        if how == "write":
            raw[at : at + len(patch)] = patch
        elif how == "insert":
            raw[at:at] = patch
        elif how == "delete":
            del raw[at : at + len(patch)]
        else:
            del raw[at:]
    return bytes(raw)


# ---------------------------------------------------------------------------------------------
# GGUF

SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
KEYS = st.sampled_from(
    [
        *(
            "general.architecture",
            "general.name",
            "tokenizer.chat_template",
            "split.count",
            "split.no",
            "k",
        ),
        *("imatrix.datasets", "imatrix.chunk_count", "../k", "k\0", "k" * 200, "l"),
    ]
)


def gguf_text(draw: Draw, text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return struct.pack("<Q", rarely(draw, len(raw))) + raw


def gguf_value(draw: Draw, kind: int, depth: int = 0) -> bytes:
    if kind in SCALARS:
        return draw(st.binary(min_size=SCALARS[kind], max_size=SCALARS[kind]))
    if kind == 8:
        return gguf_text(draw, draw(st.sampled_from(["llama", "imatrix", "x", ""])))
    if kind == 9 and depth < 6:
        inner = draw(st.sampled_from([0, 4, 5, 6, 7, 8, 8, 9, 12]))
        count = draw(st.integers(0, 4))
        values = b"".join(gguf_value(draw, inner, depth + 1) for _ in range(count))
        return struct.pack("<IQ", inner, rarely(draw, count)) + values
    return b""


@st.composite
def gguf_file(draw: Draw, type_of: str = "") -> bytes:
    align = draw(st.sampled_from([32, 32, 64, 8])) if mostly(draw) else draw(NUMBERS) % 2**32
    pairs = []
    if align != 32:
        pairs.append(("general.alignment", 4, struct.pack("<I", align)))
    if type_of:
        pairs.append(
            ("general.type", 8, struct.pack("<Q", len(type_of)) + type_of.encode()),
        )
    if not mostly(draw, 4):
        key = draw(st.sampled_from(["tokenizer.ggml.tokens", "tokenizer.ggml.scores"]))
        pairs.append((key, 9, gguf_value(draw, 9)))
    for key in draw(st.lists(KEYS, max_size=3, unique=mostly(draw))):
        kind = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 9, 10, 11, 12]))
        if key in ("general.architecture", "tokenizer.chat_template") and mostly(draw):
            kind = 8
        pairs.append((key, kind, gguf_value(draw, kind)))
    align = align if align in (8, 64) else 32
    infos = []
    end = 0
    names = draw(st.lists(NAMES, min_size=bool(type_of), max_size=4, unique=mostly(draw)))
    if type_of == "imatrix":
        names = [name + suffix for name in names for suffix in (".in_sum2", ".counts")]
    for name in names:
        kind = draw(st.sampled_from([0, 0, 0, 1, 2, 8, 12, 14, 24, 30]))
        kind = 0 if type_of and mostly(draw, 60) else kind
        block = TYPES[kind].block if kind in TYPES else 32
        dims = [
            block * draw(st.sampled_from([0, 1, 2])),
            *draw(st.lists(st.integers(0, 3), max_size=3)),
        ]
        if type_of and mostly(draw):
            dims = [4 if name.endswith("sum2") else 1, draw(st.integers(1, 3))]
        nbytes = TYPES[kind].tensor_bytes(tuple(reversed(dims))) if kind in TYPES else 0
        dims = [rarely(draw, dim) for dim in dims]
        place = end + (-end % align)
        info = gguf_text(draw, name) + struct.pack("<I", rarely(draw, len(dims), 32))
        info += b"".join(struct.pack("<Q", dim) for dim in dims)
        infos.append(info + struct.pack("<IQ", rarely(draw, kind, 32), rarely(draw, place)))
        end = place + nbytes
    head = struct.pack(
        "<4sIQQ",
        b"GGUF",
        draw(st.sampled_from([3, 2] if mostly(draw) else [1, 4, 0x03000000])),
        rarely(draw, len(infos)),
        rarely(draw, len(pairs)),
    )
    for key, kind, value in pairs:
        head += gguf_text(draw, key) + struct.pack("<I", rarely(draw, kind, 32)) + value
    whole = head + b"".join(infos)
    floats = np.arange(end // 4 + 9, dtype="<f4").tobytes()
    return (
        whole
        + bytes(-len(whole) % align)
        + floats[: end if mostly(draw) else draw(st.integers(0, end + 8))]
    )


@fuzzed
@given(damaged(gguf_file()))
def test_gguf(place: Path, raw: bytes) -> None:
    path = place / "x.gguf"
    path.write_bytes(raw or b"\0")
    with within_bounds():
        source = gguf.describe(path)
        read_all(source)
        json.dumps(source.details, default=repr)
        for value in read_header(path).metadata.values():
            if isinstance(value, MetadataArray):
                value.values()
        decoded(path)


@fuzzed
@given(damaged(gguf_file("imatrix")))
def test_gguf_imatrix(place: Path, raw: bytes) -> None:
    path = place / "imatrix.gguf"
    path.write_bytes(raw)
    with within_bounds():
        matrix = read_imatrix(path)
        assert all(np.isfinite(v).all() and (v >= 0).all() for v in matrix.values.values())


@st.composite
def old_imatrix(draw: Draw) -> bytes:
    def i32(n: int) -> bytes:
        return struct.pack("<I", rarely(draw, n, 32))

    names = draw(st.lists(NAMES, min_size=1, max_size=3))
    whole = i32(len(names))
    for name in names:
        raw = name.encode("utf-8", "replace")
        values = draw(st.lists(st.floats(width=32), max_size=5))
        whole += i32(len(raw)) + raw + i32(draw(st.integers(0, 3))) + i32(len(values))
        whole += np.array(values, "<f4").tobytes()
    if draw(st.booleans()):
        whole += i32(2) + i32(4) + b"text"
    return whole


@fuzzed
@given(damaged(old_imatrix()))
def test_old_imatrix(place: Path, raw: bytes) -> None:
    path = place / "imatrix.dat"
    path.write_bytes(raw)
    with within_bounds():
        matrix = read_imatrix(path)
        assert all(np.isfinite(v).all() and (v >= 0).all() for v in matrix.values.values())


# ---------------------------------------------------------------------------------------------
# JSON, as safetensors and folders have it

ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, -1, 1.5, 1e300, "", "F32", "x", "../x", "a\0b", [], {}, [[]]]),
    NUMBERS,
    st.just(10**400),
    st.just([1] * 70),
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=3)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=2), inner, max_size=2)
        ),
        max_leaves=4,
    ),
)


def twisted(draw: Draw, value: Any) -> Any:
    """The same JSON value with, now and then, a part of it exchanged for something else."""
    if not mostly(draw, 80):
        return draw(ODD)
    if isinstance(value, dict):
        return {key: twisted(draw, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [twisted(draw, inner) for inner in value]
    return value


@st.composite
def safetensors_file(draw: Draw) -> bytes:
    widths = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "C64": 8}
    entries: list[tuple[str, Any]] = []
    end = 0
    for name in draw(st.lists(NAMES, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(widths)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        nbytes = widths[dtype] * int(np.prod(shape))
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + nbytes]}
        entries.append((name, twisted(draw, entry)))
        end += nbytes
    if draw(st.booleans()):
        entries.append(("__metadata__", twisted(draw, {"format": "pt", "edgeopt_packed": "1"})))
    if entries and not mostly(draw):
        entries.append(entries[0])
    text = ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries)
    header = b"{" + text.encode() + b"}" + b" " * draw(st.integers(0, 9))
    if not mostly(draw, 20):
        header = b'{"a":' + draw(st.sampled_from([b"[", b'{"a":', b"-", b'"'])) * 3000
    return struct.pack("<Q", rarely(draw, len(header))) + header + bytes(end)


@fuzzed
@given(damaged(safetensors_file()))
def test_safetensors(place: Path, raw: bytes) -> None:
    path = place / "x.safetensors"
    path.write_bytes(raw)
    with within_bounds():
        read_all(safetensors.describe(path))
        decoded(path)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "auto_map": {"AutoModel": "code.Model"},
    "quantization_config": {"quant_method": "x"},
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
POOLING = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
INDEX = {
    "metadata": {"total_size": 64},
    "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"},
}
SHARD = b'{"%s":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


@st.composite
def folder_files(draw: Draw) -> dict[str, bytes]:
    def text(value: Any) -> bytes:
        return json.dumps(twisted(draw, value)).encode()

    files = {"config.json": draw(damaged(st.just(text(CONFIG))))}
    if draw(st.booleans()):
        files["model.safetensors"] = draw(damaged(safetensors_file()))
    else:
        files["model.safetensors.index.json"] = text(INDEX)
        for number, name in enumerate((b"a", b"b"), 1):
            header = SHARD.replace(b"%s", name)
            shard = struct.pack("<Q", len(header)) + header + bytes(8)
            if mostly(draw, 6):
                files[f"m-{number}.safetensors"] = draw(damaged(st.just(shard)))
    if draw(st.booleans()):
        files["modules.json"] = text(MODULES)
        files["1_Pooling/config.json"] = text(POOLING)
        files["sentence_bert_config.json"] = text({"max_seq_length": 16})
    return files


@fuzzed
@given(folder_files())
def test_folders(place: Path, files: dict[str, bytes]) -> None:
    folder = place / "folder"
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for old in folder.rglob("*.*"):
        old.unlink()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    with within_bounds():
        source = hf_folder.describe(folder)
        read_all(source)
        json.dumps(source.details)


# ---------------------------------------------------------------------------------------------
# protobuf: ONNX and SentencePiece


def varint(value: int) -> bytes:
    raw = b""
    while value > 127:
        raw += bytes([value & 127 | 128])
        value >>= 7
    return raw + bytes([value])


def number(draw: Draw, field: int, value: int) -> bytes:
    return varint(field << 3) + varint(rarely(draw, value))


def block(draw: Draw, field: int, raw: bytes) -> bytes:
    wire = 2 if mostly(draw, 80) else draw(st.integers(0, 7))
    return varint(field << 3 | wire) + varint(rarely(draw, len(raw))) + raw


def name_of(draw: Draw, field: int, text: str | None = None) -> bytes:
    chosen = draw(NAMES) if text is None else text
    return block(draw, field, chosen.encode("utf-8", "replace"))


#: TensorProto's data types -> (bits, the typed field that may hold them instead of raw_data).
DATA_TYPES = {1: (32, 4), 2: (8, 5), 7: (64, 7), 10: (16, 5), 11: (64, 10), 16: (16, 5), 21: (4, 5)}


def onnx_tensor(draw: Draw) -> bytes:
    kind = draw(st.sampled_from(sorted(DATA_TYPES)))
    bits, home = DATA_TYPES[kind]
    dims = draw(st.lists(st.integers(0, 3), max_size=3))
    count = int(np.prod(dims))
    if draw(st.booleans()):
        whole = b"".join(number(draw, 1, dim) for dim in dims)
    else:
        whole = block(draw, 1, b"".join(varint(rarely(draw, dim)) for dim in dims))
    whole += number(draw, 2, kind) + name_of(draw, 8)
    form = draw(st.sampled_from(["raw", "raw", "typed", "external"]))
    form = form if mostly(draw) else draw(st.sampled_from(["strings", "both", "none"]))
    if form in ("raw", "both"):
        whole += block(draw, 9, bytes(-(-count * bits // 8)))
    if form in ("typed", "both"):
        if home in (4, 10):
            whole += block(draw, home, bytes(count * bits // 8))
        else:
            values = -(-count * bits // 8) if bits < 8 else count
            whole += block(draw, home, b"".join(varint(draw(NUMBERS)) for _ in range(values)))
    if form == "strings":
        whole += b"".join(name_of(draw, 6) for _ in range(count))
    if form == "external":
        places = ["../x.data", "/etc/passwd", "", "a\0b", "missing", "."]
        sizes = ["0", "4", "64", "-1", "9" * 19, "9" * 30, "0x1", "", "1e3"]
        pairs = [("location", "x.data" if mostly(draw, 6) else draw(st.sampled_from(places)))]
        honest = {"offset": "0", "length": str(-(-count * bits // 8))}
        pairs += [
            (key, value if mostly(draw) else draw(st.sampled_from(sizes)))
            for key, value in honest.items()
        ]
        for key, value in pairs[: draw(st.integers(1, 3))]:
            whole += block(draw, 13, name_of(draw, 1, key) + name_of(draw, 2, value))
        whole += number(draw, 14, 1)
    return whole


def onnx_value(draw: Draw) -> bytes:
    dims = b""
    for _ in range(draw(st.integers(0, 3))):
        dim = draw(st.sampled_from([0, 1, 2, 3]))
        dims += block(draw, 1, [b"", number(draw, 1, 3), name_of(draw, 2), b"\xff"][dim])
    tensor_type = number(draw, 1, 1) + block(draw, 2, dims)
    kind = draw(st.sampled_from([1, 1, 1, 4, 5, 8, 9]))
    return name_of(draw, 1) + block(draw, 2, block(draw, kind, tensor_type))


def onnx_graph(draw: Draw, depth: int = 0) -> bytes:
    whole = name_of(draw, 2)
    for _ in range(draw(st.integers(0, 3))):
        op = draw(st.sampled_from(["Add", "Constant", "If", "QuantizeLinear", ""]))
        node = name_of(draw, 1) + name_of(draw, 2) + name_of(draw, 4, op)
        what = draw(st.sampled_from([0, 0, 5, 6, 11]))
        if what == 5:
            node += block(draw, 5, name_of(draw, 1, "value") + block(draw, 5, onnx_tensor(draw)))
        elif what and depth < 3:
            node += block(draw, 5, block(draw, what, onnx_graph(draw, depth + 1)))
        whole += block(draw, 1, node)
    for _ in range(draw(st.integers(0, 3))):
        whole += block(draw, 5, onnx_tensor(draw))
    for field in (11, 12):
        for _ in range(draw(st.integers(0, 1))):
            whole += block(draw, field, onnx_value(draw))
    if not draw(st.integers(0, 3)):
        parts = [block(draw, 1, onnx_tensor(draw)), block(draw, 2, onnx_tensor(draw))]
        whole += block(draw, 15, b"".join(parts[mostly(draw) - 1 :]))
    return whole


@st.composite
def onnx_file(draw: Draw) -> bytes:
    whole = number(draw, 1, 10) + name_of(draw, 2) + name_of(draw, 3)
    whole += block(draw, 8, name_of(draw, 1, "") + number(draw, 2, 21))
    whole += block(draw, 14, name_of(draw, 1) + name_of(draw, 2))
    graphs = 1 if mostly(draw) else draw(st.sampled_from([0, 2]))
    whole += b"".join(block(draw, 7, onnx_graph(draw)) for _ in range(graphs))
    if not draw(st.integers(0, 3)):
        whole += block(draw, 25, name_of(draw, 1) + block(draw, 7, name_of(draw, 4, "Add")))
    if not mostly(draw, 20):
        deep = b""
        for _ in range(draw(st.sampled_from([30, 40, 2000]))):
            deep = varint(1 << 3 | 2) + varint(len(deep) + 9) + (
                b"\x2a" + varint(len(deep) + 7) + b"\x32" + varint(len(deep)) + deep
            )  # fmt: skip
        whole = whole if mostly(draw, 2) else b"\x08\x0a"
        whole += block(draw, 7, deep)
    return whole


@fuzzed
@given(damaged(onnx_file()))
def test_onnx(place: Path, raw: bytes) -> None:
    path = place / "x.onnx"
    path.write_bytes(raw or b"\0")
    (place / "x.data").write_bytes(bytes(64))
    onnx.matches(path, raw[:4096])
    with within_bounds():
        source = onnx.describe(path)
        read_all(source)
        json.dumps(source.details, default=repr)


@st.composite
def sentencepiece_file(draw: Draw) -> bytes:
    whole = b""
    for _ in range(draw(st.integers(0, 6))):
        piece = name_of(draw, 1) + b"\x15" + draw(st.binary(min_size=4, max_size=4))
        if draw(st.booleans()):
            piece += number(draw, 3, draw(st.integers(0, 7)))
        whole += block(draw, 1, piece[: len(piece) - (not mostly(draw, 40))])
    whole += block(draw, 2, number(draw, 3, 2) + number(draw, 24, 1) + number(draw, 35, 1))
    charsmap = draw(st.binary(max_size=12))
    return whole + block(draw, 3, block(draw, 2, charsmap) + number(draw, 3, 1))


@fuzzed
@given(damaged(sentencepiece_file()))
def test_sentencepiece(place: Path, raw: bytes) -> None:
    path = place / "tokenizer.model"
    path.write_bytes(raw)
    with within_bounds():
        model = parse_model(path)
        assert all(isinstance(text, str) and 1 <= kind <= 6 for text, _, kind in model.pieces)


# ---------------------------------------------------------------------------------------------
# torch


@st.composite
def small_pickle(draw: Draw) -> bytes:
    """Opcodes of tensors with numbers that lie, between opcodes of any kind."""

    def integer(honest: int) -> bytes:
        value = rarely(draw, honest)
        return b"K" + bytes([value]) if value < 256 else b"\x8a\x09" + value.to_bytes(9, "little")

    def one() -> bytes:
        return tensor(
            key="0" if mostly(draw, 20) else draw(st.sampled_from(["1", "../0", ""])),
            numel=4 if mostly(draw, 20) else draw(st.sampled_from([0, -1, 2**31 - 1])),
            shape=integer(2) + integer(2) + b"\x86",
            stride=integer(2) + integer(1) + b"\x86",
            offset=integer(0),
            kind="FloatStorage"
            if mostly(draw, 20)
            else draw(st.sampled_from(["HalfStorage", "NoStorage", "ByteStorage"])),
        )

    noise = st.sampled_from(
        [b"N", b"]", b"}", b")", b"(", b"t", b"l", b"d", b"a", b"s", b"u", b"e", b"R", b"b", b"Q"]
        + [b"0", b"1", b"2", b"\x93", b"\x94", b"h\0", b"q\0", b"j\0\0\0\0", b"r\xff\xff\xff\xff"]
        + [b"\x95" + struct.pack("<Q", n) for n in (0, 5, 2**63)]
        + [b"X" + struct.pack("<I", n) + b"abc" for n in (3, 2**32 - 1)]
        + [b"\x8a\xff", b"\x8b" + struct.pack("<i", -1), b"G" + bytes(8), b"I9\n", b"L9L\n"]
        + list(gadgets(Path("/nonexistent/canary")).values())
    )
    parts = [one() for _ in range(draw(st.integers(1, 3)))]
    if mostly(draw, 3):
        return state_dict(*parts)
    for _ in range(draw(st.integers(1, 6))):
        parts.insert(draw(st.integers(0, len(parts))), draw(noise))
    return b"\x80\2" + b"".join(parts) + b"."


@st.composite
def torch_zip_file(draw: Draw) -> bytes:
    out = io.BytesIO()
    how = zipfile.ZIP_STORED if mostly(draw, 6) else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(out, "w", how) as archive:
        archive.writestr("a/data.pkl", draw(small_pickle()))
        order = "little" if mostly(draw) else draw(st.sampled_from(["big", "x"]))
        archive.writestr("a/byteorder", order)
        archive.writestr(
            "a/data/0", bytes(16 if mostly(draw) else draw(st.sampled_from([8, 0, 17])))
        )
        if not mostly(draw):
            extra = draw(st.sampled_from(["a/version", "b/data.pkl", "a/constants.pkl", "../x"]))
            archive.writestr(extra, draw(small_pickle()))
    return out.getvalue()


@fuzzed
@given(damaged(torch_zip_file()))
def test_torch_zip(place: Path, raw: bytes) -> None:
    path = place / "x.pt"
    path.write_bytes(raw or b"\0")
    with within_bounds():
        torch_zip.matches(path, raw[:4096])
        read_all(torch_zip.describe(path))


@st.composite
def torch_legacy_file(draw: Draw) -> bytes:
    magic = 0x1950A86A20F9469CFC6C if mostly(draw) else 7
    head = b"".join(pickle.dumps(o, 2) for o in (magic, 1001, {"little_endian": True}))
    odd = st.sampled_from([["0", "1"], [], ["0", "0"], 3])
    keys = pickle.dumps(["0"] if mostly(draw) else draw(odd), 2)
    numel = 4 if mostly(draw) else draw(st.sampled_from([-1, 2**62, 0]))
    storage = struct.pack("<q", numel) + bytes(16)
    return head + draw(small_pickle()) + keys + storage


@fuzzed
@given(damaged(torch_legacy_file()))
def test_torch_legacy(place: Path, raw: bytes) -> None:
    path = place / "x.bin"
    path.write_bytes(raw or b"\0")
    with within_bounds():
        torch_legacy.matches(path, raw[:4096])
        read_all(torch_legacy.describe(path))


# ---------------------------------------------------------------------------------------------
# the fuzzers themselves


@pytest.mark.parametrize(
    ("sound", "name", "describe"),
    [
        (gguf_file(), "x.gguf", gguf.describe),
        (gguf_file("imatrix"), "i.gguf", read_imatrix),
        (old_imatrix(), "i.dat", read_imatrix),
        (safetensors_file(), "x.safetensors", safetensors.describe),
        (onnx_file(), "x.onnx", onnx.describe),
        (sentencepiece_file(), "tokenizer.model", parse_model),
        (torch_zip_file(), "x.pt", torch_zip.describe),
        (torch_legacy_file(), "x.bin", torch_legacy.describe),
    ],
)
def test_what_is_made_is_often_sound(
    place: Path, sound: st.SearchStrategy[bytes], name: str, describe: Callable[[Path], Any]
) -> None:
    """A fuzzer whose every file is refused at the door tests the door."""
    outcomes: list[bool] = []

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(sound)
    def tried(raw: bytes) -> None:
        path = place / name
        path.write_bytes(raw or b"\0")
        (place / "x.data").write_bytes(bytes(64))
        try:
            describe(path)
        except SourceError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    tried()
    assert 0.02 < sum(outcomes) / len(outcomes) < 1.0


#: Every format, by name: what makes its files, and what is asked of each.
FORMATS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Path, Any], None]]] = {
    "gguf": (damaged(gguf_file()), test_gguf.hypothesis.inner_test),
    "gguf imatrix": (damaged(gguf_file("imatrix")), test_gguf_imatrix.hypothesis.inner_test),
    "old imatrix": (damaged(old_imatrix()), test_old_imatrix.hypothesis.inner_test),
    "safetensors": (damaged(safetensors_file()), test_safetensors.hypothesis.inner_test),
    "folder": (folder_files(), test_folders.hypothesis.inner_test),
    "onnx": (damaged(onnx_file()), test_onnx.hypothesis.inner_test),
    "sentencepiece": (damaged(sentencepiece_file()), test_sentencepiece.hypothesis.inner_test),
    "torch zip": (damaged(torch_zip_file()), test_torch_zip.hypothesis.inner_test),
    "torch legacy": (damaged(torch_legacy_file()), test_torch_legacy.hypothesis.inner_test),
}

#: Files of each format in the slow run.
MANY = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many(place: Path, name: str) -> None:
    sound, asked = FORMATS[name]

    @settings(fuzzed, max_examples=MANY, database=None)
    @given(sound)
    def tried(raw: Any) -> None:
        asked(place, raw)

    tried()
