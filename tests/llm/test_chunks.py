"""A text in pieces: nothing is lost between them, and special tokens stand where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.errors import SourceError
from edgeopt.llm import chunks
from edgeopt.llm.chunks import Specials, token_chunks


def letters(text: str) -> list[int]:
    return [ord(c) for c in text]


def pieces(path: Path, size: int, specials: Specials = Specials()) -> list[tuple[int, ...]]:  # noqa: B008
    return [chunk.tokens for chunk in token_chunks(path, letters, size, specials)]


def test_pieces_follow_one_another_and_the_rest_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("abcdefgh")
    assert pieces(path, 3) == [tuple(b"abc"), tuple(b"def")]
    assert pieces(path, 9) == []
    assert [c.done for c in token_chunks(path, letters, 2, Specials())] == [0.25, 0.5, 0.75, 1.0]


def test_special_tokens_take_places_as_llama_cpp_does_it(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("abcdefgh")
    # It splits BOS + text, and then puts BOS in place of every piece's first token.
    assert pieces(path, 3, Specials((1,))) == [(1, *b"ab"), (1, *b"de"), (1, *b"gh")]
    assert pieces(path, 4, Specials((1,), (2,))) == [(1, *b"ab", 2), (1, *b"ef", 2)]


def test_specials_are_found_around_a_text() -> None:
    assert Specials.of([7], [1, 7, 2]) == Specials((1,), (2,))
    assert Specials.of([7, 8], [7, 8]) == Specials()
    assert Specials.of([7], [9]) == Specials()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab\né", max_size=200), piece=st.integers(1, 9))
def test_reading_in_pieces_changes_nothing(
    text: str, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    monkeypatch.setattr(chunks, "_PIECE", piece)
    seen = []

    def tokenize(part: str) -> list[int]:
        seen.append(part)
        return letters(part)

    found = list(token_chunks(path, tokenize, 1, Specials()))
    assert "".join(seen) == text
    assert [chunk.tokens[0] for chunk in found] == letters(text)
    done = [0.0, *(chunk.done for chunk in found), 1.0]
    assert done == sorted(done)
    # A cut in the middle of a line only where the line is longer than a piece.
    for part in seen[:-1]:
        assert part.endswith("\n") or len(part) >= piece


def test_what_is_no_text_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"abc\xff\xfe")
    with pytest.raises(SourceError, match="not UTF-8"):
        pieces(path, 1)
    with pytest.raises(SourceError, match="no such file"):
        pieces(tmp_path / "missing", 1)
