"""From what a configuration calls for and what a folder holds to GGUF's tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeopt.core import FLOAT_DTYPES, Source, Weight
from edgeopt.errors import MissingExtraError, SourceError
from edgeopt.files.text import one_line
from edgeopt.llm.families.changes import WeightChange, renamed
from edgeopt.llm.families.config import Config, Dim

__all__ = ["Spec", "collect", "per_block", "tied", "with_prefix"]

#: Buffers that older versions of transformers saved: they follow from the configuration.
_BUFFERS = r".*\.rotary_emb\.inv_freq|.*\.attn\.(bias|masked_bias)|(.*\.)?position_ids"


@dataclass(frozen=True)
class Spec:
    """One tensor that the configuration calls for: its name in the folder, what shape it must
    have, and what has to be done to it."""

    name: str
    shape: tuple[Dim, ...]
    change: WeightChange | None = None


def per_block(blocks: int, template: Iterable[Spec]) -> list[Spec]:
    """The template's tensors for every block: ``{i}`` in the names is the block's number."""
    rows = tuple(template)
    return [replace(row, name=row.name.format(i=i)) for i in range(blocks) for row in rows]


def with_prefix(prefix: str, heads: Sequence[str] = ("lm_head.",)) -> Callable[[str], str]:
    """Folders saved from a bare model (``LlamaModel``) leave the prefix out: put it back."""
    bare = (prefix, *heads)
    return lambda name: name if name.startswith(bare) else prefix + name


def collect(
    architecture: str,
    blocks: int,
    specs: Sequence[Spec],
    source: Source,
    *,
    canonical: Callable[[str], str],
    ignored: str | None = None,
) -> tuple[Weight, ...]:
    """The folder's tensors under their GGUF names, in the order of ``specs``.

    ``canonical`` turns a name of the folder into the one that ``specs`` use; names that match
    ``ignored`` (a regular expression for the whole canonical name) have no place in GGUF.

    Raises SourceError where a tensor is missing, nobody asked for it, it has another shape than
    the configuration says, or is of no plain float type. MissingExtraError without gguf.
    """
    found = _by_name(source, canonical, ignored)
    names = _gguf_names(architecture, blocks)
    weights = []
    for spec in specs:
        if spec.name not in found:
            raise SourceError(
                f"{source.path}: has no tensor {spec.name!r}, which the configuration calls for "
                f"({_listed(spec.shape)}); is the download complete?"
            )
        weight = _checked(source, spec, found.pop(spec.name))
        changed = spec.change(weight) if spec.change else weight
        weights.append(renamed(changed, names(spec.name)))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        first = next(iter(found.values()))
        raise SourceError(
            f"{source.path}: tensor {one_line(first.name)!r} {list(first.shape)}{more} is none "
            f"that the {architecture} architecture of GGUF has, so it would be lost; does "
            "config.json belong to these weights?"
        )
    return tuple(weights)


def _by_name(
    source: Source, canonical: Callable[[str], str], ignored: str | None
) -> dict[str, Weight]:
    skip = re.compile(_BUFFERS if ignored is None else f"{_BUFFERS}|{ignored}")
    found: dict[str, Weight] = {}
    for weight in source.weights:
        name = canonical(weight.name)
        if skip.fullmatch(name):
            continue
        if name in found:
            raise SourceError(
                f"{source.path}: tensors {one_line(found[name].name)!r} and "
                f"{one_line(weight.name)!r} are the same one of the model"
            )
        found[name] = weight
    return found


def _checked(source: Source, spec: Spec, weight: Weight) -> Weight:
    expected = tuple(dim.value for dim in spec.shape)
    if weight.shape != expected:
        raise SourceError(
            f"{source.path}: tensor {one_line(weight.name)!r} is {list(weight.shape)}, config.json "
            f"says {list(expected)} ({_listed(spec.shape)})"
        )
    if weight.dtype not in FLOAT_DTYPES:
        raise SourceError(
            f"{source.path}: tensor {one_line(weight.name)!r} is {weight.dtype}, which is no plain "
            "float type; give the model as it was before it was quantized"
        )
    return weight


def _listed(shape: Sequence[Dim]) -> str:
    return ", ".join(map(str, shape))


def _gguf_names(architecture: str, blocks: int) -> Callable[[str], str]:
    """GGUF's names of the architecture's tensors, from gguf's own table."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingExtraError("gguf", "gguf", "converting to GGUF") from error
    arch = next(number for number, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture)
    table = gguf.get_tensor_name_map(arch, blocks)

    def named(name: str) -> str:
        given: str | None = table.get_name(name, (".weight", ".bias"))
        if given is None:
            raise SourceError(
                f"gguf {architecture} has no name for tensor {name!r}; a newer gguf package may"
            )
        return given

    return named


def tied(
    source: Source,
    config: Config,
    embedding: str = "embed_tokens.weight",
    head: str = "lm_head.weight",
) -> bool:
    """Whether the output is the embedding, so that GGUF holds one tensor for both.

    ``embedding`` and ``head`` are the ends of the tensors' names. True where
    ``tie_word_embeddings`` says so, and where both are the same storage. A head that is there
    although it is tied must hold the embedding's values: a few rows are looked at.
    """
    ends = {name: w for w in source.weights for name in (embedding, head) if _is(w.name, name)}
    table, output = ends.get(embedding), ends.get(head)
    if not config.flag("tie_word_embeddings"):
        same = table and output and table.storage and table.storage == output.storage
        return bool(same)
    if table and output and not _alike(table, output):
        raise SourceError(
            f"{config.file}: tie_word_embeddings is true, but {one_line(output.name)!r} differs "
            f"from {one_line(table.name)!r}; set it to false, or remove the tensor"
        )
    return True


def _is(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _alike(a: Weight, b: Weight) -> bool:
    if a.storage and a.storage == b.storage:
        return True
    if a.shape != b.shape or not a.shape:
        return False
    last = a.shape[0] - 1
    places = {0, 1, last // 3, last // 2, last} & set(range(a.shape[0]))
    # Empty tables are alike; NaN equals NaN here, as both came from one tensor.
    return all(
        np.array_equal(
            a.rows(i, i + 1).astype(np.float32), b.rows(i, i + 1).astype(np.float32), equal_nan=True
        )
        for i in sorted(places)
    )
