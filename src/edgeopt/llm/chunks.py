"""A text as pieces of equally many tokens, however long the text is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import SourceError
from edgeopt.files.reading import open_regular, reading

__all__ = ["Chunk", "Specials", "token_chunks"]

#: Characters that are split into tokens at a time.
_PIECE = 1 << 20


@dataclass(frozen=True)
class Specials:
    """What a tokenizer puts before and after a text: ``(BOS,)`` and nothing, or CLS and SEP."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def of(cls, plain: Sequence[int], full: Sequence[int]) -> Specials:
        """From the tokens of one text without specials and with them."""
        size = len(plain)
        for start in range(len(full) - size + 1):
            if list(full[start : start + size]) == list(plain):
                return cls(tuple(full[:start]), tuple(full[start + size :]))
        return cls()


@dataclass(frozen=True)
class Chunk:
    """``tokens``, and how much of the text lies behind them (0 to 1, about)."""

    tokens: tuple[int, ...]
    done: float


def token_chunks(
    path: Path,
    tokenize: Callable[[str], Sequence[int]],
    size: int,
    specials: Specials,
) -> Iterator[Chunk]:
    """Pieces of ``size`` tokens of a text file, one after the other; what is left over is dropped.

    The text begins with the tokenizer's special tokens; in every later piece they take the first
    tokens' (and the last tokens') places, as llama.cpp does it. The text is read and split about
    a million characters at a time, cut at the ends of lines.

    ``tokenize`` gives a text's tokens without special ones. SourceError where the file cannot be
    read or is not UTF-8.
    """
    with reading(path), open_regular(path) as stream:
        total = max(1, path.stat().st_size)
        held: list[int] = list(specials.before)
        behind = 0.0
        for text in _texts(path, io.TextIOWrapper(stream, encoding="utf-8", newline="")):
            held += tokenize(text)
            read = min(1.0, stream.tell() / total)
            start = 0
            while len(held) - start >= size:
                tokens = _framed(held[start : start + size], specials)
                start += size
                yield Chunk(tokens, behind + (read - behind) * start / len(held))
            held, behind = held[start:], read


def _framed(tokens: list[int], specials: Specials) -> tuple[int, ...]:
    before, after = specials.before, specials.after
    middle = tokens[len(before) : len(tokens) - len(after)]
    return (*before, *middle, *after)


def _texts(path: Path, stream: io.TextIOWrapper) -> Iterator[str]:
    """The text in pieces that end where lines do."""
    rest = ""
    while True:
        try:
            piece = stream.read(_PIECE)
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: is not UTF-8 text ({error.reason})") from error
        if not piece:
            break
        text = rest + piece
        # A line may be longer than a piece: then it is cut where the piece ends.
        cut = text.rfind("\n") + 1 or len(text)
        rest = text[cut:]
        yield text[:cut]
    if rest:
        yield rest
