"""What stands before the data of a GGUF file: metadata and tensor infos, read within bounds.

Every count is held against the bytes that are left before anything is made of it; arrays of the
metadata (a vocabulary has hundreds of thousands of strings) are stepped over and decoded only when
asked for.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from edgeopt.core.ggml import REMOVED_TYPES, TYPES, GgmlType
from edgeopt.errors import FormatError
from edgeopt.files.reading import FileBytes, checked_shape

__all__ = [
    "MAGIC",
    "GgufHeader",
    "MetadataArray",
    "TensorInfo",
    "Value",
    "header_of",
    "read_header",
]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
_MAX_DIMS = 4
_MAX_NAME = 65_535
_MAX_NESTING = 4
#: Strings in the metadata, all together; large vocabularies have 10**6.
_MAX_STRINGS = 1 << 22
#: Arrays inside arrays, all together; nobody is known to write any.
_MAX_ARRAYS = 1 << 16
#: Metadata value types with a fixed size: number -> (name, struct format).
_SCALARS: Mapping[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_STRING, _ARRAY = 8, 9
_TYPE_NAMES = {**{n: name for n, (name, _) in _SCALARS.items()}, _STRING: "string", _ARRAY: "array"}

#: What well-known keys must hold: llama.cpp reads them without a second look.
_EXPECTED: Mapping[str, str] = {
    "general.alignment": "uint32",
    "general.architecture": "string",
    "tokenizer.ggml.model": "string",
    "tokenizer.chat_template": "string",
    "tokenizer.ggml.tokens": "array of string",
    "tokenizer.ggml.merges": "array of string",
    "tokenizer.ggml.scores": "array of float32",
    "tokenizer.ggml.token_type": "array of int32",
}


@dataclass(frozen=True)
class MetadataArray:
    """An array of the metadata: what it holds is known, the values wait in the file.

    ``type`` is the format's name (``string``, ``float32``, ``array``, ...).
    """

    type: str
    count: int
    offset: int
    _values: Callable[[], Any] = field(repr=False, compare=False)

    def values(self) -> Any:
        """A numpy array for numbers, a list of str (bytes where not UTF-8) for strings."""
        return self._values()


Value: TypeAlias = "int | float | bool | str | bytes | MetadataArray"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header has it: ``shape`` in numpy's order (rows first)."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the data. ``types`` says how each metadata value is stored."""

    version: int
    alignment: int
    metadata: Mapping[str, Value]
    types: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    data_offset: int


def read_header(path: Path) -> GgufHeader:
    """All that stands before the data, with every metadata value. Raises FormatError."""
    return header_of(FileBytes(path))


def header_of(file: FileBytes) -> GgufHeader:
    """:func:`read_header` of a file that is already known."""
    return _HeaderReader(file).header()


# ---------------------------------------------------------------------------------------------
# the header


class _HeaderReader:
    """A place in the file, and what is left of it."""

    def __init__(self, file: FileBytes) -> None:
        self.file = file
        self.path = file.path
        self.map: mmap.mmap = file.mapped()
        self.at = 0
        self.strings = 0
        self.arrays = 0

    def header(self) -> GgufHeader:
        if self.map[:4] != MAGIC:
            raise self.wrong("does not begin with GGUF", "magic", 0)
        self.at = 4
        version = self.number("I", "version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in _VERSIONS:
                raise self.wrong(
                    "is big-endian; edgeopt reads little-endian files (convert it with "
                    "gguf_convert_endian.py)",
                    "version",
                    4,
                )
            raise self.wrong(f"version {version}, edgeopt reads 2 and 3", "version", 4)
        tensors = self.number("Q", "tensor count")
        pairs = self.number("Q", "metadata count")
        # The least that a tensor (name length, dimensions, type, offset) or a pair can take.
        self.require(tensors, 24, "tensor count", 8)
        self.require(pairs, 13, "metadata count", 16)
        metadata, types = self.metadata(pairs)
        alignment = self.alignment(metadata)
        infos = [self.tensor(alignment) for _ in range(tensors)]
        data = self.at + (-self.at % alignment)
        self.check_places(infos, data)
        return GgufHeader(version, alignment, metadata, types, tuple(infos), data)

    def metadata(self, count: int) -> tuple[dict[str, Value], dict[str, str]]:
        values: dict[str, Value] = {}
        types: dict[str, str] = {}
        for _ in range(count):
            start = self.at
            key = self.name("metadata key")
            if key in values:
                raise self.wrong("is there twice", f"metadata {key!r}", start)
            what = f"metadata {key!r}"
            kind = self.number("I", what)
            values[key] = value = self.value(kind, what)
            types[key] = _TYPE_NAMES[kind]
            if isinstance(value, MetadataArray):
                types[key] += f" of {value.type}"
            expected = _EXPECTED.get(key, types[key])
            if types[key] != expected:
                raise self.wrong(f"is {types[key]}, it must be {expected}", what, start)
        return values, types

    def value(self, kind: int, what: str) -> Value:
        if kind in _SCALARS:
            number: int | float | bool = self.number(_SCALARS[kind][1], what)
            return number
        if kind == _STRING:
            return _text(self.string(what, self.left))
        if kind == _ARRAY:
            return self.array(what, depth=1)
        raise self.wrong(f"value type {kind} is none that GGUF has", what, self.at - 4)

    def array(self, what: str, depth: int) -> MetadataArray:
        """Step over an array; its values are read when somebody asks."""
        start = self.at
        kind = self.number("I", what)
        count = self.number("Q", what)
        if kind in _SCALARS:
            name, code = _SCALARS[kind]
            self.require(count, struct.calcsize(code), what, start)
            first, nbytes = self.at, count * struct.calcsize(code)
            self.at += nbytes
            # A bool of 2 would be no bool in numpy either.
            dtype = "uint8" if name == "bool" else name
            return MetadataArray(
                name, count, start, lambda: self.file.view(first, nbytes).view(dtype)
            )
        if kind not in (_STRING, _ARRAY):
            raise self.wrong(f"array of type {kind}, which is none that GGUF has", what, start)
        self.require(count, 8 if kind == _STRING else 12, what, start)
        if kind == _ARRAY:
            self.arrays += count
            if self.arrays > _MAX_ARRAYS:
                raise self.wrong(f"more than {_MAX_ARRAYS} arrays inside arrays", what, start)
            if depth >= _MAX_NESTING:
                raise self.wrong(f"arrays nested more than {_MAX_NESTING} deep", what, start)
            inner = [self.array(what, depth + 1) for _ in range(count)]
            return MetadataArray("array", count, start, lambda: [a.values() for a in inner])
        self.strings += count
        if self.strings > _MAX_STRINGS:
            raise self.wrong(f"more than {_MAX_STRINGS} strings in the metadata", what, start)
        first = self.at
        self.skip_strings(count, what)
        return MetadataArray("string", count, start, lambda: self.read_strings(first, count))

    def alignment(self, metadata: Mapping[str, Value]) -> int:
        value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        assert isinstance(value, int)  # _EXPECTED saw to it
        if not 8 <= value <= _MAX_ALIGNMENT or value & (value - 1):
            raise self.wrong(
                f"alignment {value} is no power of two from 8 to {_MAX_ALIGNMENT}",
                "general.alignment",
                None,
            )
        return value

    def tensor(self, alignment: int) -> TensorInfo:
        start = self.at
        name = self.name("tensor name")
        what = f"tensor {name!r}"
        rank = self.number("I", what)
        if rank > _MAX_DIMS:
            raise self.wrong(f"{rank} dimensions, GGUF has at most {_MAX_DIMS}", what, start)
        dims = [int(self.number("Q", what)) for _ in range(rank)]
        kind = self.number("I", what)
        if kind in REMOVED_TYPES:
            raise self.wrong(
                f"type {kind} ({REMOVED_TYPES[kind]}) is no longer part of GGUF; "
                "quantize the model again",
                what,
                start,
            )
        if kind not in TYPES:
            raise self.wrong(f"type {kind} is none that edgeopt knows", what, start)
        ggml = TYPES[kind]
        problem = checked_shape(dims, 64)
        if problem:
            raise self.wrong(problem, what, start)
        shape = tuple(reversed(dims))
        row = shape[-1] if shape else 1
        if row % ggml.block:
            raise self.wrong(
                f"rows of {row} values are no whole number of {ggml.name} blocks of {ggml.block}",
                what,
                start,
            )
        offset = self.number("Q", what)
        if offset % alignment:
            raise self.wrong(f"offset {offset} is no multiple of {alignment}", what, start)
        return TensorInfo(name, shape, ggml, offset, ggml.tensor_bytes(shape))

    def check_places(self, infos: list[TensorInfo], data: int) -> None:
        """Names are unique, and data lies inside the file without overlap."""
        names: set[str] = set()
        for info in infos:
            if info.name in names:
                raise self.wrong("is there twice", f"tensor {info.name!r}", None)
            names.add(info.name)
        end = 0
        for info in sorted(infos, key=lambda info: (info.offset, info.nbytes)):
            what = f"tensor {info.name!r}"
            if data + info.offset + info.nbytes > self.file.size:
                raise self.wrong(
                    f"{info.nbytes} bytes at {info.offset} of the data reach past the end of the "
                    f"file ({self.file.size} bytes): cut short?",
                    what,
                    None,
                )
            if info.offset < end and info.nbytes:
                raise self.wrong(
                    f"overlaps the tensor before it, which ends at {end} of the data", what, None
                )
            end = max(end, info.offset + info.nbytes)

    # -- primitives

    @property
    def left(self) -> int:
        return self.file.size - self.at

    def wrong(self, problem: str, what: str, offset: int | None) -> FormatError:
        return FormatError(self.path, problem, field=what[:200], offset=offset)

    def require(self, count: int, each: int, what: str, offset: int) -> None:
        if count * each > self.left:
            raise self.wrong(
                f"{count} of them take {each} bytes each or more, {self.left} are left: "
                "the file is cut short or damaged",
                what,
                offset,
            )

    def number(self, code: str, what: str) -> Any:
        size = struct.calcsize(f"<{code}")
        self.require(1, size, what, self.at)
        (value,) = struct.unpack_from(f"<{code}", self.map, self.at)
        self.at += size
        return value

    def string(self, what: str, limit: int) -> bytes:
        start = self.at
        length = self.number("Q", what)
        if length > min(limit, self.left):
            raise self.wrong(
                f"string of {length} bytes, the limit here is {min(limit, self.left)}", what, start
            )
        value = self.map[self.at : self.at + length]
        self.at += length
        return value

    def name(self, what: str) -> str:
        start = self.at
        try:
            name = self.string(what, _MAX_NAME).decode()
        except UnicodeDecodeError as error:
            raise self.wrong("is not UTF-8", what, start) from error
        return name

    def skip_strings(self, count: int, what: str) -> None:
        """Step over strings; a vocabulary has many, so nothing but their lengths is looked at."""
        length_at = struct.Struct("<Q").unpack_from
        buffer, at, last = self.map, self.at, self.file.size - 8
        for _ in range(count):
            if at > last:
                raise self.wrong("ends inside its strings: the file is cut short", what, self.at)
            at += 8 + length_at(buffer, at)[0]
        if at > self.file.size:
            raise self.wrong("has a string longer than the file", what, self.at)
        self.at = at

    def read_strings(self, at: int, count: int) -> list[str | bytes]:
        texts: list[str | bytes] = []
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", self.map, at)
            texts.append(_text(self.map[at + 8 : at + 8 + length]))
            at += 8 + length
        return texts


def _text(raw: bytes) -> str | bytes:
    """Text where it is text; whatever else a file puts in a string stays bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw
