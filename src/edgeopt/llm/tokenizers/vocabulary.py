"""The table of tokens as GGUF holds it: a text, a type and a score for every row of the embedding.

Types and keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from edgeopt.errors import FormatError, SourceError
from edgeopt.files.gguf_write import Field, array
from edgeopt.files.text import one_line
from edgeopt.llm.tokenizers.folder import AddedToken

__all__ = ["SPACE", "TokenType", "Vocabulary"]

#: U+2581, what SentencePiece writes for a space.
SPACE = "\u2581"

#: Scores of what is never made by merging: llama.cpp's converters write the same.
_ADDED_SCORE = -1000.0
_PAD_SCORE = -10000.0

#: Added tokens that steer the model although their file does not call them special.
_STEERING = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})
_STEERING_ENDS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


class TokenType(IntEnum):
    """GGUF's (and SentencePiece's) numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """``n_vocab`` tokens, each text once: llama.cpp ends the process where two are the same."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.texts: list[str | None] = [None] * n_vocab
        self.types = [TokenType.UNUSED] * n_vocab
        self.scores = [_PAD_SCORE] * n_vocab
        self.added: set[int] = set()
        self._ids: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def id_of(self, text: str) -> int | None:
        """The number of a token, by the text under which it was put."""
        return self._ids.get(text)

    def put(self, number: int, text: str, kind: TokenType, path: Path, score: float = 0.0) -> None:
        """Set a token that has not been set. FormatError or SourceError where it cannot be."""
        self._require_room(number, text, path)
        before = self.texts[number]
        if before is not None:
            raise FormatError(
                path, f"id {number} is both {_shown(before)} and {_shown(text)}", field="vocabulary"
            )
        self._set(number, text, kind, path, score)

    def add(self, token: AddedToken) -> None:
        """Set an added token, in place of what has had its number."""
        self._require_room(token.id, token.text, token.path)
        text = token.text
        steers = token.special or _steers(text)
        kind = TokenType.CONTROL if steers else TokenType.USER_DEFINED
        before = self.texts[token.id]
        if before is not None:
            if self.types[token.id] is TokenType.UNKNOWN and before == text:
                kind = TokenType.UNKNOWN
            del self._ids[before]
        self._set(token.id, text, kind, token.path, _ADDED_SCORE)
        self.added.add(token.id)

    def respell(self, spell: dict[int, str], path: Path) -> None:
        """Give tokens the texts that llama.cpp looks for; :meth:`id_of` knows the old ones."""
        for number, text in spell.items():
            self.texts[number] = text
        seen: dict[str, int] = {}
        for number, text_now in enumerate(self.texts):
            if text_now is not None and seen.setdefault(text_now, number) != number:
                raise FormatError(
                    path,
                    f"ids {seen[text_now]} and {number} are both {_shown(text_now)} in GGUF",
                    field="vocabulary",
                )

    def fields(self, *, scores: bool) -> dict[str, Field]:
        """``tokens``, ``token_type`` and ``scores``; rows without a token become unused ones."""
        taken = {text for text in self.texts if text is not None}
        texts = []
        for number, text in enumerate(self.texts):
            if text is None:
                text = f"[PAD{number}]"
                while text in taken:
                    text += "_"
            texts.append(text)
        found = {"tokenizer.ggml.tokens": array("string", texts)}
        if scores:
            found["tokenizer.ggml.scores"] = array("float32", self.scores)
        found["tokenizer.ggml.token_type"] = array("int32", self.types)
        return found

    def normal(self) -> Iterable[tuple[int, str]]:
        """Ordinary tokens, by number."""
        for number, text in enumerate(self.texts):
            if text is not None and self.types[number] is TokenType.NORMAL:
                yield number, text

    def _set(self, number: int, text: str, kind: TokenType, path: Path, score: float) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise FormatError(
                path, f"token {number}, {_shown(text)}, is no valid Unicode", field="vocabulary"
            ) from error
        other = self._ids.setdefault(text, number)
        if other != number:
            raise FormatError(
                path,
                f"{_shown(text)} has the ids {other} and {number}: remove one of them",
                field="vocabulary",
            )
        self.texts[number] = text
        self.types[number] = kind
        self.scores[number] = score

    def _require_room(self, number: int, text: str, path: Path) -> None:
        if number >= self.n_vocab:
            raise SourceError(
                f"{path}: token {_shown(text)} has id {number}, the embedding has "
                f"{self.n_vocab} rows: the tokenizer is of another model, or the embedding was "
                "not resized (model.resize_token_embeddings) when tokens were added"
            )


def _steers(text: str) -> bool:
    return text in _STEERING or any(
        text.startswith(first) and text.endswith(last) for first, last in _STEERING_ENDS
    )


def _shown(text: str) -> str:
    return repr(one_line(text, 60))
