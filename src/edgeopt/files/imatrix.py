"""Importance matrices: how strongly each input column of every matrix product is driven.

For a matrix ``W [rows, columns]`` that meets inputs ``x``, the importance of a column is the mean
of ``x[column] ** 2`` over all inputs seen. llama.cpp stores sums of squares and how many were
summed, in one of two forms, and both are read here:

- GGUF with ``general.type = "imatrix"``: ``<name>.in_sum2`` and ``<name>.counts``, float32
- the older binary one, little-endian: i32 entries; each i32 length, name, i32 calls, i32 values,
  f32[values]; then, where present, i32 chunks, i32 length, data set

Formats: https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Weight
from edgeopt.errors import FormatError, SourceError
from edgeopt.files.atomic import writing
from edgeopt.files.gguf_header import MAGIC, GgufHeader, MetadataArray, header_of
from edgeopt.files.gguf_write import GgufLayout, array, string, u32, writing_gguf
from edgeopt.files.reading import FileBytes, read_head

__all__ = ["Fitted", "Imatrix", "ImatrixEntry", "read_imatrix", "write_imatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = (
    f"imatrix.{key}" for key in ("datasets", "chunk_count", "chunk_size")
)
_MAX_NAME = 4096


@dataclass(frozen=True)
class ImatrixEntry:
    """Of one tensor: ``sums`` of squares, float32 ``[matrices * columns]``, and ``counts``, how
    many inputs each matrix saw, int64 ``[matrices]`` (experts are matrices stacked in a tensor;
    everything else is one matrix)."""

    sums: NDArray[np.float32]
    counts: NDArray[np.int64]

    @property
    def means(self) -> NDArray[np.float32]:
        """Mean squares, float32 ``[matrices * columns]``; 1 for an expert that saw nothing."""
        sums = self.sums.reshape(len(self.counts), -1)
        counts = self.counts[:, None].astype(np.float32)
        means = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
        return means.reshape(-1)


#: Tables that are looked up, or left out of a matrix by default; and the names in a note.
_LOOKED_UP = frozenset({"token_embd.weight", "output.weight", "position_embd.weight"})
_SHOWN = 4


@dataclass(frozen=True)
class Fitted:
    """An importance matrix as a model's tensors take it.

    ``values``: tensor -> float32 ``[columns]``, or ``[experts, columns]`` for stacked experts.
    ``without``: matrices of the model that there is no data for. ``unused``: names of the matrix
    that the model does not have. ``silent``: matrices whose importances are all zeros, which
    weigh nothing.
    """

    values: Mapping[str, NDArray[np.float32]]
    without: tuple[str, ...]
    unused: tuple[str, ...]
    silent: tuple[str, ...] = ()

    def note(self) -> str | None:
        """What it does not cover, for the proof; None where it covers all but the token table."""
        lacking = [name for name in self.without if name not in _LOOKED_UP]
        if not lacking and not self.silent:
            return None
        said = [str(self)]
        for names, what in ((lacking, "none for"), (self.silent, "all zeros, so none, for")):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                said.append(f"{what} {', '.join(names[:_SHOWN])}{more}")
        return "; ".join(said)

    def __str__(self) -> str:
        total = len(self.values) + len(self.without)
        return f"importances for {len(self.values)} of {total} matrices"


@dataclass(frozen=True)
class Imatrix:
    """``chunks`` pieces of ``chunk_size`` tokens of ``datasets`` went in (0 where unknown).

    ``path`` is the file that it was read from, for errors to name.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0
    path: str = "the importance matrix"

    @cached_property
    def values(self) -> Mapping[str, NDArray[np.float32]]:
        """Mean squares by tensor: see :attr:`ImatrixEntry.means`."""
        return {name: entry.means for name, entry in self.entries.items()}

    def sha256(self) -> str:
        """A digest of all names, sums and counts."""
        whole = hashlib.sha256()
        for name, entry in sorted(self.entries.items()):
            whole.update(f"{name}\0{len(entry.counts)}\0".encode())
            whole.update(entry.sums.astype("<f4").tobytes() + entry.counts.astype("<i8").tobytes())
        return whole.hexdigest()

    def fitted(self, weights: Iterable[Weight]) -> Fitted:
        """The values that belong to these tensors (GGUF's names and shapes, rows first).

        SourceError where a tensor has another number of columns, or no tensor is in both. The
        token table is looked up, not multiplied: data that does not fit it is left alone, as
        llama.cpp does.
        """
        found: dict[str, NDArray[np.float32]] = {}
        without = []
        names = set()
        for weight in weights:
            names.add(weight.name)
            if len(weight.shape) < 2:
                continue
            values = self.values.get(weight.name)
            wanted = (*weight.shape[:-2], weight.shape[-1])
            if values is None:
                without.append(weight.name)
            elif values.size == math.prod(wanted):
                found[weight.name] = values.reshape(wanted)
            elif weight.name == "token_embd.weight":
                without.append(weight.name)
            else:
                raise SourceError(
                    f"{self.path}: has {values.size} importances for {weight.name!r}, which has "
                    f"{math.prod(wanted)} input columns; was it made for another model?"
                )
        unused = tuple(name for name in self.entries if name not in names)
        if not found:
            example = next(iter(self.entries))
            raise SourceError(
                f"{self.path}: none of its {len(self.entries)} tensors ({example!r}, ...) is in "
                "the model; was it made for another one?"
            )
        silent = tuple(name for name, values in found.items() if not values.any())
        return Fitted(found, tuple(without), unused, silent)


def read_imatrix(path: Path) -> Imatrix:
    """An importance matrix in either form. SourceError where the file is none or cannot be read,
    FormatError where it breaks its format or holds what no sum of squares can be."""
    head = read_head(path, 4)
    if not head:
        raise SourceError(f"{path}: is empty (0 bytes)")
    file = FileBytes(path)
    return _read_gguf(file) if head == MAGIC else _Legacy(file).read()


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write the GGUF form, whole or not at all. OutputError where that cannot be done."""
    fields = {
        "general.type": string("imatrix"),
        _DATASETS: array("string", imatrix.datasets),
        _CHUNKS: u32(imatrix.chunks),
        _CHUNK_SIZE: u32(imatrix.chunk_size),
    }
    parts: dict[str, NDArray[np.float32]] = {}
    for name, entry in sorted(imatrix.entries.items()):
        matrices = len(entry.counts)
        parts[name + _SUMS] = entry.sums.reshape(matrices, -1)
        parts[name + _COUNTS] = entry.counts.astype(np.float32).reshape(matrices, 1)
    layout = GgufLayout.of(fields, [(name, part.shape, "F32") for name, part in parts.items()])
    with writing(path) as temporary, writing_gguf(temporary, layout) as writer:
        for name, part in parts.items():
            rows = np.ascontiguousarray(part, "<f4")
            writer.put(name, 0, rows.view(np.uint8).reshape(len(rows), -1))


def _entry(path: Path, name: str, sums: NDArray[Any], counts: NDArray[Any]) -> ImatrixEntry:
    """The entry, if it is one: squares are finite and not negative, and so are counts."""
    field = f"tensor {name[:200]!r}"
    # One pass where all is well: the least and the greatest tell of NaN too.
    for what, values in (("sums of squares", sums), ("counts", counts)):
        if not (values.min() >= 0 and np.isfinite(values.max())):
            raise FormatError(path, f"{what} are negative, infinite or no numbers", field=field)
    if sums.size % counts.size:
        raise FormatError(
            path, f"{sums.size} sums of squares for {counts.size} counts", field=field
        )
    if counts.max() >= 1 << 53:
        raise FormatError(path, f"a count of {counts.max():.6g}", field=field)
    return ImatrixEntry(sums.astype(np.float32), np.rint(counts).astype(np.int64))


# ---------------------------------------------------------------------------------------------
# GGUF


def _read_gguf(file: FileBytes) -> Imatrix:
    header, path = header_of(file), file.path
    kind = header.metadata.get("general.type", "model")
    if kind != "imatrix":
        raise SourceError(
            f"{path}: is a GGUF file of type {str(kind)[:60]!r}, no importance matrix; "
            "`edgeopt imatrix` makes one"
        )
    parts: dict[str, NDArray[np.float32]] = {}
    for info in header.tensors:
        if info.type.name != "F32":
            raise FormatError(
                path, f"is {info.type.name}, F32 was expected", field=f"tensor {info.name[:200]!r}"
            )
        raw = file.view(header.data_offset + info.offset, info.nbytes)
        parts[info.name] = np.require(raw.view("<f4"), requirements="A")
    empty = np.empty(0, np.float32)
    entries = {}
    for tensor in dict.fromkeys(n.removesuffix(_SUMS).removesuffix(_COUNTS) for n in parts):
        sums, counts = parts.get(tensor + _SUMS, empty), parts.get(tensor + _COUNTS, empty)
        if not counts.size or not sums.size:
            raise FormatError(
                path,
                f"must have values under {_SUMS} and {_COUNTS} both",
                field=f"tensor {tensor[:200]!r}",
            )
        entries[tensor] = _entry(path, tensor, sums, counts)
    if not entries:
        raise FormatError(path, f"holds no tensor; NAME{_SUMS} and NAME{_COUNTS} were expected")
    return Imatrix(
        entries,
        datasets=_texts(header, _DATASETS),
        chunks=_count(header, _CHUNKS),
        chunk_size=_count(header, _CHUNK_SIZE),
        path=str(path),
    )


def _texts(header: GgufHeader, key: str) -> tuple[str, ...]:
    value = header.metadata.get(key)
    if not isinstance(value, MetadataArray) or value.type != "string":
        return ()
    return tuple(text if isinstance(text, str) else repr(text) for text in value.values())


def _count(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and value >= 0 else 0


# ---------------------------------------------------------------------------------------------
# the older form


class _Legacy:
    """A place in the file. Nothing is made of a length before it is held against what is left."""

    def __init__(self, file: FileBytes) -> None:
        self.file = file
        self.at = 0

    def read(self) -> Imatrix:
        count = self.number("number of entries")
        # The shortest entry: three numbers, a name of one letter, one value.
        if not 1 <= count <= (self.file.size - self.at) // 17:
            self.wrong(
                f"claims {count} entries in {self.file.size} bytes; an importance matrix "
                "(as GGUF, or in llama.cpp's older form) was expected",
                "number of entries",
            )
        entries: dict[str, ImatrixEntry] = {}
        for _ in range(count):
            name = self.text("name", 1, _MAX_NAME)
            if name in entries:
                self.wrong("is there twice", f"tensor {name[:200]!r}")
            entries[name] = self.entry(name)
        chunks = 0
        datasets: tuple[str, ...] = ()
        if self.at < self.file.size:
            chunks = max(0, self.number("number of chunks"))
        if self.at < self.file.size:
            datasets = tuple(filter(None, [self.text("data set", 0, 1 << 16)]))
        if self.at < self.file.size:
            self.wrong(f"{self.file.size - self.at} bytes follow the end", "end")
        return Imatrix(entries, datasets, chunks, path=str(self.file.path))

    def entry(self, name: str) -> ImatrixEntry:
        field = f"tensor {name[:200]!r}"
        calls = self.number(field)
        values = self.number(field)
        if not 1 <= values <= (self.file.size - self.at) // 4:
            self.wrong(f"claims {values} values, {self.file.size - self.at} bytes are left", field)
        if calls < 0:
            self.wrong(f"claims {calls} calls", field)
        raw = self.file.view(self.at, 4 * values)
        self.at += 4 * values
        sums = np.require(raw.view("<f4"), requirements="A")
        # Without a count the values stand as they are.
        return _entry(self.file.path, name, sums, np.array([max(1, calls)]))

    def number(self, field: str) -> int:
        if self.file.size - self.at < 4:
            self.wrong("the file ends here, 4 bytes were expected: it is cut short", field)
        (value,) = struct.unpack("<i", self.file.view(self.at, 4).tobytes())
        self.at += 4
        return int(value)

    def text(self, field: str, least: int, most: int) -> str:
        length = self.number(field)
        if not least <= length <= min(most, self.file.size - self.at):
            self.wrong(f"a text of {length} bytes, from {least} to {most} were expected", field)
        raw = self.file.view(self.at, length).tobytes()
        self.at += length
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.wrong("is not UTF-8", field, error)

    def wrong(self, problem: str, field: str, cause: Exception | None = None) -> NoReturn:
        raise FormatError(self.file.path, problem, field=field, offset=self.at) from cause
