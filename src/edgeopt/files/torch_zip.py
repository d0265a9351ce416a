"""torch's zip files (``torch.save`` since 1.6, ``torch.jit.save``, ``torch.export.save``).

An archive holds ``NAME/data.pkl``, the pickled object, and a record ``NAME/data/KEY`` for every
storage that it names, stored without compression at a multiple of 64 bytes, so that a tensor can
be mapped where it lies. TorchScript adds ``NAME/code/`` and ``NAME/constants.pkl``. Nothing here
runs code, and torch is not needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt.core import DTYPE_BITS, Source, Weight
from edgeopt.errors import FormatError, SourceError
from edgeopt.files import torch_exported
from edgeopt.files.mapped import Stretch
from edgeopt.files.reading import FileBytes
from edgeopt.files.text import one_line
from edgeopt.files.torch_objects import StorageRef, build, storage_ref
from edgeopt.files.torch_pickle import Limits, read_pickle
from edgeopt.files.torch_source import TensorMaker, make_source
from edgeopt.files.torch_tree import read_tree
from edgeopt.files.zip_records import STORED, ZipRecords

__all__ = ["Archive", "describe", "matches"]

#: A pickle or JSON record that is compressed is inflated into memory, up to this size.
MAX_INFLATED = 16_000_000

#: What the first member of a torch archive is called (after the archive's name).
_FIRST_MEMBERS = ("data.pkl", "data/", "version", "byteorder", ".format_version", "constants.pkl")
_OLD_EXPORT = "serialized_exported_program.json"


def matches(path: Path, head: bytes) -> bool:
    """Whether this is a zip archive as torch writes it, sound or damaged. Never raises."""
    if head[:4] not in (b"PK\3\4", b"PK\5\6"):
        return False
    try:
        file = FileBytes(path)
        file.mapped()
    except SourceError:
        return False
    try:
        names = list(ZipRecords(file).records)
    except FormatError:
        size = int.from_bytes(head[26:28], "little")
        names = [bytes(file.mapped()[30 : 30 + size]).decode("utf-8", "replace")]
        return _is_torch(names) or names[0].partition("/")[2].startswith(_FIRST_MEMBERS)
    return _is_torch(names)


def _is_torch(names: list[str]) -> bool:
    ends = ("/data.pkl", "/archive_format", "/constants.pkl")
    return any(name.endswith(ends) and name.count("/") == 1 for name in names) or (
        _OLD_EXPORT in names or "data.pkl" in names
    )


class Archive:
    """A torch archive inside a mapped file: the whole file, or a record of a ``.pt2``.

    ``label`` sets nested archives apart in messages and in storage keys.
    """

    def __init__(
        self, file: FileBytes, start: int = 0, end: int | None = None, label: str = ""
    ) -> None:
        self.zip = ZipRecords(file, start, end, label)
        self.file, self.label = file, label
        self.foreign: set[str] = set()
        names = self.zip.records
        roots = [
            name[: -len("data.pkl")]
            for name in names
            if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)
        ]
        if not roots:
            self.zip.fail("no data.pkl in it: no torch archive", "directory")
        self.root = roots[0]
        if len(roots) > 1:
            self.zip.fail(f"{len(roots)} archives in one file", "directory")
        order = self._small("byteorder", 16) or b"little"
        if order not in (b"little", b"big"):
            self.zip.fail(f"byte order {order[:20]!r}, not little or big", "member byteorder")
        self.big_endian = order == b"big"

    def _small(self, name: str, limit: int) -> bytes | None:
        full = self.root + name
        return self.zip.data(full, limit) if full in self.zip.records else None

    def has(self, prefix: str) -> bool:
        return any(name.startswith(self.root + prefix) for name in self.zip.records)

    def pickle(self, name: str = "data.pkl", folder: str = "data/") -> tuple[Any, TensorMaker]:
        """The object in record ``name``, and the maker of its tensors."""
        record = self.zip.records.get(self.root + name)
        if record is None:
            self.zip.fail("is missing, or no file of its own", f"member {name}")
        field = one_line(self.zip.prefix + f"member {record.name}")
        limits = Limits.for_file(self.file.size)
        if record.method == STORED:
            self.zip.check_crc(record)
            buffer: Any = self.file.mapped()
            start, end = record.start, record.start + record.packed
        else:
            buffer = self.zip.data(record.name, MAX_INFLATED)
            start, end = 0, len(buffer)
        top, _, foreign = read_pickle(
            buffer,
            start,
            end,
            path=self.file.path,
            field=field,
            build=build,
            persistent=storage_ref,
            limits=limits,
        )
        self.foreign |= foreign

        def resolve(ref: StorageRef) -> Stretch:
            return self.storage(folder, ref)

        return top, TensorMaker(self.file.path, resolve, big_endian=self.big_endian)

    def storage(self, folder: str, ref: StorageRef) -> Stretch:
        """Where the storage's record lies; its size must be what the pickle says."""
        record = self.zip.records.get(f"{self.root}{folder}{ref.key}")
        if record is None:
            self.zip.fail("the storage has no record in the archive", f"storage {ref.key[:50]}")
        if record.method != STORED:
            self.zip.fail(
                "the storage is compressed and cannot be mapped; "
                "unzip the file and zip it again with `zip -0`, or save it with torch.save",
                f"storage {ref.key[:50]}",
            )
        itemsize = DTYPE_BITS[ref.dtype] // 8
        if not 0 <= record.nbytes - ref.numel * itemsize < itemsize:
            self.zip.fail(
                f"{record.nbytes} bytes, the pickle says {ref.numel * itemsize}",
                f"storage {ref.key[:50]}",
                record.start,
            )
        key = f"{self.label}:{folder}{ref.key}" if self.label else f"{folder}{ref.key}"
        return Stretch(self.file, key, record.start, record.nbytes)


def describe(path: Path) -> Source:
    """Describe every tensor of a torch zip file without reading any, or running anything.

    Raises FormatError where the file is damaged, SourceError where it holds no tensor.
    """
    file = FileBytes(path)
    records = ZipRecords(file)
    if torch_exported.is_exported(records):
        return torch_exported.describe(path, file, records, Archive)
    if not _is_torch(list(records.records)):
        records.fail("a zip archive, but not one that torch wrote", "directory")
    if any(name.endswith("/model.json") and name.count("/") == 1 for name in records.records):
        raise SourceError(f"{path}: TorchScript of torch 1.0 to 1.3; load and save it with 1.4+")
    archive = Archive(file)
    script = archive.has("code/") and archive.has("constants.pkl")
    top, maker = archive.pickle()
    tree = read_tree(path, file.size, top, script=script)
    details = {
        "container": "torch-zip",
        "archive": archive.root.rstrip("/"),
        "byteorder": "big" if archive.big_endian else "little",
        "compression": "stored",
        "pickle_bytes": archive.zip.records[archive.root + "data.pkl"].nbytes,
    }
    more: tuple[Weight, ...] = ()
    kind = None
    if script:
        kind = "torchscript"
        more = _constants(archive)
    return make_source(
        path,
        tree,
        maker,
        nbytes=file.size,
        details=details,
        foreign=() if script else archive.foreign,
        kind=kind,
        more=more,
    )


def _constants(archive: Archive) -> tuple[Weight, ...]:
    """The tensors that TorchScript moved into its constants: all weights, in a frozen module."""
    top, maker = archive.pickle("constants.pkl", "constants/")
    tree = read_tree(archive.file.path, archive.file.size, top)
    made = (maker.make(f"constants.c{name}", "", leaf) for name, leaf in tree.model)
    return tuple(weight for weight in made if weight)
