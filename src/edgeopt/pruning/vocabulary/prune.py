"""Vocabulary pruning: rows of an embedding that a corpus never uses, dropped with their tokens.

First a plan, from the folder and the corpus alone: which tokens stay, and the tokenizer's files
rewritten. Then the model's tables are cut to match. What is kept beside the corpus's own tokens
(letters, bytes, special and added tokens, what merges go through) lets every other text be split
still, into more tokens than before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.core import Array, Progress
from edgeopt.errors import InputsError, MissingExtraError, SourceError, UsageError
from edgeopt.files.reading import read_json
from edgeopt.files.text import one_line
from edgeopt.modules.folder import inner_model
from edgeopt.modules.model import TorchModel
from edgeopt.modules.sentence_model import transformer_folder
from edgeopt.pruning.result import Cut, Pruning
from edgeopt.pruning.vocabulary.token_counts import TokenCounts, count_tokens, fertility
from edgeopt.pruning.vocabulary.tokenizer_files import (
    ids_in,
    renumber_ids,
    rewritten_files,
    special_texts,
)
from edgeopt.pruning.vocabulary.tokenizer_json import TokenizerJson

__all__ = ["VocabularyPlan", "plan_vocabulary", "prune_vocabulary", "tokenizer_folder"]


@dataclass(frozen=True)
class VocabularyPlan:
    """Which rows stay: row ``kept[i]`` becomes row ``i``.

    ``files`` are the folder's tokenizer and generation files as they have to be then, by name
    beside ``config.json`` (None: to be left out), for :func:`edgeopt.modules.folder.write_folder`.
    ``unknown`` is the old number of the token for what cannot be split, None where there is none.
    """

    kept: NDArray[np.int64]
    files: Mapping[str, bytes | None]
    unknown: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def new_ids(self) -> dict[int, int]:
        return {int(old): new for new, old in enumerate(self.kept)}

    def renumber(self, ids: Array) -> NDArray[np.int64]:
        """Old numbers (any shape) as new ones. A token that was dropped becomes the unknown one;
        InputsError where there is none. Numbers below zero (labels left out) stay."""
        old = np.asarray(ids, np.int64)
        table = np.full(max(int(self.kept.max()), int(old.max(initial=0))) + 1, -1, np.int64)
        table[self.kept] = np.arange(len(self.kept))
        new = np.where(old < 0, old, table[old.clip(0)])
        gone = (new < 0) & (old >= 0)
        if gone.any():
            if self.unknown is None:
                raise InputsError(
                    f"token {int(old[gone][0])} was dropped; split the text with the new tokenizer"
                )
            new[gone] = table[self.unknown]
        return new

    def feed(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """A feed in old numbers as the pruned model takes it: ``input_ids``, and ``labels``."""
        return {
            name: self.renumber(array).astype(array.dtype) if name in _IDS else array
            for name, array in feed.items()
        }

    def within(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """A feed in old numbers with a kept token in place of each that was dropped: for made-up
        inputs that the model is to answer before and after."""
        result = dict(feed)
        for name in _IDS & feed.keys():
            array = feed[name]
            other = self.kept[np.abs(array) % len(self.kept)]
            result[name] = np.where(np.isin(array, self.kept) | (array < 0), array, other).astype(
                array.dtype
            )
        return result

    def refit(self, model: TorchModel) -> TorchModel:
        """``model`` with its example in new numbers."""
        return replace(model, example=self.feed(self.within(model.example)))


#: Inputs and targets that are tokens.
_IDS = frozenset({"input_ids", "labels"})


def plan_vocabulary(
    folder: Path,
    corpus: Iterable[str],
    *,
    min_count: int = 1,
    held_out: Iterable[str] = (),
    progress: Progress | None = None,
) -> VocabularyPlan:
    """Which tokens of the Hugging Face folder's tokenizer stay, after ``corpus``.

    A text counts as it is and line by line, each token as often as it is met in the one or the
    other; it stays from ``min_count`` on. With 1, every text of the corpus and every line of it is
    split into the same tokens as before, which is checked on all of them: the corpus is gone
    through twice. ``held_out`` are texts of which is told how many tokens a word takes, before and
    after.

    Raises:
        UsageError: a min_count below 1.
        InputsError: a corpus without text.
        SourceError: no tokenizer.json, a tokenizer of another kind, a corpus that uses everything.
        MissingExtraError: tokenizers is not installed.
    """
    if min_count < 1:
        raise UsageError(f"min_count {min_count}: a token is kept from 1 occurrence on, or more")
    home = tokenizer_folder(folder)
    texts = list(corpus) if iter(corpus) is corpus else corpus
    tokenizer = TokenizerJson.read(home / "tokenizer.json")
    old = _loaded(tokenizer.document)
    counts = count_tokens(old, tokenizer, texts, progress)
    configs = [read_json(home / n) for n in _CONFIGS if (home / n).is_file()]
    kept = _kept(tokenizer, counts, min_count, home, configs)
    before = _rows(configs[0], tokenizer)
    after = int((kept < before).sum())
    if after >= before:
        raise SourceError(
            f"{home}: the corpus and what cannot be left out use all {before:,} rows; none to drop"
        )
    new_ids = {int(number): at for at, number in enumerate(kept)}
    document = tokenizer.renumbered(new_ids)
    made = _loaded(document)
    _require_ids(tokenizer, made, new_ids)
    notes = [*_notes(counts, kept, before, min_count)]
    if min_count == 1:
        _require_same(old, made, kept, texts, progress)
        notes.append("every text of the corpus is split as before (checked)")
    notes += fertility(old, made, held_out, tokenizer.unknown, new_ids)
    files: dict[str, bytes | None] = dict(rewritten_files(home, new_ids))
    files["tokenizer.json"] = json.dumps(document, ensure_ascii=False, indent=1).encode()
    dropped = sorted(name for name, data in files.items() if data is None)
    if dropped:
        notes.append(f"left out, as tokenizer.json holds the same: {', '.join(dropped)}")
    return VocabularyPlan(kept, files, tokenizer.unknown, tuple(notes))


def tokenizer_folder(folder: Path) -> Path:
    """Where the folder's tokenizer.json is; SourceError where there is none."""
    home = transformer_folder(folder)
    if not (home / "tokenizer.json").is_file():
        raise SourceError(
            f"{home}: has no tokenizer.json; write it with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return home


_CONFIGS = ("config.json", "generation_config.json")


def _kept(
    tokenizer: TokenizerJson,
    counts: TokenCounts,
    min_count: int,
    home: Path,
    configs: Iterable[Mapping[str, Any]],
) -> NDArray[np.int64]:
    used = {int(n) for n in np.flatnonzero(counts.counts >= min_count)} | counts.passed
    found = used | tokenizer.foundation()
    found |= {n for text in special_texts(home) if (n := tokenizer.id_of(text)) is not None}
    found |= tokenizer.parts(found)
    known = tokenizer.texts()
    # A row that no token has (padding) comes last: a tokenizer's numbers have no holes.
    rows = _rows(next(iter(configs)), tokenizer)
    named = {n for config in configs for n in ids_in(config) if 0 <= n < rows}
    tokens = sorted((found | named) & known.keys())
    # Gemma's vision models share a tokenizer whose last token has no row in those without.
    inside, beyond = [n for n in tokens if n < rows], [n for n in tokens if n >= rows]
    return np.array([*inside, *sorted(named - known.keys()), *beyond], np.int64)


def _rows(config: Mapping[str, Any], tokenizer: TokenizerJson) -> int:
    """Rows of the embedding, as the configuration has them."""
    text = config.get("text_config")
    found = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return found if isinstance(found, int) else max(tokenizer.texts()) + 1


def _loaded(document: Mapping[str, Any]) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError("tokenizers", "train", "vocabulary pruning") from None
    try:
        tokenizer = Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises nothing narrower
        raise SourceError(f"tokenizer.json: {one_line(str(error))}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _require_ids(tokenizer: TokenizerJson, made: Any, new: Mapping[int, int]) -> None:
    for number, text in tokenizer.texts().items():
        if number in new and made.token_to_id(text) != new[number]:
            raise SourceError(
                f"{tokenizer.path}: {one_line(text, 40)!r} cannot have the number {new[number]}"
                f" (it gets {made.token_to_id(text)}): added tokens have to be numbered without"
                " gaps behind the others; save the tokenizer again with transformers"
            )


def _require_same(
    old: Any,
    made: Any,
    kept: NDArray[np.int64],
    texts: Iterable[str],
    progress: Progress | None,
) -> None:
    """Every text and every line of it is the same tokens to both."""
    for at, text in enumerate(texts):
        lines = list(dict.fromkeys([text, *text.split("\n")]))
        pairs = zip(old.encode_batch_fast(lines), made.encode_batch_fast(lines), strict=True)
        for line, (one, other) in zip(lines, pairs, strict=True):
            if one.ids != kept[other.ids].tolist():
                raise SourceError(
                    f"the rewritten tokenizer splits {one_line(line, 60)!r} into"
                    f" {one_line(' '.join(other.tokens), 80)!r}, before it was"
                    f" {one_line(' '.join(one.tokens), 80)!r}; the vocabulary cannot be pruned"
                )
        if progress is not None and at % 16 == 0:
            progress("checking the new tokenizer on the corpus", None)


def _notes(
    counts: TokenCounts, kept: NDArray[np.int64], before: int, min_count: int
) -> Iterator[str]:
    used = int((counts.counts >= min_count).sum())
    yield (
        f"the corpus uses {used:,} of {before:,} tokens in {counts.total:,}; letters, bytes,"
        f" special tokens and parts of merges make it {len(kept):,}"
    )
    gone = counts.total - int(counts.counts[kept[kept < len(counts.counts)]].sum())
    if min_count > 1:
        yield f"{gone:,} of {counts.total:,} tokens of the corpus are split otherwise now"
    once = int((counts.counts == 1).sum())
    # Good 1953: the share of what was not met is that of what was met once.
    yield (
        f"more text of the same source: about {(once + gone) / counts.total:.2%} of its tokens were"
        " dropped and take several now (Good-Turing); of another source more"
    )


# ---------------------------------------------------------------------------------------------
# the model


def prune_vocabulary(model: TorchModel, plan: VocabularyPlan) -> Pruning:
    """Cut the embedding and the output layer of ``model.module`` to the plan's rows, in place.

    The configuration's sizes and token numbers follow. ``model``'s example is in old numbers still:
    go on with ``plan.refit(model)``.

    Raises SourceError for a model that is none of transformers, has no token embedding, or whose
    table has fewer rows than the plan keeps.
    """
    inner = inner_model(model)
    table = inner.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise SourceError(f"{type(inner).__name__} has no table of token embeddings")
    rows = table.num_embeddings
    kept = plan.kept[plan.kept < rows]
    if len(kept) >= rows:
        raise SourceError(f"the corpus uses all {rows:,} rows of the embedding; none to drop")
    head = inner.get_output_embeddings()
    if head is not None and not (isinstance(head, nn.Linear) and head.out_features == rows):
        raise SourceError(
            f"{type(inner).__name__}: its output layer is no linear layer of {rows:,} rows, as its"
            " embedding has; the vocabulary cannot be pruned"
        )
    names = {id(part): name for name, part in model.module.named_modules()}
    tied = head is not None and head.weight is table.weight
    cuts = [Cut(names[id(table)], "rows", rows, len(kept))]
    if head is not None and not tied:
        cuts.append(Cut(names[id(head)], "rows", rows, len(kept)))
    notes = list(plan.notes)
    if tied:
        notes.append(f"{names[id(head)]} is tied to {names[id(table)]}: the same rows")
    whole = [table.weight] if head is None else [table.weight, head.weight, head.bias]
    if head is not None:
        whole += _beside(model.module, names[id(head)], rows)
    _cut_rows(model.module, [p for p in whole if p is not None], torch.from_numpy(kept))
    new = plan.new_ids
    table.num_embeddings = len(kept)
    if table.padding_idx is not None:
        table.padding_idx = new.get(table.padding_idx)
    if head is not None:
        head.out_features = len(kept)
    _tell(inner, rows, len(kept), new)
    return Pruning("vocabulary", tuple(cuts), tuple(notes))


def _beside(module: nn.Module, head: str, rows: int) -> Iterator[Tensor]:
    """Biases of the output layer that the part around it holds: BERT's and RoBERTa's have their
    own there, which is another one where nothing is tied."""
    around = module.get_submodule(head.rpartition(".")[0])
    for name, parameter in around.named_parameters(recurse=False):
        if name.endswith("bias") and parameter.shape == (rows,):
            yield parameter


def _cut_rows(module: nn.Module, tables: Iterable[Tensor], kept: Tensor) -> None:
    """Put the kept rows of each parameter in all the places where it is."""
    made = {
        id(p): nn.Parameter(p.detach()[kept.to(p.device)].clone(), p.requires_grad) for p in tables
    }
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if id(parameter) in made:
                setattr(part, name, made[id(parameter)])


def _tell(inner: Any, before: int, after: int, new: Mapping[int, int]) -> None:
    """All that knows the number of rows, or of a token."""
    for part in inner.modules():
        if getattr(part, "vocab_size", None) == before:
            part.vocab_size = after
        padding = getattr(part, "padding_idx", None)
        if isinstance(padding, int) and not isinstance(part, nn.Embedding):
            part.padding_idx = new.get(padding, padding)
    configs = {id(c): c for c in (inner.config, inner.config.get_text_config())}
    generation = getattr(inner, "generation_config", None)
    for config in [*configs.values(), *([] if generation is None else [generation])]:
        said = {key: value for key, value in vars(config).items() if not key.startswith("_")}
        plain = {key: value for key, value in said.items() if not isinstance(value, dict)}
        for key, value in renumber_ids(plain, new).items():
            if value != said[key]:
                setattr(config, key, value)
        if getattr(config, "vocab_size", None) == before:
            config.vocab_size = after
