"""Exported programs (``.pt2``) that can be loaded without trusting who made them.

``torch.export.load`` unpickles sample inputs, pickled weights and custom objects in full where it
can, loads compiled libraries, and evaluates strings of the program. An archive is plain where it
has none of that: raw weights, tables and a program that :mod:`edgeopt.files.torch_program` lets
through, and sample inputs that are tensors in plain containers.

What was examined is what gets loaded: :func:`pack` writes an archive of the checked values and the
weights' bytes, with no pickle in it at all. Nothing of the file itself reaches torch, so neither a
zip that two readers read differently nor a file that changes meanwhile can matter. The same call
makes the files that edgeopt writes: no sample inputs, no traces, the same bytes every time.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any, Protocol

from edgeopt.core import InputSpec
from edgeopt.errors import FormatError
from edgeopt.files.reading import FileBytes
from edgeopt.files.text import one_line
from edgeopt.files.torch_objects import INERT
from edgeopt.files.torch_program import NotPlainError, plain, plain_config
from edgeopt.files.zip_records import STORED, ZipMember, ZipRecords

__all__ = ["Plain", "dimensions", "examine", "named", "pack"]

#: The file inside the archive with what torch has no place for: the names of free dimensions.
_EXTRA = "edgeopt.json"

_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_TABLES = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
#: Parts that torch's reader needs and that say nothing.
_HARMLESS = ("archive_format", "archive_version", "byteorder", "version", ".data/", "extra/")
_HARMLESS_TOO = (".format_version", ".storage_alignment")

_EXTRA_LIMIT = 1_000_000
_ALIGNMENT = 64
_PIECE = 1 << 20


class _PlainArchive(Protocol):
    foreign: set[str]

    def pickle(self, name: str = ..., folder: str = ...) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class Plain:
    """A checked program: JSON documents by the names of their members, and the weights' records."""

    records: ZipRecords
    documents: Mapping[str, dict[str, Any]]
    payloads: Mapping[str, ZipMember]
    extra: Mapping[str, Any] = field(default_factory=dict)


def examine(
    records: ZipRecords,
    root: str,
    program: dict[str, Any],
    read_json: Callable[[str], dict[str, Any]],
    open_archive: Callable[[FileBytes, int, int, str], _PlainArchive],
) -> Plain:
    """Hold every part of a ``.pt2`` archive against what is known to be harmless.

    ``program`` is the document in ``models/model.json``. Raises NotPlainError naming the first part
    that is not, FormatError where a table is damaged.
    """
    names = {name[len(root) :]: name for name in records.records if name.startswith(root)}
    tables = {member: folder for folder, member in _TABLES.items()}
    documents = {_PROGRAM: plain(program)}
    payloads: dict[str, ZipMember] = {}
    for member in tables:
        if member not in names:
            raise NotPlainError(f"it has no {member}")
        document = plain_config(read_json(names[member]))
        documents[member] = document
        for payload in document["config"].values():
            payloads.update(_payload(records, names, tables[member], payload))
    known = {*documents, *payloads, _SAMPLES}
    for name in records.records:
        inside = name.removeprefix(root)
        harmless = inside in _HARMLESS_TOO or inside.startswith(_HARMLESS)
        if not name.startswith(root) or not (inside in known or harmless):
            raise NotPlainError(one_line(f"it holds {name[:200]}"))
    if _SAMPLES in names:
        _examine_samples(records, names[_SAMPLES], open_archive)
    return Plain(records, documents, payloads, _extra(records, names))


def _payload(
    records: ZipRecords, names: Mapping[str, str], folder: str, payload: Mapping[str, Any]
) -> dict[str, ZipMember]:
    path = str(payload.get("path_name"))
    name = names.get(folder + path)
    if name is None or path.startswith(("custom_obj", "opaque_obj")):
        raise NotPlainError(f"its record {folder}{path} is no plain tensor")
    record = records.records[name]
    if record.method != STORED:
        raise NotPlainError(f"its record {folder}{path} is compressed")
    return {folder + path: record}


def _examine_samples(
    records: ZipRecords,
    name: str,
    open_archive: Callable[[FileBytes, int, int, str], _PlainArchive],
) -> None:
    record = records.records[name]
    if not record.nbytes:
        return
    if record.method != STORED:
        raise NotPlainError("its sample inputs are compressed")
    try:
        archive = open_archive(records.file, record.start, record.start + record.packed, name)
        archive.pickle()
    except FormatError as error:
        raise NotPlainError(
            one_line(f"its sample inputs are no plain tensors: {error.problem}")
        ) from None
    foreign = sorted(archive.foreign - INERT)
    if foreign:
        raise NotPlainError(one_line(f"its sample inputs would call {foreign[0]}"))


def _extra(records: ZipRecords, names: Mapping[str, str]) -> dict[str, Any]:
    """What edgeopt wrote beside the program; anything else that is there is left out."""
    name = names.get(f"extra/{_EXTRA}")
    if name is None:
        return {}
    try:
        found = json.loads(records.data(name, _EXTRA_LIMIT))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def dimensions(extra: Mapping[str, Any]) -> dict[str, tuple[int | str, ...]]:
    """Shapes by input that ``extra`` tells, with names for the free dimensions.

    A program keeps symbols alone (``s40``), so the names are kept beside it.
    """
    told = extra.get("inputs")
    return {
        name: tuple(shape)
        for name, shape in (told if isinstance(told, dict) else {}).items()
        if isinstance(shape, list) and all(map(_is_dimension, shape))
    }


def _is_dimension(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and _DIM.fullmatch(value) is not None)


def named(inputs: Sequence[InputSpec], extra: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """The inputs with the names of their free dimensions, where ``extra`` tells them.

    Whether a dimension is free, and the size of one that is not, is never taken from there.
    """
    told = dimensions(extra)
    return tuple(_named(spec, told.get(spec.name, ())) for spec in inputs)


def _named(spec: InputSpec, shape: Sequence[int | str]) -> InputSpec:
    if len(shape) != len(spec.shape):
        return spec
    dims = tuple(
        name if isinstance(size, str) and isinstance(name, str) else size
        for size, name in zip(spec.shape, shape, strict=True)
    )
    return replace(spec, shape=dims)


_DIM = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)


# ------------------------------------------------------------------------------------------ packing


def pack(found: Plain, stream: IO[bytes], extra: Mapping[str, Any]) -> None:
    """Write the program as an archive that torch (2.8 and later) loads, the same bytes every time.

    ``extra`` is edgeopt's own, beside the program. Raises FormatError where a weight's bytes are
    not those that the file's directory promises.
    """
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for member, record in found.payloads.items():
            with _member(archive, member, record.nbytes) as out:
                _copy(found.records, record, out)
        small: dict[str, bytes] = {
            **{name: _json(document) for name, document in found.documents.items()},
            # Empty: there is nothing for torch to unpickle.
            _SAMPLES: b"",
            "archive_format": b"pt2",
            "archive_version": b"0",
            ".data/version": b"6\n",
            "byteorder": b"little",
        }
        if extra:
            small[f"extra/{_EXTRA}"] = _json(extra)
        for member, data in small.items():
            with _member(archive, member, len(data)) as out:
                out.write(data)


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _member(archive: zipfile.ZipFile, name: str, nbytes: int) -> IO[bytes]:
    """A new member whose data begins at a multiple of 64 bytes, so that it can be mapped."""
    info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
    large = nbytes >= 1 << 31
    assert archive.fp is not None
    before = archive.fp.tell() + 30 + len(info.filename) + 4 + (20 if large else 0)
    # The field that torch pads with: "FB".
    padding = -before % _ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
    return archive.open(info, "w", force_zip64=large)


def _copy(records: ZipRecords, record: ZipMember, out: IO[bytes]) -> None:
    buffer = memoryview(records.file.mapped())
    crc = 0
    for at in range(record.start, record.start + record.nbytes, _PIECE):
        piece = bytes(buffer[at : min(at + _PIECE, record.start + record.nbytes)])
        crc = zlib.crc32(piece, crc)
        out.write(piece)
    if record.crc32 and crc != record.crc32:
        records.fail(
            "its CRC-32 is wrong: the file is damaged", f"member {record.name}", record.start
        )
