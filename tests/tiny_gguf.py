"""Tiny language models with random weights, written as GGUF by gguf-py."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray
from tests import ggml_oracle

from edgeopt.core import Weight
from edgeopt.files.gguf_write import Field, array, boolean, f32, string, u32
from edgeopt.llm.model import LanguageModel

CONTEXT = 256

_VALUE_TYPES = {
    "uint32": GGUFValueType.UINT32,
    "int32": GGUFValueType.INT32,
    "float32": GGUFValueType.FLOAT32,
    "bool": GGUFValueType.BOOL,
    "string": GGUFValueType.STRING,
    "array": GGUFValueType.ARRAY,
}


def byte_letters() -> list[str]:
    """How GPT-2's vocabulary spells each of the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def llama(
    seed: int = 0, *, width: int = 256, layers: int = 2, spread: float = 0.5, noise: float = 0.0
) -> LanguageModel:
    """A llama that knows the 256 bytes and two more tokens. The same weights for a seed, disturbed
    by ``noise`` (a share of their spread)."""
    rng, spoil = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    tokens = [*byte_letters(), "th", "<|end|>"]
    vocabulary, hidden, heads = len(tokens), 2 * width, 4
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, width)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (width,),
            f"blk.{i}.attn_q.weight": (width, width),
            f"blk.{i}.attn_k.weight": (width // 2, width),
            f"blk.{i}.attn_v.weight": (width // 2, width),
            f"blk.{i}.attn_output.weight": (width, width),
            f"blk.{i}.ffn_norm.weight": (width,),
            f"blk.{i}.ffn_gate.weight": (hidden, width),
            f"blk.{i}.ffn_up.weight": (hidden, width),
            f"blk.{i}.ffn_down.weight": (width, hidden),
        }
    shapes |= {"output_norm.weight": (width,), "output.weight": (vocabulary, width)}
    arrays = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            arrays[name] = np.ones(shape, np.float32)
            continue
        clean = rng.standard_normal(shape) * spread / np.sqrt(shape[1] / 16)
        clean += noise * clean.std() * spoil.standard_normal(shape)
        arrays[name] = clean.astype(np.float32)
    metadata = {
        "general.architecture": string("llama"),
        "general.name": string("tiny"),
        "llama.block_count": u32(layers),
        "llama.context_length": u32(CONTEXT),
        "llama.embedding_length": u32(width),
        "llama.feed_forward_length": u32(hidden),
        "llama.attention.head_count": u32(heads),
        "llama.attention.head_count_kv": u32(heads // 2),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.dimension_count": u32(width // heads),
        "llama.rope.freq_base": f32(10000.0),
        "llama.vocab_size": u32(vocabulary),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array("string", tokens),
        "tokenizer.ggml.token_type": array("int32", [1] * (vocabulary - 1) + [3]),
        "tokenizer.ggml.merges": array("string", ["t h"]),
        "tokenizer.ggml.bos_token_id": u32(vocabulary - 1),
        "tokenizer.ggml.eos_token_id": u32(vocabulary - 1),
        "tokenizer.ggml.add_bos_token": boolean(True),
    }
    return LanguageModel("llama", metadata, _weights(arrays))


def bert(seed: int = 0, *, width: int = 64, noise: float = 0.0) -> LanguageModel:
    """A sentence embedder of one layer, mean pooling, that knows the lower-case letters."""
    rng, spoil = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"▁{c}" for c in letters), *letters]
    block = "blk.0."
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), width),
        "token_types.weight": (2, width),
        "position_embd.weight": (CONTEXT, width),
        "token_embd_norm.weight": (width,),
        "token_embd_norm.bias": (width,),
    }
    for name, shape in (
        ("attn_q", (width, width)),
        ("attn_k", (width, width)),
        ("attn_v", (width, width)),
        ("attn_output", (width, width)),
        ("ffn_up", (4 * width, width)),
        ("ffn_down", (width, 4 * width)),
    ):
        shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    for name in ("attn_output_norm", "layer_output_norm"):
        shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
    arrays = {}
    for name, shape in shapes.items():
        clean = rng.standard_normal(shape) * (1.0 if len(shape) == 1 else 0.1)
        clean += noise * clean.std() * spoil.standard_normal(shape)
        arrays[name] = clean.astype(np.float32)
    metadata = {
        "general.architecture": string("bert"),
        "general.name": string("tiny"),
        "bert.block_count": u32(1),
        "bert.context_length": u32(CONTEXT),
        "bert.embedding_length": u32(width),
        "bert.feed_forward_length": u32(4 * width),
        "bert.attention.head_count": u32(4),
        "bert.attention.layer_norm_epsilon": f32(1e-12),
        "bert.attention.causal": boolean(False),
        "bert.pooling_type": u32(1),
        "tokenizer.ggml.model": string("bert"),
        "tokenizer.ggml.tokens": array("string", tokens),
        "tokenizer.ggml.token_type": array("int32", [3] * 4 + [1] * (len(tokens) - 4)),
        "tokenizer.ggml.token_type_count": u32(2),
        "tokenizer.ggml.padding_token_id": u32(0),
        "tokenizer.ggml.unknown_token_id": u32(1),
        "tokenizer.ggml.cls_token_id": u32(2),
        "tokenizer.ggml.bos_token_id": u32(2),
        "tokenizer.ggml.seperator_token_id": u32(3),
        "tokenizer.ggml.eos_token_id": u32(3),
    }
    return LanguageModel("bert", metadata, _weights(arrays))


def _weights(arrays: Mapping[str, NDArray[np.float32]]) -> tuple[Weight, ...]:
    return tuple(
        Weight(
            name,
            value.shape,
            "float32",
            value.nbytes,
            functools.partial(lambda array, lo, hi: array[lo:hi], value),
        )
        for name, value in arrays.items()
    )


def write(model: LanguageModel, path: Path, kind: str = "F32") -> Path:
    """Write with gguf-py: matrices as ``kind`` (ggml's own encoder), vectors as F32."""
    writer = gguf.GGUFWriter(path, model.architecture)
    for key, field in model.metadata.items():
        if key != "general.architecture":
            _add(writer, key, field)
    _add(writer, "general.file_type", u32(0))
    _add(writer, "general.quantization_version", u32(2))
    for weight in model.tensors:
        values = np.asarray(weight.array(), np.float32)
        if len(weight.shape) == 1 or "_types" in weight.name or "position" in weight.name:
            writer.add_tensor(weight.name, values)
            continue
        raw = ggml_oracle.encode(kind, values) if kind != "F32" else values.view(np.uint8)
        writer.add_tensor(weight.name, raw, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, field: Field) -> None:
    sub = GGUFValueType.STRING if field.of == "string" else None
    if field.of == "int32":
        sub = GGUFValueType.INT32
    writer.add_key_value(key, field.value, _VALUE_TYPES[field.type], sub)


def without_digests(path: Path) -> bytes:
    """A written file's bytes but for what names its source, its plan and itself."""
    keys = rb"(edgeopt\.(?:source_|plan_)?sha256.{12})[0-9a-f]{64}"
    return re.sub(keys, rb"\1", path.read_bytes(), flags=re.DOTALL)
