"""``tokenizer.json`` with fewer tokens, numbered anew: what the tokenizers library reads.

Which tokens a text is split into does not change as long as the tokens it is split into are kept,
and those on the way to them:

- BPE (Sennrich et al. 2016) applies the first merge of its list again and again. Within the bounds
  of a final token the same merges are applied, in the same order, as if the token were a text of
  its own; so the merges that make each kept token out of its letters are kept, with their results.
- WordPiece takes the longest match from the left (Wu et al. 2016). A longest match that is kept
  stays the longest; where a word turns out unknown, the matches before that point matter too.
- Unigram takes the path of the best score (Kudo 2018). The best path stays the best among fewer;
  but the score of an unknown letter hangs on the vocabulary's lowest one, which is kept for that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError, SourceError
from edgeopt.files.reading import read_json
from edgeopt.files.text import one_line

__all__ = ["TokenizerJson", "merge_path", "wordpiece_path"]

#: Vocabularies of 262,144 tokens with their merges take under 40 MB.
_LIMIT = 128 << 20
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TokenizerJson:
    """A tokenizer's JSON, its tokens by text: ``vocab`` the model's own, ``added`` those found in
    the text before anything else."""

    path: Path
    document: Mapping[str, Any]
    vocab: Mapping[str, int]
    added: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> TokenizerJson:
        """Raises SourceError for a missing file or unknown model, FormatError for a broken one."""
        document = read_json(path, limit=_LIMIT)
        model = document.get("model")
        if not isinstance(model, dict):
            raise FormatError(path, "has no model", field="model")
        kind = model.get("type") or _kind(model)
        if kind not in _RENUMBER:
            raise SourceError(
                f"{path}: a tokenizer model of type {one_line(str(kind), 40)}; rows can be dropped"
                f" with {', '.join(_RENUMBER)}"
            )
        document = {**document, "model": {**model, "type": kind}}
        try:
            added = {str(t["content"]): int(t["id"]) for t in document.get("added_tokens") or ()}
        except (KeyError, TypeError, ValueError):
            raise FormatError(path, "a token without id or content", field="added_tokens") from None
        return cls(path, document, _vocab(model, path), added)

    @property
    def model(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.document["model"]
        return found

    @property
    def kind(self) -> str:
        return str(self.model["type"])

    def texts(self) -> dict[int, str]:
        """All tokens, by id."""
        return {number: text for text, number in {**self.vocab, **self.added}.items()}

    def id_of(self, text: str) -> int | None:
        return self.added.get(text, self.vocab.get(text))

    @property
    def unknown(self) -> int | None:
        """The token for what cannot be split."""
        if self.kind == "Unigram":
            number = self.model.get("unk_id")
            return number if isinstance(number, int) else None
        text = self.model.get("unk_token")
        return self.id_of(text) if isinstance(text, str) else None

    def foundation(self) -> set[int]:
        """Tokens that any text may come down to: letters, bytes, the unknown one, added ones."""
        letters = {number for text, number in self.vocab.items() if self._is_letter(text)}
        found = letters | set(self.added.values())
        if self.unknown is not None:
            found.add(self.unknown)
        if self.kind == "Unigram":
            scores = [float(score) for _, score in self.model["vocab"]]
            found.add(min(range(len(scores)), key=scores.__getitem__))
        return found

    def _is_letter(self, text: str) -> bool:
        if self.kind == "WordLevel":
            return False
        default = "##" if self.kind == "WordPiece" else ""
        prefix = self.model.get("continuing_subword_prefix") or default
        bare = text.removeprefix(prefix).removesuffix(self.model.get("end_of_word_suffix") or "")
        return len(bare) <= 1 or len(text) <= 1 or _BYTE.fullmatch(text) is not None

    def parts(self, ids: Iterable[int]) -> set[int]:
        """What BPE's merges go through to make these tokens; nothing for other models."""
        if self.kind != "BPE":
            return set()
        ranks: dict[tuple[str, str], int] = {}
        for rank, pair in enumerate(_pairs(self.model, self.path)):
            ranks.setdefault(pair, rank)
        prefix = self.model.get("continuing_subword_prefix") or ""
        suffix = self.model.get("end_of_word_suffix") or ""
        texts = {number: text for text, number in self.vocab.items()}
        found: set[str] = set()
        for number in ids:
            if number in texts:
                found.update(merge_path(texts[number], ranks, prefix, suffix))
        return {self.vocab[text] for text in found if text in self.vocab}

    def renumbered(self, new: Mapping[int, int]) -> dict[str, Any]:
        """The document with only the tokens in ``new`` (old id -> new id), under their new ids."""
        document = dict(self.document)
        document["model"] = _RENUMBER[self.kind](self, new)
        document["added_tokens"] = [
            {**token, "id": new[token["id"]]} for token in document.get("added_tokens") or ()
        ]
        padding = document.get("padding")
        if isinstance(padding, dict) and padding.get("pad_id") in new:
            document["padding"] = {**padding, "pad_id": new[padding["pad_id"]]}
        document["post_processor"] = _renumbered_template(document.get("post_processor"), new)
        return document


# ---------------------------------------------------------------------------------------------
# reading


def _kind(model: Mapping[str, Any]) -> str:
    """Files of before 2020 leave the type to be told from the fields."""
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _vocab(model: Mapping[str, Any], path: Path) -> dict[str, int]:
    given = model.get("vocab")
    try:
        if isinstance(given, list):
            return {str(text): number for number, (text, _) in enumerate(given)}
        if isinstance(given, dict):
            return {text: int(number) for text, number in given.items()}
    except (TypeError, ValueError):
        pass
    raise FormatError(path, "is no table of tokens", field="model.vocab")


def _pairs(model: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """Merges as pairs, written as ``"a b"`` or ``["a", "b"]``."""
    for rank, entry in enumerate(model.get("merges") or ()):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not (isinstance(pair, list) and len(pair) == 2):
            raise FormatError(path, "is no pair of two tokens", field=f"merges[{rank}]")
        yield str(pair[0]), str(pair[1])


# ---------------------------------------------------------------------------------------------
# on the way to a token


def merge_path(
    text: str, ranks: Mapping[tuple[str, str], int], prefix: str = "", suffix: str = ""
) -> list[str]:
    """All that BPE makes on its way from letters to ``text``, the last of them ``text``; empty for
    a token that merges do not make."""
    first = not (prefix and text.startswith(prefix))
    body = text if first else text[len(prefix) :]
    end = suffix if suffix and body.endswith(suffix) and body != suffix else ""
    body = body.removesuffix(end)
    symbols = [prefix + letter for letter in body]
    if first and body:
        symbols[0] = body[0]
    if symbols:
        symbols[-1] += end
    made: list[str] = []
    while len(symbols) > 1:
        found = [(ranks[p], at) for at, p in enumerate(pairwise(symbols)) if p in ranks]
        if not found:
            return []
        _, at = min(found)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1].removeprefix(prefix)]
        made.append(symbols[at])
    return made


def wordpiece_path(word: str, vocab: Mapping[str, int], prefix: str, limit: int) -> list[str]:
    """The longest matches from the left, as far as they go; none for a word beyond ``limit``."""
    found: list[str] = []
    at = 0
    while at < len(word) <= limit:
        start = prefix if at else ""
        ends = range(len(word), at, -1)
        end = next((end for end in ends if start + word[at:end] in vocab), at)
        if end == at:
            break
        found.append(start + word[at:end])
        at = end
    return found


# ---------------------------------------------------------------------------------------------
# numbering anew


def _table(tokenizer: TokenizerJson, new: Mapping[int, int]) -> dict[str, Any]:
    """A model whose vocabulary is ``{text: id}``, in the order of the new ids."""
    kept = sorted((new[number], text) for text, number in tokenizer.vocab.items() if number in new)
    return {**tokenizer.model, "vocab": {text: number for number, text in kept}}


def _bpe(tokenizer: TokenizerJson, new: Mapping[int, int]) -> dict[str, Any]:
    model = _table(tokenizer, new)
    prefix = model.get("continuing_subword_prefix") or ""
    vocab = model["vocab"]
    pairs = _pairs(tokenizer.model, tokenizer.path)
    model["merges"] = [
        entry
        for entry, (a, b) in zip(tokenizer.model.get("merges") or (), pairs, strict=True)
        if a in vocab and b in vocab and a + b.removeprefix(prefix) in vocab
    ]
    return model


def _unigram(tokenizer: TokenizerJson, new: Mapping[int, int]) -> dict[str, Any]:
    model = dict(tokenizer.model)
    old = sorted((new[n], n) for n in range(len(model["vocab"])) if n in new)
    model["vocab"] = [model["vocab"][number] for _, number in old]
    if isinstance(model.get("unk_id"), int):
        model["unk_id"] = new[model["unk_id"]]
    return model


_RENUMBER: Mapping[str, Callable[[TokenizerJson, Mapping[int, int]], dict[str, Any]]] = {
    "BPE": _bpe,
    "WordPiece": _table,
    "WordLevel": _table,
    "Unigram": _unigram,
}


def _renumbered_template(processor: Any, new: Mapping[int, int]) -> Any:
    """A post-processor with its special tokens' ids: templates, BERT's and RoBERTa's pairs."""
    if not isinstance(processor, dict):
        return processor
    result = dict(processor)
    if isinstance(processor.get("processors"), list):
        result["processors"] = [_renumbered_template(p, new) for p in processor["processors"]]
    if isinstance(processor.get("special_tokens"), dict):
        result["special_tokens"] = {
            text: {**entry, "ids": [new[number] for number in entry["ids"]]}
            for text, entry in processor["special_tokens"].items()
        }
    for role in ("cls", "sep"):
        pair = processor.get(role)
        if isinstance(pair, list) and len(pair) == 2 and pair[1] in new:
            result[role] = [pair[0], new[pair[1]]]
    return result
