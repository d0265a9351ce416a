"""A file's digest inside the file itself: found again wherever the file goes, without its plan.

The digest is a string of 64 hexadecimal digits in the format's own metadata, under :data:`KEY`. It
is the SHA-256 of the whole file with 64 zeros where the digest stands, followed by the file of
weights beside it where there is one. The zeros are written first, so the place is there when the
digest is known, and the file need not be written twice.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["KEY", "UNSEALED", "digest_without", "is_digest", "seal"]

#: The metadata's key.
KEY = "edgeopt.sha256"

#: What stands under it until the file is written.
UNSEALED = "0" * 64

#: The key, what a format has between a key and its value, and the value as it is before sealing.
_PLACE = re.compile(rb"edgeopt\.sha256[^0-9a-f]{1,12}?(0{64})", re.DOTALL)

_CHUNK = 1 << 22


def seal(path: Path, beside: Sequence[Path] = ()) -> None:
    """Put the digest of ``path`` (and of the files ``beside`` it) where its zeros are.

    A file that has no such place is left as it is.
    """
    with path.open("r+b") as stream:
        if not path.stat().st_size:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
            places = [match.start(1) for match in _PLACE.finditer(view)]
        if not places:
            return
        # safetensors has its metadata first and ONNX last; numbers lie after or before it
        at = places[0] if path.suffix == ".safetensors" else places[-1]
        found = digest_without(path, UNSEALED, beside)
        stream.seek(at)
        stream.write(found.encode())


def is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def digest_without(path: Path, value: str, beside: Sequence[Path] = ()) -> str:
    """SHA-256 of ``path`` with zeros for ``value``, then of the files ``beside`` it. OSError."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        begin = 0
        for at in _places(view, value.encode()) if value != UNSEALED else ():
            _feed(digest, view, begin, at)
            digest.update(UNSEALED.encode())
            begin = at + len(UNSEALED)
        _feed(digest, view, begin, len(view))
    for other in beside:
        with other.open("rb") as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
    return digest.hexdigest()


def _places(view: mmap.mmap, value: bytes) -> Iterator[int]:
    at = view.find(value)
    while at >= 0:
        yield at
        at = view.find(value, at + len(value))


def _feed(digest: hashlib._Hash, view: mmap.mmap, begin: int, end: int) -> None:
    for at in range(begin, end, _CHUNK):
        digest.update(view[at : min(at + _CHUNK, end)])
