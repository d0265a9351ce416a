"""ONNX tensors where they lie: raw bytes, typed fields, or files beside the model."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS, Array, Weight, tensor_nbytes
from edgeopt.errors import FormatError
from edgeopt.files.protobuf import FIXED32, FIXED64, LENGTH, VARINT, fields
from edgeopt.files.reading import FileBytes, checked_shape, plain_reader
from edgeopt.files.roles import role_of

__all__ = ["DATA_TYPES", "OnnxTensors"]

RowReader: TypeAlias = Callable[[int, int], Array]

#: TensorProto.DataType -> dtype.
DATA_TYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4_e2m1fn",
    24: "float8_e8m0fnu",
    25: "uint2",
    26: "int2",
}

#: TensorProto's typed fields -> bytes of an element on the wire, None for varints.
_FLOAT, _INT32, _STRING, _INT64, _RAW, _DOUBLE, _UINT64 = 4, 5, 6, 7, 9, 10, 11
_WIDTHS: Mapping[int, int | None] = {
    _FLOAT: 4,
    _DOUBLE: 8,
    _INT32: None,
    _INT64: None,
    _UINT64: None,
}

#: dtype -> the typed field that holds its values; every other dtype uses int32_data.
_HOMES: Mapping[str, int] = {
    "float32": _FLOAT,
    "complex64": _FLOAT,
    "float64": _DOUBLE,
    "complex128": _DOUBLE,
    "int64": _INT64,
    "uint32": _UINT64,
    "uint64": _UINT64,
}

Span: TypeAlias = tuple[int, int]


@dataclass
class _Parts:
    """A TensorProto, as found."""

    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    name: str = ""
    raw: Span | None = None
    typed: dict[int, list[Span]] = field(default_factory=dict)
    strings: list[Span] = field(default_factory=list)
    external: dict[str, str] = field(default_factory=dict)
    location: int = 0


@dataclass
class OnnxTensors:
    """Describes the tensors of one model file; keeps track of the data files they use."""

    file: FileBytes
    #: data files by the location the model gives, and their bytes
    external: dict[str, int] = field(default_factory=dict)
    _opened: dict[str, FileBytes] = field(default_factory=dict)

    def external_files(self) -> tuple[Path, ...]:
        return tuple(self._opened[name].path for name in sorted(self._opened))

    def tensor(self, lo: int, hi: int) -> Weight:
        """The tensor at bytes ``lo:hi`` of the model, held against the bytes it has."""
        parts = self._parts(lo, hi)
        dtype = DATA_TYPES.get(parts.data_type)
        if dtype is None:
            raise self._wrong(parts, f"data type {parts.data_type} is none that ONNX has", lo)
        problem = checked_shape(parts.dims, DTYPE_BITS.get(dtype, 8))
        if problem:
            raise self._wrong(parts, problem, lo)
        shape = tuple(parts.dims)
        if dtype == "string":
            reader, nbytes = self._strings(parts, shape, lo)
            return Weight(parts.name, shape, dtype, nbytes, reader, role="other")
        nbytes = tensor_nbytes(shape, dtype)
        if parts.location == 1:
            reader = self._external(parts, shape, dtype, nbytes)
        elif parts.raw is not None:
            reader = self._raw(parts, shape, dtype, nbytes, lo)
        else:
            reader = self._typed(parts, shape, dtype, lo)
        return Weight(parts.name, shape, dtype, nbytes, reader, role_of(parts.name, dtype))

    def _parts(self, lo: int, hi: int) -> _Parts:
        parts = _Parts()
        buffer, path = self.file.mapped(), self.file.path
        for number, wire, start, end in fields(buffer, lo, hi, path):
            if number == 1 and wire == VARINT:
                parts.dims.append(_signed(start))
            elif number == 1 and wire == LENGTH:
                parts.dims += self._packed_dims(start, end)
            elif number == 2 and wire == VARINT:
                parts.data_type = start
            elif number in _WIDTHS:
                span = (end - _varint_length(start), end) if wire == VARINT else (start, end)
                parts.typed.setdefault(number, []).append(span)
                self._require_wire(number, wire, lo)
            elif number == _STRING and wire == LENGTH:
                parts.strings.append((start, end))
            elif number == 8 and wire == LENGTH:
                parts.name = buffer[start:end].decode(errors="backslashreplace")
            elif number == _RAW and wire == LENGTH:
                parts.raw = (start, end)
            elif number == 13 and wire == LENGTH:
                texts = {
                    n: buffer[a:b].decode(errors="backslashreplace")
                    for n, w, a, b in fields(buffer, start, end, path)
                    if w == LENGTH
                }
                parts.external[texts.get(1, "")] = texts.get(2, "")
            elif number == 14 and wire == VARINT:
                parts.location = start
        return parts

    def _packed_dims(self, lo: int, hi: int) -> list[int]:
        if hi - lo > 10 * 64:
            raise FormatError(self.file.path, "too many dimensions", field="tensor", offset=lo)
        return [_signed(int(v)) for v in _varints(self.file.view(lo, hi - lo))]

    def _require_wire(self, number: int, wire: int, offset: int) -> None:
        allowed = {None: VARINT, 4: FIXED32, 8: FIXED64}[_WIDTHS[number]]
        if wire not in (LENGTH, allowed):
            raise FormatError(
                self.file.path,
                f"field {number} has wire type {wire}",
                field="tensor",
                offset=offset,
            )

    def _wrong(self, parts: _Parts, problem: str, offset: int | None = None) -> FormatError:
        return FormatError(
            self.file.path, problem, field=f"tensor {parts.name[:200]!r}", offset=offset
        )

    # -- in the model file

    def _raw(
        self, parts: _Parts, shape: tuple[int, ...], dtype: str, nbytes: int, offset: int
    ) -> RowReader:
        start, end = parts.raw or (0, 0)
        if end - start != nbytes:
            raise self._wrong(
                parts, f"{dtype}{list(shape)} takes {nbytes} bytes, has {end - start}", offset
            )
        return plain_reader(self.file, start, shape, dtype)

    def _typed(self, parts: _Parts, shape: tuple[int, ...], dtype: str, offset: int) -> RowReader:
        home = _HOMES.get(dtype, _INT32)
        spans = parts.typed.get(home, [])
        stored = sum(end - start for start, end in spans)
        bits = DTYPE_BITS[dtype]
        # Narrow dtypes are packed to bytes before they go into int32_data; complex ones are pairs.
        values = -(-math.prod(shape) * bits // 8) if bits < 8 else math.prod(shape)
        values *= 2 if dtype.startswith("complex") else 1
        width = _WIDTHS[home]
        low, high = (values * width, values * width) if width else (values, values * 10)
        if not low <= stored <= high:
            raise self._wrong(
                parts, f"{dtype}{list(shape)} has {values} values, in {stored} bytes", offset
            )
        if width and len(spans) == 1:
            return plain_reader(self.file, spans[0][0], shape, dtype)
        return self._decoded(parts, spans, shape, dtype, values)

    def _decoded(
        self, parts: _Parts, spans: Sequence[Span], shape: tuple[int, ...], dtype: str, values: int
    ) -> RowReader:
        """A reader of values that have to be decoded; small tensors, so all at once."""

        def read(lo: int, hi: int) -> Array:
            pieces = [self.file.view(start, end - start) for start, end in spans]
            raw = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
            if _WIDTHS[_HOMES.get(dtype, _INT32)] is None:
                numbers = _varints(raw)
                if len(numbers) != values:
                    raise self._wrong(parts, f"has {len(numbers)} values, {values} were expected")
                bits = DTYPE_BITS[dtype]
                raw = numbers.astype(f"u{max(bits, 8) // 8}").view(np.uint8)
            return plain_reader(_Memory(self.file.path, raw), 0, shape, dtype)(lo, hi)

        return read

    def _strings(self, parts: _Parts, shape: tuple[int, ...], offset: int) -> tuple[RowReader, int]:
        if len(parts.strings) != math.prod(shape):
            raise self._wrong(
                parts, f"{len(parts.strings)} strings for the shape {list(shape)}", offset
            )

        def read(lo: int, hi: int) -> Array:
            texts = [self.file.mapped()[start:end] for start, end in parts.strings]
            whole = np.array(texts, object).reshape(shape)
            return whole[lo:hi] if shape else whole

        return read, sum(end - start for start, end in parts.strings)

    # -- in a file beside it

    def _external(
        self, parts: _Parts, shape: tuple[int, ...], dtype: str, nbytes: int
    ) -> RowReader:
        location = parts.external.get("location", "")
        data = self._opened.get(location)
        if data is None:
            data = self._opened[location] = self._data_file(parts, location)
            self.external[location] = data.size
        offset = self._number(parts, "offset", 0)
        length = self._number(parts, "length", nbytes)
        if length != nbytes:
            raise self._wrong(
                parts, f"{dtype}{list(shape)} takes {nbytes} bytes, external data has {length}"
            )
        if offset + length > data.size:
            raise self._wrong(
                parts,
                f"external data at {offset}, {length} bytes, reaches past the end of "
                f"{data.path.name!r} ({data.size} bytes)",
            )
        return plain_reader(data, offset, shape, dtype)

    def _number(self, parts: _Parts, key: str, default: int) -> int:
        text = parts.external.get(key)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._wrong(parts, f"external data's {key} is {text[:40]!r}, no byte count")
        return int(text)

    def _data_file(self, parts: _Parts, location: str) -> FileBytes:
        """Open a data file, held to the rules in the module's docstring."""
        folder = self.file.path.parent
        place = PurePosixPath(location)
        if not location or "\0" in location or "\\" in location:
            raise self._wrong(
                parts, f"external data has the location {location[:200]!r}, no file name"
            )
        if place.is_absolute() or ".." in place.parts:
            raise self._wrong(
                parts, f"external data lies outside the model's folder: {location[:200]!r}"
            )
        path = folder
        shown = repr(location[:200])
        status = os.lstat(folder)
        for part in place.parts:
            path = path / part
            try:
                status = os.lstat(path)
            except OSError as error:
                raise self._wrong(
                    parts, f"external data {shown} is not there ({error.strerror})"
                ) from error
            if stat.S_ISLNK(status.st_mode):
                raise self._wrong(
                    parts,
                    f"external data {shown} is or goes through a symbolic link; "
                    "copy the real file beside the model (cp -L)",
                )
        if not stat.S_ISREG(status.st_mode):
            raise self._wrong(parts, f"external data {shown} is no regular file")
        if status.st_nlink > 1:
            raise self._wrong(
                parts,
                f"external data {shown} has {status.st_nlink} hard links; "
                "copy it to a file of its own",
            )
        return FileBytes(path)


class _Memory(FileBytes):
    """Decoded values in the place of a file's bytes."""

    def __init__(self, path: Path, raw: NDArray[np.uint8]) -> None:
        self.path = path
        self.size = len(raw)
        self._raw = raw

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        return self._raw[offset : offset + nbytes]


def _varints(raw: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Decode varints that lie side by side (those cut off at the end are left out)."""
    ends = np.flatnonzero(raw < 128)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    values = np.zeros(len(ends), np.uint64)
    for place in range(min(int(lengths.max(initial=0)), 10)):
        there = np.flatnonzero(lengths > place)
        digits = (raw[starts[there] + place] & 127).astype(np.uint64)
        values[there] |= digits << np.uint64(7 * place)
    return values


def _varint_length(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def _signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return value - (1 << 64) if value >> 63 else value
