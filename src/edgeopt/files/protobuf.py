"""The protobuf wire format, walked in place: which fields lie where. Nothing is built or copied.

Encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from edgeopt.errors import FormatError, SourceError
from edgeopt.files.reading import Buffer, FileBytes

__all__ = ["FIXED32", "FIXED64", "LENGTH", "VARINT", "WireField", "fields", "top_level"]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}

#: (field number, wire type, value of a varint or first byte of the payload, end of the payload)
WireField: TypeAlias = tuple[int, int, int, int]


def fields(buffer: Buffer, lo: int, hi: int, path: Path) -> Iterator[WireField]:
    """The fields of the message at bytes ``lo:hi``, in order; FormatError where it breaks."""
    position = lo
    while position < hi:
        start = position
        tag, position = _varint(buffer, position, hi, path)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise FormatError(path, "field number 0", field="protobuf", offset=start)
        if wire == VARINT:
            value, position = _varint(buffer, position, hi, path)
            yield number, wire, value, position
            continue
        if wire == LENGTH:
            length, position = _varint(buffer, position, hi, path)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise FormatError(path, f"wire type {wire}", field="protobuf", offset=start)
        if length > hi - position:
            raise FormatError(
                path,
                f"field {number} takes {length} bytes, {hi - position} are left: "
                "the file is cut short or damaged",
                field="protobuf",
                offset=start,
            )
        yield number, wire, position, position + length
        position += length


def _varint(buffer: Buffer, position: int, hi: int, path: Path) -> tuple[int, int]:
    value = shift = 0
    start = position
    while position < hi and shift < 70:
        byte = buffer[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
    problem = "a number of more than 10 bytes" if shift >= 70 else "ends inside a number"
    raise FormatError(path, problem, field="protobuf", offset=start)


def top_level(path: Path, limit: int = 256) -> tuple[list[tuple[int, int]], bool]:
    """((field number, wire type) of a file's first fields, whether they end where the file ends).

    For telling what a file is: damage ends the list, it is no error.
    """
    found: list[tuple[int, int]] = []
    file = FileBytes(path)
    try:
        for number, wire, _, _ in fields(file.mapped(), 0, file.size, path):
            found.append((number, wire))
            if len(found) == limit:
                return found, False
    except SourceError:
        return found, False
    return found, True
