"""Whatever holds a language model becomes a :class:`~edgeopt.llm.model.LanguageModel`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import Array, Source, Weight
from edgeopt.core.ggml import PLAIN_TYPES
from edgeopt.errors import SourceError
from edgeopt.files.gguf import read_header
from edgeopt.files.gguf_write import Field, fields_of, string
from edgeopt.files.reading import as_named, read_json
from edgeopt.files.text import one_line
from edgeopt.llm.families import family_of
from edgeopt.llm.families.pooling import pooling_fields
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.tokenizers import read_tokenizer
from edgeopt.llm.tokenizers.notes import phi3_spaces, token_notes
from edgeopt.numerics.ggml import decode, decodes

__all__ = ["quantized_by", "read_model"]

#: Metadata that describes the types of the tensors, written anew with them, or a file's part.
_OF_FILES = frozenset(
    {
        "general.file_type",
        "general.quantization_version",
        "split.no",
        "split.count",
        "split.tensors.count",
    }
)


def read_model(source: Source, *, pre_tokenizer: str | None = None) -> LanguageModel:
    """The model in a Hugging Face folder or a GGUF file, without reading a weight.

    ``pre_tokenizer`` names llama.cpp's rule for splitting text, where ``tokenizer.json`` has one
    that is not known.

    Raises SourceError where the source is of another kind, the architecture is not known, or
    tensors, configuration and tokenizer do not fit one another.
    """
    if source.kind == "hf-folder":
        return _from_folder(source, pre_tokenizer)
    if source.kind == "gguf":
        return _from_gguf(source)
    raise SourceError(
        f"{source.path}: is of kind {source.kind}; GGUF is made from a Hugging Face folder "
        "(config.json, weights, tokenizer) or from another GGUF file"
    )


# ---------------------------------------------------------------------------------------------
# from a folder


def _from_folder(source: Source, pre_tokenizer: str | None) -> LanguageModel:
    folder = source.path
    sentence = source.details.get("sentence_transformers")
    if sentence:
        folder = folder / sentence["transformer"]
    config = read_json(folder / "config.json")
    _require_floats(source, config)
    family = family_of(config, folder)
    tensors = family.tensors(config, source)
    vocabulary = next((t.shape[0] for t in tensors if t.name == "token_embd.weight"), 0)
    tokenizer = read_tokenizer(folder, config, family.name, vocabulary, pre=pre_tokenizer)
    spaces = phi3_spaces(folder, tokenizer)
    phi3 = spaces if spaces is not None else family.name == "phi3"
    metadata = {
        "general.architecture": string(family.name),
        "general.type": string("model"),
        "general.name": string(_name(source.path, phi3)),
        **family.metadata(config, folder),
    }
    metadata.update(pooling_fields(family.name, folder, metadata))
    notes = [*family.notes(config, source), *token_notes(folder, config, tokenizer, phi3)]
    if (folder / _ADAPTER).is_file():
        notes.append(
            f"{_ADAPTER} lies beside the weights: the adapter is left out; merge it first"
            " (peft: merge_and_unload, then save_pretrained) if it belongs to the model"
        )
    return LanguageModel(family.name, {**metadata, **tokenizer}, tensors, tuple(notes))


def _require_floats(source: Source, config: Mapping[str, Any]) -> None:
    """Weights that another tool has quantized are no floats, whatever their names say."""
    method = quantized_by(config, source)
    if method is not None:
        raise SourceError(
            f"{source.path}: its weights are quantized already ({method}); give the folder with "
            "the float weights"
        )


#: What tensors are called by which tool, where the configuration does not say it.
_MARKS: tuple[tuple[str, str], ...] = (
    (r".*\.weight\._(data|scale|shift)", "by quanto"),
    (r".*\.(qweight|qzeros|g_idx)", "by GPTQ or AWQ"),
    (r".*\.weight\.(absmax|quant_map|quant_state.*|nested_.*)", "by bitsandbytes"),
    (r".*\.weight_(packed|scale_inv|scale|shape|zero_point)", "as compressed-tensors or FP8"),
    (r".*\.(scales|biases)", "by MLX"),
)


def quantized_by(config: Mapping[str, Any], source: Source) -> str | None:
    """Which tool has quantized a folder's weights; None where they are floats."""
    told = config.get("quantization_config")
    if told:
        return str(told.get("quant_method", "?") if isinstance(told, dict) else "?")
    if isinstance(config.get("quantization"), dict):
        return "by MLX"
    for weight in source.weights:
        for pattern, tool in _MARKS:
            if re.fullmatch(pattern, weight.name):
                return f"{tool}: {one_line(weight.name)}"
        if weight.dtype.startswith("float8"):
            return f"{weight.dtype}: {one_line(weight.name)}"
    return None


#: llama.cpp strips spaces after special tokens if the model's name says Phi-3, whatever model it
#: is, and then ends the process where Phi-3's own tokens are missing.
_PHI3 = re.compile("phi-?3", re.IGNORECASE)
_ADAPTER = "adapter_config.json"


def _name(path: Path, phi3: bool) -> str:
    """A name for people: the folder's own, as what the configuration remembers is often a path.

    ``phi3``: whether llama.cpp's rule for Phi-3 is to apply; the name decides.
    """
    name = as_named(path).name
    if phi3:
        return name if _PHI3.search(name) else f"Phi-3 {name}"
    return _PHI3.sub("phi", name)


# ---------------------------------------------------------------------------------------------
# from a GGUF file


def _from_gguf(source: Source) -> LanguageModel:
    header = read_header(source.files[0])
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise SourceError(f"{source.path}: has no general.architecture; is it a model?")
    try:
        fields = fields_of(header)
    except ValueError as error:
        raise SourceError(f"{source.path}: {one_line(str(error), 200)}") from error
    metadata: dict[str, Field] = {k: v for k, v in fields.items() if k not in _OF_FILES}
    return LanguageModel(architecture, metadata, tuple(_decoded(w) for w in source.weights))


def _decoded(weight: Weight) -> Weight:
    """The same tensor with rows of floats; ``dtype`` still says how the file stores it."""
    if weight.dtype in PLAIN_TYPES.values() or weight.dtype not in decodes():
        return weight
    return replace(weight, reader=_decoding(weight))


def _decoding(weight: Weight) -> Callable[[int, int], Array]:
    columns = weight.shape[-1]

    def read(lo: int, hi: int) -> Array:
        raw = weight.rows(lo, hi)
        width = raw.shape[-1]
        if not weight.size:
            return np.zeros((hi - lo, *weight.shape[1:]), np.float32)
        if len(weight.shape) == 1:
            return decode(weight.dtype, raw.reshape(1, width), hi - lo).reshape(hi - lo)
        values = decode(weight.dtype, raw.reshape(-1, width), columns)
        return values.reshape(hi - lo, *weight.shape[1:])

    return read
