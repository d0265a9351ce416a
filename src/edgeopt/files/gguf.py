"""GGUF, versions 2 and 3: a bounded reader, little-endian.

Every count is held against the bytes that are left before anything is made of it; arrays of the
metadata (a vocabulary has hundreds of thousands of strings) are stepped over and decoded only when
asked for. Tensors are known by name, shape, type and place; their data is mapped.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from edgeopt.core import Source, Weight
from edgeopt.errors import FormatError
from edgeopt.files.gguf_types import PLAIN_TYPES, REMOVED_TYPES, TYPES, GgmlType
from edgeopt.files.reading import FileBytes, checked_shape, plain_reader
from edgeopt.files.roles import role_of

__all__ = ["Header", "MetadataArray", "TensorInfo", "Value", "describe", "matches", "read_header"]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
_MAX_DIMS = 4
_MAX_NAME = 65_535
_MAX_NESTING = 4
#: Strings (and arrays in arrays) in the metadata, all together; large vocabularies have 10**6.
_MAX_STRINGS = 1 << 22
#: Strings and arrays up to these sizes are repeated in ``Source.details``.
_SHOWN_STRING, _SHOWN_ARRAY = 256, 16

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
class Header:
    """Everything before the data. ``types`` says how each metadata value is stored."""

    version: int
    alignment: int
    metadata: Mapping[str, Value]
    types: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    data_offset: int


def matches(path: Path, head: bytes) -> bool:
    return head.startswith(MAGIC)


def describe(path: Path) -> Source:
    """Describe every tensor without reading any. FormatError where the file breaks the format.

    Plain types have numpy's names, block types their own (``Q4_K``); rows of block types are their
    bytes, uint8 ``[rows, bytes per row]``. ``details``:

    - ``version``, ``alignment``, ``architecture``; ``header_bytes``: all before the data
    - ``metadata``: numbers and short strings as they are; arrays as their type and count, long
      strings (a chat template) as their length. :func:`read_header` gives all values.
    - ``types``: tensors by type; ``split``: None, or (number, count) of a model in several files
    - ``quantized``: whether any tensor has a block type
    """
    file = FileBytes(path)
    header = _Reader(file).header()
    weights = tuple(
        Weight(
            name=info.name,
            shape=info.shape,
            dtype=PLAIN_TYPES.get(info.type.name, info.type.name),
            nbytes=info.nbytes,
            reader=_rows(file, info, header.data_offset + info.offset),
            role=role_of(info.name, PLAIN_TYPES.get(info.type.name, info.type.name)),
        )
        for info in header.tensors
    )
    types: dict[str, int] = {}
    for info in header.tensors:
        types[info.type.name] = types.get(info.type.name, 0) + 1
    parts = header.metadata.get("split.count", 1)
    return Source(
        path=path,
        kind="gguf",
        files=(path,),
        nbytes=file.size,
        weights=weights,
        details={
            "version": header.version,
            "alignment": header.alignment,
            "architecture": header.metadata.get("general.architecture"),
            "header_bytes": header.data_offset,
            "metadata": {key: _shown(value) for key, value in header.metadata.items()},
            "types": types,
            "split": (header.metadata.get("split.no"), parts) if parts != 1 else None,
            "quantized": any(name not in PLAIN_TYPES for name in types),
        },
    )


def read_header(path: Path) -> Header:
    """All that stands before the data, with every metadata value. Raises FormatError."""
    return _Reader(FileBytes(path)).header()


def _shown(value: Value) -> Any:
    """A metadata value as a report can show it."""
    if isinstance(value, MetadataArray):
        if value.count <= _SHOWN_ARRAY and value.type not in ("string", "array"):
            return value.values().tolist()
        return {"array": value.type, "count": value.count}
    if isinstance(value, bytes) or (isinstance(value, str) and len(value) > _SHOWN_STRING):
        raw = value if isinstance(value, bytes) else value.encode()
        return {"string": "not UTF-8" if isinstance(value, bytes) else "long", "bytes": len(raw)}
    return value


def _rows(file: FileBytes, info: TensorInfo, offset: int) -> Callable[[int, int], NDArray[Any]]:
    plain = PLAIN_TYPES.get(info.type.name)
    if plain is not None:
        return plain_reader(file, offset, info.shape, plain)
    # A row of blocks is a row of bytes; a lone row is sliced by whole blocks.
    row_bytes = info.type.row_bytes(info.shape[-1])
    if len(info.shape) > 1:
        return plain_reader(file, offset, (*info.shape[:-1], row_bytes), "uint8")
    whole = plain_reader(file, offset, (row_bytes,), "uint8")
    block, size = info.type.block, info.type.nbytes

    def read(lo: int, hi: int) -> NDArray[Any]:
        if lo % block or hi % block:
            raise IndexError(f"{lo}:{hi} cuts a {info.type.name} block of {block} values")
        return whole(lo // block * size, hi // block * size)

    return read


# ---------------------------------------------------------------------------------------------
# the header


class _Reader:
    """A place in the file, and what is left of it."""

    def __init__(self, file: FileBytes) -> None:
        self.file = file
        self.path = file.path
        self.map: mmap.mmap = file.mapped()
        self.at = 0
        self.strings = 0

    def header(self) -> Header:
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
        return Header(version, alignment, metadata, types, tuple(infos), data)

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
        self.strings += count
        if self.strings > _MAX_STRINGS:
            raise self.wrong(f"more than {_MAX_STRINGS} strings in the metadata", what, start)
        if kind == _ARRAY:
            if depth >= _MAX_NESTING:
                raise self.wrong(f"arrays nested more than {_MAX_NESTING} deep", what, start)
            inner = [self.array(what, depth + 1) for _ in range(count)]
            return MetadataArray("array", count, start, lambda: [a.values() for a in inner])
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
