"""Text files, read as often as is needed and never whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeopt.errors import InputsError
from edgeopt.files.reading import open_regular, reading

__all__ = ["Corpus"]


class Corpus:
    """Pieces of UTF-8 text files of about ``size`` bytes, cut at the ends of lines.

    Raises SourceError where a file cannot be read, InputsError where it is not UTF-8.
    """

    def __init__(self, paths: Sequence[Path], size: int = 1 << 16) -> None:
        self.paths = tuple(paths)
        self.size = size

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            yield from self._pieces(path)

    def _pieces(self, path: Path) -> Iterator[str]:
        lines: list[str] = []
        offset = held = 0
        with reading(path), open_regular(path) as stream:
            for line in stream:
                try:
                    lines.append(line.decode())
                except UnicodeDecodeError as error:
                    raise InputsError(
                        f"{path}: is not UTF-8 at byte {offset + error.start}; "
                        "convert it, for example with iconv -t utf-8"
                    ) from None
                offset += len(line)
                held += len(line)
                if held >= self.size:
                    yield "".join(lines)
                    lines, held = [], 0
        if lines:
            yield "".join(lines)
