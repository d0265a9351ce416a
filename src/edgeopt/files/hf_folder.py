"""A Hugging Face folder: ``config.json`` beside weights; also a sentence-transformers folder.

Which file gives the weights follows transformers: safetensors before ``pytorch_model.bin``, one
file before shards. Everything else that lies in the folder is listed with its bytes.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

from edgeopt.core import Source, Weight
from edgeopt.errors import FormatError, SourceError
from edgeopt.files import safetensors
from edgeopt.files.reading import is_plain_name, read_head, read_json, read_json_list, reading
from edgeopt.files.sniff import FormatModule

__all__ = [
    "CONFIG_KEYS",
    "TOKENIZER_FILES",
    "SentenceTransformers",
    "describe",
    "matches",
    "sentence_transformers",
]

#: What of ``config.json`` is repeated in ``details["config"]``, where it is there.
CONFIG_KEYS = (
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "tie_word_embeddings",
    "is_encoder_decoder",
    "image_size",
    "patch_size",
    "num_channels",
    "num_labels",
    "id2label",
    "quantization_config",
    "auto_map",
)

#: Files that belong to the model's tokenizer or processor.
TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "feature_extractor_config.json",
        "image_processor_config.json",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "sentencepiece.bpe.model",
        "source.spm",
        "special_tokens_map.json",
        "spiece.model",
        "spm.model",
        "target.spm",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "unigram.json",
        "vocab.json",
        "vocab.txt",
        "bpe.codes",
        "normalizer.json",
    }
)

#: The places of weights, best first: file name -> how to describe it.
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")

_MAX_FILES = 100_000


def matches(path: Path, head: bytes) -> bool:
    """A folder with ``config.json`` and weights beside it, or sentence-transformers' list."""
    if (path / "modules.json").is_file():
        return True
    if not (path / "config.json").is_file():
        return False
    return _weights_file(path) is not None or any(
        _SHARD.fullmatch(file.name) for file in path.glob("model-*.safetensors")
    )


def _weights_file(folder: Path) -> Path | None:
    names = (folder / name for name in (*_SAFETENSORS, *_TORCH))
    return next((file for file in names if file.exists()), None)


#: A shard's name, as transformers writes it.
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")


def _shards(folder: Path) -> list[Path]:
    """Shards whose index is missing, in order; empty where there are none. SourceError where not
    all of them are there."""
    found = {
        (int(named[1]), int(named[2])): file
        for file in sorted(folder.glob("model-*.safetensors"))
        if (named := _SHARD.fullmatch(file.name)) is not None
    }
    if not found:
        return []
    count = max(total for _, total in found)
    missing = [number for number in range(1, count + 1) if (number, count) not in found]
    if missing or len(found) != count:
        raise SourceError(
            f"{folder}: has {len(found)} of {count} shards of model.safetensors and no index"
            " (model.safetensors.index.json); all of them are needed"
        )
    return [found[number, count] for number in range(1, count + 1)]


def describe(path: Path) -> Source:
    """Describe a folder without reading a tensor or running code.

    ``files`` and ``nbytes`` are what the model needs: configuration, weights, tokenizer and
    modules. ``details``:

    - ``config``: the essentials of ``config.json``; ``architecture``: the class it names, or None
    - ``weights``: kind of the weight files; ``weight_files``: bytes by file name
    - ``tokenizer``: bytes of tokenizer and processor files by name
    - ``sentence_transformers``: None, or ``modules`` (types in order), ``transformer`` (its
      folder), ``pooling``, ``normalize``, ``max_seq_length``, ``dimension``
    - ``other_files``: bytes of what else lies in the folder (other formats' weights, say);
      ``folder_bytes``: all of it together

    Raises SourceError where weights or configuration are missing, FormatError for broken files.
    """
    bert = sentence_transformers(path) if (path / "modules.json").is_file() else None
    root = path / bert.transformer if bert else path
    if not (root / "config.json").is_file():
        raise SourceError(f"{root}: has no config.json, which says what the weights are")
    config = read_json(root / "config.json")
    found = _weights(root)
    weights, extras, files = list(found.weights), list(found.extras), list(found.files)
    reasons = [found.needs_trust] if found.needs_trust else []
    for module in bert.heads if bert else ():
        # A dense layer after the pooling is part of what makes the embedding.
        head = _weights(path / module)
        files += head.files
        weights += [_within(module, w) for w in head.weights]
        extras += [_within(module, w) for w in head.extras]
        reasons += [head.needs_trust] if head.needs_trust else []
    if "auto_map" in config:
        reasons.insert(0, f"{root / 'config.json'} names Python code to load the model (auto_map)")
    tree = _tree(path)
    own = {str(file.relative_to(path)) for file in files}
    for name in own:  # in a folder that is hidden, or a link
        tree.setdefault(name, (path / name).stat().st_size)
    tokenizer = {n: b for n, b in tree.items() if PurePosixPath(n).name in TOKENIZER_FILES}
    described = {n for n in tree if _describes(n, bert)}
    needed = [*sorted(described | set(tokenizer)), *sorted(own)]
    return Source(
        path=path,
        kind="hf-folder",
        files=tuple(path / name for name in needed),
        nbytes=sum(tree[name] for name in needed),
        weights=tuple(weights),
        extras=tuple(extras),
        needs_trust="; ".join(reasons) or None,
        details={
            "config": {key: config[key] for key in CONFIG_KEYS if key in config},
            "architecture": _architecture(config),
            "weights": found.kind,
            "weight_files": {name: tree[name] for name in sorted(own)},
            "tokenizer": tokenizer,
            "sentence_transformers": bert.to_json() if bert else None,
            "other_files": {n: b for n, b in tree.items() if n not in set(needed)},
            "folder_bytes": sum(tree.values()),
        },
    )


def _architecture(config: Mapping[str, Any]) -> str | None:
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    return None


def _within(module: str, weight: Weight) -> Weight:
    return replace(weight, name=f"{module}.{weight.name}")


# ---------------------------------------------------------------------------------------------
# weights


def _weights(folder: Path) -> Source:
    file = _weights_file(folder)
    if file is None and (shards := _shards(folder)):
        return _unwrapped(safetensors.describe_shards(shards))
    if file is None:
        raise SourceError(
            f"{folder}: has no weights; looked for {', '.join((*_SAFETENSORS, *_TORCH))}"
        )
    if file.name in _SAFETENSORS:
        return _unwrapped(safetensors.describe(file))
    return _unwrapped(_torch_shards(file) if file.name.endswith(".json") else _torch(file))


#: What torch.compile and DataParallel put into the names of a module that was saved wrapped.
_COMPILED, _PARALLEL = "_orig_mod.", "module."


def _unwrapped(source: Source) -> Source:
    """The same weights under the names that the model itself gives them."""
    names = [weight.name.replace(_COMPILED, "") for weight in source.weights]
    if names and all(name.startswith(_PARALLEL) for name in names):
        names = [name.removeprefix(_PARALLEL) for name in names]
    pairs = zip(source.weights, names, strict=True)
    return replace(source, weights=tuple(replace(weight, name=name) for weight, name in pairs))


def _torch(file: Path) -> Source:
    zipped = read_head(file, 2) == b"PK"
    name = "edgeopt.files.torch_zip" if zipped else "edgeopt.files.torch_legacy"
    module = cast(FormatModule, importlib.import_module(name))
    head = read_head(file)
    if not module.matches(file, head):
        raise FormatError(file, "is no torch file; was the download or the save cut short?")
    source = module.describe(file)
    return replace(
        source,
        weights=tuple(_stored_in(file, w) for w in source.weights),
        extras=tuple(_stored_in(file, w) for w in source.extras),
    )


def _stored_in(file: Path, weight: Weight) -> Weight:
    """Storages are numbered in each file anew: set those of several files apart."""
    if weight.storage is None:
        return weight
    storage = replace(weight.storage, key=f"{file.name}:{weight.storage.key}")
    return replace(weight, storage=storage)


def _torch_shards(index: Path) -> Source:
    placed = safetensors.weight_map(index)
    names = sorted(set(placed.values()))
    sources = []
    for name in names:
        if not index.with_name(name).exists():
            raise SourceError(
                f"{index}: names the shard {name!r}, which is not beside it; "
                f"all {len(names)} shards are needed"
            )
        sources.append(_torch(index.with_name(name)))
    weights = tuple(weight for source in sources for weight in source.weights)
    if len({weight.name for weight in weights}) != len(weights):
        raise FormatError(index, "a tensor is in two shards", field="weight_map")
    held = {
        name: {tensor.name for tensor in (*source.weights, *source.extras)}
        for name, source in zip(names, sources, strict=True)
    }
    safetensors.require_held(index, placed, held)
    reasons = [source.needs_trust for source in sources if source.needs_trust]
    return replace(
        sources[0],
        path=index,
        files=(index, *(file for source in sources for file in source.files)),
        weights=weights,
        extras=tuple(extra for source in sources for extra in source.extras),
        needs_trust=reasons[0] if reasons else None,
    )


# ---------------------------------------------------------------------------------------------
# sentence-transformers


@dataclass(frozen=True)
class SentenceTransformers:
    """What ``modules.json`` lists: types in order, the transformer's folder, dense heads' folders,
    all folders, and how the tokens' vectors become one."""

    modules: tuple[str, ...]
    transformer: str
    heads: tuple[str, ...]
    paths: tuple[str, ...]
    pooling: str | None
    normalize: bool
    max_seq_length: int | None
    dimension: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "modules": list(self.modules),
            "transformer": self.transformer,
            "heads": list(self.heads),
            "pooling": self.pooling,
            "normalize": self.normalize,
            "max_seq_length": self.max_seq_length,
            "dimension": self.dimension,
        }


def sentence_transformers(folder: Path) -> SentenceTransformers:
    """The modules of a folder that has ``modules.json``. FormatError or SourceError."""
    listed = read_json_list(folder / "modules.json")
    types, paths = [], []
    for entry in listed:
        kind = entry.get("type") if isinstance(entry, dict) else None
        place = entry.get("path", "") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or not isinstance(place, str):
            raise FormatError(folder / "modules.json", "a module without a type or a path")
        if place and not is_plain_name(place):
            raise FormatError(
                folder / "modules.json", f"path {place!r} is no plain folder name inside the folder"
            )
        types.append(kind.rpartition(".")[2])
        paths.append(place)
    places = dict(zip(types, paths, strict=True))
    if "Transformer" not in places:
        raise SourceError(f"{folder}: modules.json lists no Transformer, only {', '.join(types)}")
    pooling = read_json(folder / places["Pooling"] / "config.json") if "Pooling" in places else {}
    root = folder / places["Transformer"]
    limits = root / "sentence_bert_config.json"
    limit = read_json(limits).get("max_seq_length") if limits.is_file() else None
    return SentenceTransformers(
        modules=tuple(types),
        transformer=places["Transformer"],
        heads=tuple(p for t, p in zip(types, paths, strict=True) if t == "Dense"),
        paths=tuple(paths),
        pooling=_pooling(pooling),
        normalize="Normalize" in places,
        max_seq_length=limit if isinstance(limit, int) else None,
        dimension=pooling.get("word_embedding_dimension", pooling.get("embedding_dimension")),
    )


def _pooling(config: Mapping[str, Any]) -> str | None:
    """``mean``, ``cls``, ``max``, ...; several joined by ``+`` in the order of concatenation."""
    if isinstance(config.get("pooling_mode"), str):
        return cast(str, config["pooling_mode"])
    # The order in which sentence-transformers concatenates them.
    names = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_max_tokens": "max",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
        "pooling_mode_weightedmean_tokens": "weightedmean",
        "pooling_mode_lasttoken": "lasttoken",
    }
    return "+".join(name for key, name in names.items() if config.get(key) is True) or None


# ---------------------------------------------------------------------------------------------
# the folder's files


def _describes(name: str, bert: SentenceTransformers | None) -> bool:
    """Whether a file (relative name) is configuration that the model cannot do without."""
    parts = PurePosixPath(name)
    places = {"."} | {place or "." for place in (bert.paths if bert else ())}
    return str(parts.parent) in places and parts.name in {
        "config.json",
        "generation_config.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    }


def _tree(folder: Path) -> dict[str, int]:
    """Bytes of every regular file below ``folder`` by relative name; hidden folders are left out.

    Links to files count (a downloaded folder may consist of them), links to folders do not.
    """
    sizes: dict[str, int] = {}
    with reading(folder):
        for file in _walk(folder):
            sizes[file.relative_to(folder).as_posix()] = file.stat().st_size
            if len(sizes) > _MAX_FILES:
                raise SourceError(f"{folder}: holds more than {_MAX_FILES} files; is it the model?")
    return dict(sorted(sizes.items()))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(parent, name).is_file():
                yield Path(parent, name)
