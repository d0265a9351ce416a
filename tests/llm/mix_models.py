"""Language models that are all names and shapes, and what llama.cpp's quantizer makes of them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import Weight
from edgeopt.files.gguf_header import read_header
from edgeopt.files.gguf_write import Field, f32, string, u32
from edgeopt.llm.model import LanguageModel

Shapes = Mapping[str, tuple[int, ...]]


def model_of(architecture: str, shapes: Shapes, **numbers: Any) -> LanguageModel:
    """A model with these tensors; ``numbers`` are metadata with ``__`` in place of a dot."""
    metadata: dict[str, Field] = {"general.architecture": string(architecture)}
    for key, value in numbers.items():
        field = value if isinstance(value, Field) else f32(value)
        if isinstance(value, int):
            field = u32(value)
        metadata[f"{architecture}.{key.replace('__', '.')}"] = field
    tensors = tuple(
        Weight(name, shape, "float32", 4 * int(np.prod(shape)), _random(name, shape))
        for name, shape in shapes.items()
    )
    return LanguageModel(architecture, metadata, tensors)


def _random(name: str, shape: tuple[int, ...]) -> Callable[[int, int], Any]:
    def rows(lo: int, hi: int) -> Any:
        rng = np.random.default_rng(len(name))
        return rng.standard_normal(shape).astype(np.float32)[lo:hi]

    return rows


def decoder(
    layers: int,
    columns: int = 256,
    *,
    inner: int | None = None,
    tied: bool = False,
    rows: int = 2,
) -> dict[str, tuple[int, ...]]:
    """The tensors of a llama, in the order of its file: tables, then layers."""
    inner = inner or columns
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (8, columns)}
    for i in range(layers):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up"):
            shapes[f"blk.{i}.{part}.weight"] = (rows, columns)
        shapes[f"blk.{i}.ffn_down.weight"] = (rows, inner)
        shapes[f"blk.{i}.attn_norm.weight"] = (columns,)
        shapes[f"blk.{i}.ffn_norm.weight"] = (columns,)
    shapes["output_norm.weight"] = (columns,)
    if not tied:
        shapes["output.weight"] = (8, columns)
    return shapes


def numbers(layers: int, columns: int = 256, **more: Any) -> dict[str, Any]:
    """What llama.cpp wants to know of nearly every architecture."""
    return {
        "block_count": layers,
        "context_length": 128,
        "embedding_length": columns,
        "feed_forward_length": columns,
        "attention__head_count": 8,
        "attention__layer_norm_rms_epsilon": 1e-5,
        "attention__layer_norm_epsilon": 1e-5,
        **more,
    }


# ---------------------------------------------------------------------------------------------
# llama.cpp


@cache
def _llama() -> Any:
    import llama_cpp

    @llama_cpp.llama_log_callback
    def silent(level: int, text: bytes, data: object) -> None:
        del level, text, data

    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    _KEPT_ALIVE.append(silent)
    return llama_cpp


_KEPT_ALIVE: list[Any] = []


def write_f32(model: LanguageModel, path: Path) -> None:
    """The model as a GGUF file of float32, written by gguf-py."""
    import gguf

    writer = gguf.GGUFWriter(path, model.architecture)
    for key, field in model.metadata.items():
        if key == "general.architecture":
            continue
        if field.type == "array":
            writer.add_array(key, field.value)
        elif field.type == "string":
            writer.add_string(key, field.value)
        elif field.type == "float32":
            writer.add_float32(key, field.value)
        elif field.type == "bool":
            writer.add_bool(key, field.value)
        else:
            writer.add_uint32(key, field.value)
    for weight in model.tensors:
        writer.add_tensor(weight.name, weight.array())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized_types(
    source: Path,
    out: Path,
    number: int,
    *,
    importance: Mapping[str, Any] | None = None,
    overrides: Sequence[tuple[str, int]] = (),
) -> dict[str, str]:
    """llama.cpp's choice: it quantizes ``source`` to file type ``number`` -> tensor to type."""
    llama = _llama()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, 1
    alive: list[Any] = []
    if importance is not None:
        entries = (llama.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            values = np.ascontiguousarray(values, np.float32)
            alive.append(values)
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
        alive.append(entries)
    if overrides:
        rows = (llama.llama_model_tensor_override * (len(overrides) + 1))()
        for row, (pattern, kind) in zip(rows, overrides, strict=False):
            row.pattern, row.type = pattern.encode(), kind
        params.tt_overrides = rows
        alive.append(rows)
    assert llama.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0
    return {info.name: info.type.name for info in read_header(out).tensors}
