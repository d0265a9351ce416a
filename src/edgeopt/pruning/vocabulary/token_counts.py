"""How often each token is met in texts, and how many of them a word takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Progress
from edgeopt.errors import InputsError
from edgeopt.pruning.vocabulary.tokenizer_json import TokenizerJson, wordpiece_path

__all__ = ["TokenCounts", "count_tokens", "fertility"]


@dataclass(frozen=True)
class TokenCounts:
    """``counts[id]``, and tokens that were ``passed`` on the way to an unknown word."""

    counts: NDArray[np.int64]
    passed: set[int]

    @property
    def total(self) -> int:
        return int(self.counts.sum())


def count_tokens(
    library: Any,
    tokenizer: TokenizerJson,
    texts: Iterable[str],
    progress: Progress | None = None,
) -> TokenCounts:
    """Tokens of the texts and of their lines, whichever are more; special ones are not added.

    ``library`` is the tokenizer as the tokenizers package holds it. InputsError where there are
    none.
    """
    size = max(tokenizer.texts()) + 1
    whole, lines = np.zeros(size, np.int64), np.zeros(size, np.int64)
    passed: set[int] = set()
    for at, text in enumerate(texts):
        parts = text.split("\n")
        encoded = library.encode_batch_fast([text, *parts], add_special_tokens=False)
        whole += np.bincount(np.array(encoded[0].ids, np.int64), minlength=size)
        for one, part in zip(encoded[1:], parts, strict=True):
            lines += np.bincount(np.array(one.ids, np.int64), minlength=size)
            if tokenizer.kind == "WordPiece" and tokenizer.unknown in one.ids:
                passed |= _passed(library, tokenizer, part)
        if progress is not None and at % 16 == 0:
            progress(f"splitting the corpus: {int(whole.sum()):,} tokens", None)
    counts = np.maximum(whole, lines)
    if not counts.any():
        raise InputsError("the corpus holds no text; give some with --corpus FILE")
    return TokenCounts(counts, passed)


def _passed(library: Any, tokenizer: TokenizerJson, text: str) -> set[int]:
    """Matches on the way to a word's unknown part: without them, it might go another way."""
    if library.normalizer is not None:
        text = library.normalizer.normalize_str(text)
    words = [text]
    if library.pre_tokenizer is not None:
        words = [word for word, _ in library.pre_tokenizer.pre_tokenize_str(text)]
    prefix = tokenizer.model.get("continuing_subword_prefix", "##")
    limit = tokenizer.model.get("max_input_chars_per_word", 100)
    return {
        tokenizer.vocab[piece]
        for word in words
        for piece in wordpiece_path(word, tokenizer.vocab, prefix, limit)
    }


def fertility(
    before: Any,
    after: Any,
    texts: Iterable[str],
    unknown: int | None,
    new_ids: Mapping[int, int],
) -> Iterator[str]:
    """One note on tokens a word in other texts, before and after; none without texts.

    A word is what stands between white space (Rust et al. 2021, "How Good is Your Tokenizer?").
    """
    words = dropped = 0
    tokens, lost = [0, 0], [0, 0]
    for text in texts:
        words += len(text.split())
        pair = [t.encode(text, add_special_tokens=False).ids for t in (before, after)]
        dropped += sum(number not in new_ids for number in pair[0])
        for at, (ids, number) in enumerate(
            zip(pair, (unknown, new_ids.get(-1 if unknown is None else unknown)), strict=True)
        ):
            tokens[at] += len(ids)
            lost[at] += sum(i == number for i in ids)
    if words and tokens[0]:
        unknowns = "" if unknown is None else f"; unknown: {lost[0]:,}, now {lost[1]:,}"
        yield (
            f"held-out text: {tokens[0] / words:.3f} tokens a word, now {tokens[1] / words:.3f};"
            f" {dropped / tokens[0]:.2%} of its tokens were dropped{unknowns}"
        )
