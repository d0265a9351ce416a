"""The bytes of an ONNX model on disk, tensors kept in files beside it included.

Only field headers of the protobuf are walked, over a map of the file: neither onnx nor the
weights are loaded. Field numbers are those of onnx.proto (ModelProto and what hangs below it).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["external_files", "model_nbytes"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

#: Which fields of a message lead on to tensors, and to what message.
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}

_KEY, _VALUE = 1, 2


def model_nbytes(path: Path) -> int:
    """Bytes of the model file and of every file of external data that it names."""
    folder = path.parent
    beside = {(folder / name).resolve() for name in external_files(path)}
    return path.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())


def external_files(path: Path) -> frozenset[str]:
    """The locations that tensors of the model name; empty where the file is no protobuf."""
    if path.stat().st_size == 0:
        return frozenset()
    found = set()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pending = [("model", 0, len(data))]
        while pending:
            kind, lo, hi = pending.pop()
            if kind == "entry":
                entry = {field: data[a:b] for field, a, b in _fields(data, lo, hi)}
                if entry.get(_KEY) == b"location":
                    found.add(entry.get(_VALUE, b"").decode("utf-8", "replace"))
                continue
            children = _CHILDREN[kind]
            pending.extend(
                (children[field], a, b)
                for field, a, b in _fields(data, lo, hi)
                if field in children
            )
    return frozenset(found)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of every length-delimited field; stops at what is malformed."""
    while at < end:
        key, at = _varint(data, at, end)
        wire = key & 7
        if wire == _VARINT:
            _, at = _varint(data, at, end)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _LENGTH:
            size, at = _varint(data, at, end)
            if size > end - at:
                return
            yield key >> 3, at, at + size
            at += size
        else:
            return


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return value, end
