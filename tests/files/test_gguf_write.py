"""The GGUF writer, read back by gguf-py and by our own reader."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.files.gguf import read_header
from edgeopt.files.gguf_write import (
    Field,
    GgufLayout,
    array,
    boolean,
    f32,
    fields_of,
    i32,
    string,
    u32,
    u64,
    writing_gguf,
)

METADATA = {
    "general.architecture": string("llama"),
    "llama.block_count": u32(2),
    "llama.rope.freq_base": f32(10_000.5),
    "some.flag": boolean(True),
    "some.negative": i32(-5),
    "some.large": u64(2**63 + 1),
    "some.double": Field("float64", 0.1),
    "tokenizer.chat_template": string("{% if a %}\n\té 漢{% endif %}"),
    "tokenizer.ggml.tokens": array("string", ["<s>", "é", "漢字", ""]),
    "tokenizer.ggml.scores": array("float32", [0.0, -1.5, 2.25, 3.0]),
    "tokenizer.ggml.token_type": array("int32", [3, 1, 1, 1]),
    "some.bools": array("bool", [True, False]),
    "some.bytes": array("uint8", [0, 255]),
    "some.empty": array("uint32", []),
}


def write(path: Path, metadata: dict[str, Field], tensors: dict[str, Any]) -> GgufLayout:
    kinds = {"float32": "F32", "float16": "F16"}
    layout = GgufLayout.of(
        metadata, [(name, a.shape, kinds[a.dtype.name]) for name, a in tensors.items()]
    )
    path.touch()
    with writing_gguf(path, layout) as writer:
        for name, values in tensors.items():
            rows = values.reshape(-1, values.shape[-1])
            writer.put(name, 0, np.ascontiguousarray(rows).view(np.uint8))
    return layout


def contents(field: Any) -> Any:
    return field.contents()


def test_gguf_py_reads_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "token_embd.weight": rng.standard_normal((5, 6)).astype(np.float16),
        "blk.0.attn_norm.weight": rng.standard_normal(7).astype(np.float32),
        "experts": rng.standard_normal((2, 3, 4)).astype(np.float32),
    }
    path = tmp_path / "a.gguf"
    layout = write(path, METADATA, tensors)
    assert path.stat().st_size == layout.nbytes
    reader = gguf.GGUFReader(path)
    for key, field in METADATA.items():
        found = contents(reader.fields[key])
        if field.type == "float32":
            assert found == np.float32(field.value)
        else:
            assert found == field.value, key
    for tensor, (name, values) in zip(reader.tensors, tensors.items(), strict=True):
        assert tensor.name == name
        assert tuple(reversed(tensor.shape.tolist())) == values.shape
        assert tensor.data_offset % 32 == 0
        np.testing.assert_array_equal(tensor.data.reshape(values.shape), values)


def test_fields_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    layout = write(path, METADATA, {})
    again = GgufLayout.of(fields_of(read_header(path)), [])
    assert again.header == layout.header


def test_same_layout_as_gguf_py(tmp_path: Path) -> None:
    """Byte for byte, for what both can say: the format leaves no choice but the order."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer = gguf.GGUFWriter(tmp_path / "peer.gguf", "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("x", values)
    writer.add_tensor("y", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = {
        "general.architecture": string("llama"),
        "llama.block_count": u32(2),
        "tokenizer.ggml.tokens": array("string", ["a", "b"]),
    }
    write(tmp_path / "a.gguf", ours, {"x": values, "y": values.astype(np.float16)})
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "peer.gguf").read_bytes()


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_the_metadata_s(tmp_path: Path, alignment: int) -> None:
    metadata = {"general.architecture": string("x"), "general.alignment": u32(alignment)}
    values = {name: np.full((3, 5), at, np.float32) for at, name in enumerate("abc")}
    layout = write(tmp_path / "a.gguf", metadata, values)
    assert all(slot.offset % alignment == 0 for slot in layout.slots)
    for tensor, (name, expected) in zip(
        gguf.GGUFReader(tmp_path / "a.gguf").tensors, values.items(), strict=True
    ):
        assert tensor.name == name
        np.testing.assert_array_equal(tensor.data, expected)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(
        st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5
    ),
    order=st.randoms(use_true_random=False),
)
def test_rows_may_come_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], order: Any
) -> None:
    rng = np.random.default_rng(1)
    tensors = {
        f"t{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)
    }
    path = tmp_path_factory.mktemp("order") / "a.gguf"
    path.touch()
    layout = GgufLayout.of({}, [(name, a.shape, "F32") for name, a in tensors.items()])
    pieces = [
        (name, row, values.reshape(-1, values.shape[-1])[row : row + 1])
        for name, values in tensors.items()
        for row in range(values.size // values.shape[-1])
    ]
    order.shuffle(pieces)
    with writing_gguf(path, layout) as writer, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda p: writer.put(p[0], p[1], p[2].view(np.uint8)), pieces))
    for tensor in gguf.GGUFReader(path).tensors:
        expected = tensors[tensor.name]
        np.testing.assert_array_equal(tensor.data.reshape(expected.shape), expected)


def test_rows_past_the_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.touch()
    layout = GgufLayout.of({}, [("a", (2, 4), "F32"), ("b", (2, 4), "F32")])
    with writing_gguf(path, layout) as writer, pytest.raises(ValueError, match="past tensor 'a'"):
        writer.put("a", 1, np.zeros((2, 16), np.uint8))


def test_a_number_out_of_range_is_refused() -> None:
    for field in (u32(-1), u32(2**32), array("int32", [2**31]), array("uint8", [-1])):
        with pytest.raises(struct.error):
            field.encoded()
