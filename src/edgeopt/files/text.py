"""Names from a file, as they may stand in a message."""

from __future__ import annotations

__all__ = ["one_line"]


def one_line(text: str, limit: int = 200) -> str:
    """``text`` on one line, at most ``limit`` letters, with nothing in it that moves a cursor."""
    short = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in short)
