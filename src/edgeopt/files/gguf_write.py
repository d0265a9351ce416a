"""Writing GGUF 3 in one pass: the header first, then every tensor at its place, in any order.

Sizes are known from types and shapes alone, so the whole layout is fixed before a weight is read,
and rows can be written from several threads.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.ggml import TYPE_NUMBERS, TYPES_BY_NAME
from edgeopt.files.gguf_header import GgufHeader, MetadataArray

__all__ = [
    "ALIGNMENT",
    "Field",
    "GgufLayout",
    "GgufWriter",
    "Slot",
    "array",
    "boolean",
    "f32",
    "fields_of",
    "i32",
    "string",
    "u32",
    "u64",
    "writing_gguf",
]

ALIGNMENT = 32

_SCALARS: Mapping[str, tuple[int, str]] = {
    "uint8": (0, "B"),
    "int8": (1, "b"),
    "uint16": (2, "H"),
    "int16": (3, "h"),
    "uint32": (4, "I"),
    "int32": (5, "i"),
    "float32": (6, "f"),
    "bool": (7, "?"),
    "uint64": (10, "Q"),
    "int64": (11, "q"),
    "float64": (12, "d"),
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Field:
    """A metadata value with the type it is stored as: ``uint32``, ``string``, ``array``, ...

    ``of`` is the element type of an array. Strings are str, or bytes where they are not UTF-8.
    """

    type: str
    value: Any
    of: str = ""

    def encoded(self) -> bytes:
        """Type number and value, as they stand in the file. struct.error where out of range."""
        if self.type == "array":
            number = _STRING if self.of == "string" else _SCALARS[self.of][0]
            head = struct.pack("<IIQ", _ARRAY, number, len(self.value))
            return head + _elements(self.of, self.value)
        if self.type == "string":
            return struct.pack("<I", _STRING) + _string(self.value)
        number, code = _SCALARS[self.type]
        return struct.pack(f"<I{code}", number, self.value)


def _string(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def _elements(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "string":
        return b"".join(map(_string, values))
    dtype = {"bool": "?", "float32": "<f4", "float64": "<f8"}.get(kind)
    if dtype is None:
        # struct checks the range, which numpy's conversion would wrap
        return struct.pack(f"<{len(values)}{_SCALARS[kind][1]}", *(int(v) for v in values))
    return np.asarray(values, dtype).tobytes()


def u32(value: int) -> Field:
    return Field("uint32", value)


def i32(value: int) -> Field:
    return Field("int32", value)


def u64(value: int) -> Field:
    return Field("uint64", value)


def f32(value: float) -> Field:
    return Field("float32", value)


def boolean(value: bool) -> Field:
    return Field("bool", value)


def string(value: str | bytes) -> Field:
    return Field("string", value)


def array(of: str, values: Sequence[Any]) -> Field:
    return Field("array", values, of)


def fields_of(header: GgufHeader) -> dict[str, Field]:
    """The metadata of a file that was read, ready to be written again, in its order.

    ValueError, naming the key, for an array of arrays: llama.cpp does not load one.
    """
    fields = {}
    for key, value in header.metadata.items():
        if isinstance(value, MetadataArray):
            if value.type == "array":
                raise ValueError(f"metadata {key!r} is an array of arrays, which is not written")
            fields[key] = Field("array", value.values(), value.type)
        else:
            fields[key] = Field(header.types[key], value)
    return fields


@dataclass(frozen=True)
class Slot:
    """A tensor's place: ``shape`` rows first, ``offset`` from the beginning of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufLayout:
    """The whole file but the weights: ``header`` bytes, every tensor's place, the exact size."""

    header: bytes
    slots: tuple[Slot, ...]
    nbytes: int

    def place(self, key: str) -> tuple[int, int]:
        """Where the bytes of a string of the metadata begin, and how many they are."""
        at = self.header.index(_string(key) + struct.pack("<I", _STRING)) + len(key) + 12
        (length,) = struct.unpack_from("<Q", self.header, at)
        return at + 8, length

    @classmethod
    def of(
        cls,
        metadata: Mapping[str, Field],
        tensors: Sequence[tuple[str, Sequence[int], str]],
    ) -> GgufLayout:
        """Lay out ``(name, shape with rows first, type)`` in the order given.

        An alignment other than 32 is taken from ``general.alignment``.
        """
        alignment = int(metadata["general.alignment"].value) if _ALIGNED in metadata else ALIGNMENT
        infos, places, at = [], [], 0
        for name, shape, kind in tensors:
            nbytes = TYPES_BY_NAME[kind].tensor_bytes(shape)
            dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            infos.append(_string(name) + dims + struct.pack("<IQ", TYPE_NUMBERS[kind], at))
            places.append((at, nbytes))
            at += nbytes + (-nbytes % alignment)
        pairs = b"".join(_string(key) + field.encoded() for key, field in metadata.items())
        head = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(metadata)) + pairs
        head += b"".join(infos)
        head += bytes(-len(head) % alignment)
        slots = tuple(
            Slot(name, tuple(shape), kind, len(head) + offset, nbytes)
            for (name, shape, kind), (offset, nbytes) in zip(tensors, places, strict=True)
        )
        return cls(head, slots, len(head) + at)


_ALIGNED = "general.alignment"


class GgufWriter:
    """Puts rows at their places. Safe to call from several threads for different rows."""

    def __init__(self, descriptor: int, layout: GgufLayout) -> None:
        self._descriptor = descriptor
        self._layout = layout
        self._slots = {slot.name: slot for slot in layout.slots}

    def text(self, key: str, value: str) -> None:
        """Write a string of the metadata anew, in as many bytes as it had."""
        at, length = self._layout.place(key)
        raw = value.encode()
        if len(raw) != length:
            raise ValueError(f"{key}: {len(raw)} bytes where {length} are")
        os.pwrite(self._descriptor, raw, at)

    def put(self, name: str, row: int, raw: NDArray[np.uint8]) -> None:
        """Write encoded rows (uint8 ``[rows, bytes per row]``) from row ``row`` on."""
        slot = self._slots[name]
        rows = math.prod(slot.shape[:-1])
        per_row = slot.nbytes // rows if rows else 0
        at, end = slot.offset + row * per_row, slot.offset + slot.nbytes
        view = memoryview(np.ascontiguousarray(raw).data).cast("B")
        if at + len(view) > end:
            raise ValueError(f"{len(view)} bytes from row {row} reach past tensor {name!r}")
        while view:
            written = os.pwrite(self._descriptor, view, at)
            view, at = view[written:], at + written


@contextmanager
def writing_gguf(path: Path, layout: GgufLayout) -> Iterator[GgufWriter]:
    """Write ``layout`` to the existing file ``path`` (see :func:`edgeopt.files.atomic.writing`).

    The header and the padding are there at once; the caller puts every tensor's rows.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.truncate(descriptor, layout.nbytes)
        header = memoryview(layout.header)
        at = 0
        while header:
            written = os.pwrite(descriptor, header, at)
            header, at = header[written:], at + written
        yield GgufWriter(descriptor, layout)
    finally:
        os.close(descriptor)
