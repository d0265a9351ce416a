"""GGUF, versions 2 and 3: a bounded reader, little-endian.

Tensors are known by name, shape, type and place; their data is mapped. The header is read by
:mod:`edgeopt.files.gguf_header`.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeopt.core import Source, Weight
from edgeopt.core.ggml import PLAIN_TYPES
from edgeopt.errors import FormatError, SourceError
from edgeopt.files.gguf_header import (
    MAGIC,
    GgufHeader,
    MetadataArray,
    TensorInfo,
    Value,
    header_of,
    read_header,
)
from edgeopt.files.reading import FileBytes, plain_reader
from edgeopt.files.roles import role_of

__all__ = [
    "GgufHeader",
    "MetadataArray",
    "TensorInfo",
    "Value",
    "describe",
    "matches",
    "read_header",
]

#: Strings and arrays up to these sizes are repeated in ``Source.details``.
_SHOWN_STRING, _SHOWN_ARRAY = 256, 16


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

    A model in several files is described whole, whichever of them ``path`` is: a part is never
    taken for all of it. SourceError where one is missing, or is another model's.
    """
    first = _describe_file(path)
    number_and_count = first.details["split"]
    if number_and_count is None:
        return first
    parts = [_describe_file(file) for file in _parts_of(path, *number_and_count)]
    for number, part in enumerate(parts):
        said, architecture = part.details["split"], part.details["architecture"]
        if said != (number, len(parts)) or architecture not in (
            None,
            parts[0].details["architecture"],
        ):
            raise SourceError(
                f"{part.path}: is no part {number + 1} of {len(parts)} of {path.name}"
            )
    names = [weight.name for part in parts for weight in part.weights]
    if len(set(names)) != len(names):
        raise FormatError(path, "a tensor is in two of its parts")
    types: dict[str, int] = {}
    for part in parts:
        for name, count in part.details["types"].items():
            types[name] = types.get(name, 0) + count
    return replace(
        parts[0],
        path=path,
        files=tuple(part.path for part in parts),
        nbytes=sum(part.nbytes for part in parts),
        weights=tuple(weight for part in parts for weight in part.weights),
        details={
            **parts[0].details,
            "types": types,
            "split": number_and_count,
            "quantized": any(part.details["quantized"] for part in parts),
        },
    )


#: How llama.cpp's gguf-split names the parts, counted from one.
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST_PARTS = 1000


def _parts_of(path: Path, number: Any, count: Any) -> list[Path]:
    """The files of all parts, in order. SourceError where one is not there."""
    named = _PART.fullmatch(path.name)
    if not (
        type(number) is int
        and type(count) is int
        and 0 <= number < count <= _MOST_PARTS
        and named is not None
        and int(named["count"]) == count
        and int(named["number"]) == number + 1
    ):
        raise SourceError(
            f"{path}: is one of several parts of a model and is not called as one"
            " (NAME-00001-of-00003.gguf); give its parts their names back"
        )
    files = [
        path.with_name(f"{named['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)
    ]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(
            f"{path}: is part {number + 1} of {count} of a model, and {missing[0]}{more} is not"
            " beside it; all parts are needed"
        )
    return files


def _describe_file(path: Path) -> Source:
    """One file, as it is."""
    file = FileBytes(path)
    header = header_of(file)
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
            "split": (header.metadata.get("split.no", 0), parts) if parts != 1 else None,
            "quantized": any(name not in PLAIN_TYPES for name in types),
        },
    )


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
