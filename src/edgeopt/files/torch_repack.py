"""A private copy of an exported program, with nothing in it that was not examined."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgeopt.core.calls import checked
from edgeopt.errors import UnsafeError
from edgeopt.files import torch_exported
from edgeopt.files.reading import FileBytes
from edgeopt.files.torch_plain import dimensions, pack
from edgeopt.files.torch_program import NotPlainError
from edgeopt.files.torch_zip import Archive
from edgeopt.files.zip_records import ZipRecords

__all__ = ["PlainProgram", "plain_program", "repack"]

#: A copy this large, in bytes, is made on disk.
_IN_MEMORY = 32 << 20


@dataclass(frozen=True)
class PlainProgram:
    """An archive for ``torch.export.load``, at its beginning. ``dimensions`` are shapes by input,
    with names for free dimensions, where the file tells any."""

    stream: IO[bytes]
    dimensions: Mapping[str, tuple[int | str, ...]]


@checked
@contextmanager
def plain_program(path: str | os.PathLike[str]) -> Iterator[PlainProgram]:
    """A copy of an exported program (``.pt2``) that torch loads without running code of the file.

    Nothing is in it that was not examined, and no pickle at all; see
    :mod:`edgeopt.files.torch_plain`. The copy belongs to nobody else and is gone afterwards.

    Raises UnsafeError where the file carries what could run code, FormatError where it is damaged.
    """
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spooled:
        stream: Any = spooled
        extra = repack(Path(path), stream)
        stream.seek(0)
        yield PlainProgram(stream, dimensions(extra))


def repack(path: Path, stream: IO[bytes], extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write the examined program to ``stream``, with ``extra`` beside it (by default what edgeopt
    had put there); returns that. Raises as :func:`plain_program` does."""
    file = FileBytes(path)
    try:
        found = torch_exported.examined(path, file, ZipRecords(file), Archive)
    except NotPlainError as reason:
        raise UnsafeError(
            f"{path}: not a plain exported program: {reason}; loading it could run code that it "
            "carries; give --trust-pickle if you trust it"
        ) from None
    beside = dict(found.extra if extra is None else extra)
    pack(found, stream, beside)
    return beside
