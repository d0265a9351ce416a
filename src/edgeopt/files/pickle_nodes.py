"""What stands in a pickle's object tree for everything that is not plain data."""

from __future__ import annotations

from typing import Any

from edgeopt.files.reading import Buffer

__all__ = ["BadObject", "Global", "Opaque", "StoredBytes"]


class BadObject(ValueError):
    """A known constructor was given arguments it cannot take; becomes a FormatError."""


class Global:
    """A name that the pickle asked to import: ``torch.float32``, ``posix.system``."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Global({self.name!r})"


class Opaque:
    """An object of a class that is not ours to build: what the file says of it, inert.

    ``name`` is the class or function, ``args`` what it was to be called with, ``state`` what its
    ``__setstate__`` would get, ``items`` and ``elements`` what was set and appended.
    """

    __slots__ = ("args", "elements", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: dict[Any, Any] | None = None
        self.elements: list[Any] | None = None

    def __repr__(self) -> str:
        return f"Opaque({self.name!r})"


class StoredBytes:
    """A long string or bytes object, left in the file. ``text`` says it was a string."""

    __slots__ = ("buffer", "end", "latin1", "start", "text")

    def __init__(self, buffer: Buffer, start: int, end: int, text: bool) -> None:
        self.buffer, self.start, self.end, self.text = buffer, start, end, text
        self.latin1 = False

    def __len__(self) -> int:
        return self.end - self.start

    def read(self) -> bytes:
        """Its bytes; a string that stands for bytes (protocol 2) is turned back into them."""
        raw = bytes(self.buffer[self.start : self.end])
        return raw.decode("utf-8").encode("latin-1") if self.latin1 else raw
