"""The bytes of an ONNX model on disk, tensors kept in files beside it included.

Only field headers of the protobuf are walked, over a map of the file: neither onnx nor the
weights are loaded. Field numbers are those of onnx.proto (ModelProto and what hangs below it).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeopt.errors import SourceError
from edgeopt.files.protobuf import LENGTH, Buffer, fields
from edgeopt.files.reading import FileBytes

__all__ = ["external_files", "model_nbytes"]

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
    """Bytes of the model file and of every file of external data that it names.

    Of a file that is no ONNX model, its own bytes: that it does not load is for the loader to say.
    Raises SourceError where there is no file.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file; give the path of an ONNX file")
    try:
        names = external_files(path)
    except SourceError:
        names = frozenset()
    beside = {(path.parent / name).resolve() for name in names} - {path.resolve()}
    return path.stat().st_size + sum(file.stat().st_size for file in beside if file.is_file())


def external_files(path: Path) -> frozenset[str]:
    """The locations that tensors of the model name; FormatError where it is no protobuf."""
    file = FileBytes(path)
    data = file.mapped()
    found = set()
    pending = [("model", 0, file.size)]
    while pending:
        kind, lo, hi = pending.pop()
        if kind == "entry":
            if (location := _location(data, lo, hi, path)) is not None:
                found.add(location)
            continue
        children = _CHILDREN[kind]
        pending.extend(
            (children[number], a, b)
            for number, wire, a, b in fields(data, lo, hi, path)
            if wire == LENGTH and number in children
        )
    return frozenset(found)


def _location(data: Buffer, lo: int, hi: int, path: Path) -> str | None:
    entry = {number: bytes(data[a:b]) for number, _, a, b in fields(data, lo, hi, path)}
    if entry.get(_KEY) != b"location":
        return None
    return entry.get(_VALUE, b"").decode("utf-8", "replace")
