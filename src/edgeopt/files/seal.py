"""A digest inside the file that it is of: SHA-256 of all bytes, its own 64 digits read as zeros.

One rule for ONNX, GGUF and safetensors. Each has room for strings, so the key stands there, with 64
zeros while the file is written; then the digits take their place. Where a second file belongs to
the first (``model.onnx.data``), its bytes follow in the digest. The file is never parsed: whatever
was damaged, header included, the digits are found by their key or missed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

__all__ = ["BLANK", "SEAL", "Seal", "read_seal", "seal"]

#: The key under which the digest stands: a metadata key of the format.
SEAL = "edgeopt.sha256"

#: What stands there before, and what is read there.
BLANK = "0" * 64

#: The key, what the format puts between key and value, and the value.
_PLACE = re.compile(rb"edgeopt\.sha256[^0-9a-f]{1,24}([0-9a-f]{64})(?![0-9a-f])", re.DOTALL)

#: Other words that edgeopt alone writes into its files: its own description of the artifact.
_OURS = re.compile(
    rb'edgeopt\.(?:source_|plan_)?sha256|edgeopt_(?:packed|sparse|pruned)|"edgeopt\\?": \\?"'
)

#: Places that are tried in one file: more than one stands there in hostile files alone.
_MOST = 4

_PIECE = 1 << 20

#: More bytes than the key, what follows it and the digits take.
_LONGEST = 256

#: Bytes at either end of a file in which the key is looked for: metadata stand before the weights
#: in GGUF and safetensors, behind them in ONNX.
_ENDS = 64 << 20


class Seal:
    """What a file says of its own bytes.

    Attributes:
        written: the digits in the file; None where there are none.
        found: the digits that its bytes come to now; None where there are none to read as zeros.
        ours: whether the file has other words in it that edgeopt writes.
    """

    def __init__(self, written: str | None, found: str | None, ours: bool) -> None:
        self.written = written
        self.found = found
        self.ours = ours

    @property
    def whole(self) -> bool:
        return self.written is not None and self.written == self.found


def seal(path: Path, beside: Sequence[Path] = ()) -> str:
    """Put the digest of ``path`` (and of the files ``beside`` it, in order) in its place in it.

    Raises ValueError where the file has no such place.
    """
    with path.open("r+b") as stream:
        places = [at for at, written in _places(stream)[0] if written == BLANK]
        if not places:
            raise ValueError(f"{path}: no place for {SEAL}")
        digits = _digest(stream, places[-1], beside)
        stream.seek(places[-1])
        stream.write(digits.encode())
    return digits


def read_seal(path: Path, beside: Sequence[Path] = ()) -> Seal:
    """Hold a file against its own digest. OSError where it, or one beside it, cannot be read."""
    with path.open("rb") as stream:
        places, ours = _places(stream)
        written = found = None
        for at, written in reversed(places):
            if (found := _digest(stream, at, beside)) == written:
                break
    return Seal(written, found, ours)


def _places(stream: BinaryIO) -> tuple[list[tuple[int, str]], bool]:
    """Every place where digits of this key stand, with them; whether any word is edgeopt's."""
    size = stream.seek(0, os.SEEK_END)
    spans = [(0, size)] if size <= 2 * _ENDS else [(0, _ENDS), (size - _ENDS, size)]
    places, ours = [], False
    for lo, hi in spans:
        for at in range(lo, hi, _PIECE):
            # A little over the piece's end: what begins in it may end behind it.
            stream.seek(at)
            body = stream.read(min(_PIECE + _LONGEST, hi - at))
            found = [m for m in _PLACE.finditer(body) if m.start() < _PIECE]
            places += [(at + m.start(1), m.group(1).decode()) for m in found]
            ours = ours or bool(found) or _OURS.search(body) is not None
    return places[-_MOST:], ours


def _digest(stream: BinaryIO, place: int, beside: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    stream.seek(0)
    _add(whole, stream, place)
    whole.update(BLANK.encode())
    stream.seek(place + len(BLANK))
    _add(whole, stream)
    for path in beside:
        with path.open("rb") as other:
            _add(whole, other)
    return whole.hexdigest()


def _add(whole: hashlib._Hash, stream: BinaryIO, nbytes: int | None = None) -> None:
    while piece := stream.read(_PIECE if nbytes is None else min(_PIECE, nbytes)):
        whole.update(piece)
        nbytes = None if nbytes is None else nbytes - len(piece)
