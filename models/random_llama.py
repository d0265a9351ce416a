"""A LLaMA of any size with random weights, as a Hugging Face folder: for measuring, not talking.

    python -m models.random_llama OUT --shape tinyllama     1.1 B weights, 2.2 GB
    python -m models.random_llama OUT --shape llama-7b      6.7 B weights, 13.5 GB

Weights are drawn from a normal distribution and stored as float16, some rows at a time, so that a
model larger than memory can be made. The tokenizer has LLaMA's layout (SentencePiece, byte
fallback) and made-up words.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.files import safetensors

__all__ = ["SHAPES", "Shape", "make"]


@dataclass(frozen=True)
class Shape:
    """LLaMA's dimensions."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int = 32_000
    context: int = 2048

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "float16",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes as transformers has them."""
        wide = self.hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            yield f"{at}.self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.self_attn.k_proj.weight", (wide, self.hidden)
            yield f"{at}.self_attn.v_proj.weight", (wide, self.hidden)
            yield f"{at}.self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield f"{at}.mlp.gate_proj.weight", (self.feed_forward, self.hidden)
            yield f"{at}.mlp.up_proj.weight", (self.feed_forward, self.hidden)
            yield f"{at}.mlp.down_proj.weight", (self.hidden, self.feed_forward)
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)


SHAPES = {
    "tiny": Shape(2, 256, 512, 4, 2, vocabulary=512, context=256),
    "tinyllama": Shape(22, 2048, 5632, 32, 4),
    "llama-7b": Shape(32, 4096, 11_008, 32, 32),
}

_ROWS = 1 << 22


def make(folder: Path, shape: Shape, *, shards: int = 1, seed: int = 0) -> int:
    """Write the folder; returns the number of weights. The same seed gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n")
    _write_tokenizer(folder, shape.vocabulary)
    tensors = list(shape.tensors())
    seeds = dict(zip(dict(tensors), np.random.SeedSequence(seed).spawn(len(tensors)), strict=True))
    groups = [
        tensors[i * len(tensors) // shards : (i + 1) * len(tensors) // shards]
        for i in range(shards)
    ]
    names = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    )
    with ThreadPoolExecutor(2) as pool:
        for name, group in zip(names, groups, strict=True):
            _write_weights(folder / name, group, seeds, pool)
    if shards > 1:
        where = {t: n for n, group in zip(names, groups, strict=True) for t, _ in group}
        total = sum(2 * int(np.prod(s)) for _, s in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return sum(int(np.prod(s)) for _, s in tensors)


def _write_weights(
    path: Path,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    seeds: dict[str, np.random.SeedSequence],
    pool: ThreadPoolExecutor,
) -> None:
    entries = [safetensors.TensorEntry(name, "float16", shape) for name, shape in tensors]
    path.touch()
    with safetensors.filling(path, entries, {"format": "pt"}) as put:
        for name, shape in tensors:
            count = int(np.prod(shape))
            spans = [min(_ROWS, count - at) for at in range(0, count, _ROWS)]
            pieces = seeds[name].spawn(len(spans))
            for piece in pool.map(
                _drawn, spans, pieces, [name.endswith("norm.weight")] * len(spans)
            ):
                put(name, piece)


def _drawn(count: int, seed: np.random.SeedSequence, norm: bool) -> NDArray[np.float16]:
    values = np.random.Generator(np.random.SFC64(seed)).standard_normal(count, np.float32)
    values *= 0.02
    if norm:
        values += 1.0
    return values.astype(np.float16)


# ---------------------------------------------------------------------------------------------
# the tokenizer: SentencePiece's ModelProto, by hand

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    pieces = [("<unk>", 0.0, _UNKNOWN), ("<s>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, _BYTE) for byte in range(256)]
    letters = "▁etaoinshrdlcumwfgypbvk"
    words = list(letters) + [f"▁{a}{b}" for a in letters[1:] for b in letters[1:]]
    words = words[: max(vocabulary - len(pieces), 0)]
    words += [f"▁word{n}" for n in range(vocabulary - len(pieces) - len(words))]
    pieces += [(word, -float(rank), _NORMAL) for rank, word in enumerate(words)]
    body = b"".join(_message(1, _piece(*piece)) for piece in pieces)
    # TrainerSpec: model_type (3) BPE, byte_fallback (35); NormalizerSpec: add_dummy_prefix (3),
    # and no remove_extra_whitespaces (4), as in LLaMA's own
    trainer = _varint(3 << 3) + _varint(2) + _varint(35 << 3) + _varint(1)
    normalizer = _message(1, b"identity") + _varint(3 << 3) + b"\1" + _varint(4 << 3) + b"\0"
    body += _message(2, trainer) + _message(3, normalizer)
    (folder / "tokenizer.model").write_bytes(body)
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def _piece(text: str, score: float, kind: int) -> bytes:
    return _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--shards", type=int, default=1)
    asked = parser.parse_args()
    weights = make(asked.out, SHAPES[asked.shape], shards=asked.shards)
    print(f"{asked.out}: {weights / 1e9:.2f} B weights")


if __name__ == "__main__":
    main()
