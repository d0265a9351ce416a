"""torch files from before 1.6 (``_use_new_zipfile_serialization=False``).

Five pickles one after the other (magic number, protocol version, system information, the object,
the keys of its storages), then each storage: its number of elements in 8 bytes, and its data,
mapped where it lies. See ``_legacy_save`` in ``torch/serialization.py``. The tar format of torch
0.1 is recognised, and refused.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from edgeopt.core import DTYPE_BITS, Source
from edgeopt.errors import FormatError
from edgeopt.files.mapped import Stretch
from edgeopt.files.pickle_nodes import BadObject, Global
from edgeopt.files.reading import FileBytes
from edgeopt.files.text import one_line
from edgeopt.files.torch_objects import StorageRef, build, storage_ref
from edgeopt.files.torch_pickle import Limits, read_pickle
from edgeopt.files.torch_source import TensorMaker, make_source
from edgeopt.files.torch_tree import read_tree

__all__ = ["describe", "matches"]

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001

_MAGIC_BYTES = MAGIC.to_bytes(10, "little")
_MAGIC_TEXT = str(MAGIC).encode()
#: The members of a tar file as torch 0.1 wrote it.
_TAR_MEMBERS = tuple(n + b"\0" for n in (b"sys_info", b"pickle", b"storages", b"tensors"))


def matches(path: Path, head: bytes) -> bool:
    """Whether the file begins with torch's magic number, as a pickle, or is a tar of torch 0.1."""
    return _MAGIC_BYTES in head[:32] or _MAGIC_TEXT in head[:32] or head.startswith(_TAR_MEMBERS)


def describe(path: Path) -> Source:
    """Describe every tensor of a legacy torch file without reading any, or running anything.

    Raises FormatError where the file is damaged, SourceError where it holds no tensor.
    """
    file = FileBytes(path)
    if bytes(file.mapped()[:16]).startswith(_TAR_MEMBERS):
        raise FormatError(
            path,
            "the tar format of torch 0.1; convert it once, if you trust it: "
            "torch.save(torch.load(FILE, weights_only=False), NEW)",
        )
    reader = _LegacyReader(file)
    if reader.pickle("magic number") != MAGIC:
        reader.fail("no torch file: its magic number is wrong", "magic number")
    version = reader.pickle("protocol version")
    if version != PROTOCOL:
        reader.fail(f"version {version!r:.40}, only {PROTOCOL} is known", "protocol version")
    system = reader.pickle("system information")
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    begin = reader.pos
    top = reader.pickle("object")
    pickle_bytes = reader.pos - begin
    reader.find_storages(reader.pickle("storage keys"), big_endian)
    tree = read_tree(path, file.size, top)
    maker = TensorMaker(path, reader.resolve, big_endian=big_endian)
    details = {
        "container": "torch-legacy",
        "byteorder": "big" if big_endian else "little",
        "compression": "stored",
        "pickle_bytes": pickle_bytes,
    }
    return make_source(path, tree, maker, nbytes=file.size, details=details, foreign=reader.foreign)


class _LegacyReader:
    def __init__(self, file: FileBytes) -> None:
        self.file, self.pos = file, 0
        self.limits = Limits.for_file(file.size)
        self.foreign: set[str] = set()
        self.itemsizes: dict[str, int] = {}
        self.stretches: dict[str, Stretch] = {}

    def fail(self, problem: str, field: str) -> None:
        raise FormatError(self.file.path, one_line(problem), field=one_line(field), offset=self.pos)

    def pickle(self, field: str) -> Any:
        top, self.pos, foreign = read_pickle(
            self.file.mapped(),
            self.pos,
            self.file.size,
            path=self.file.path,
            field=field,
            build=build,
            persistent=self._persistent,
            limits=self.limits,
        )
        self.foreign |= foreign
        return top

    def _persistent(self, pid: Any) -> Any:
        # ("module", class, source file, source): a class, with its source for comparison
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] in ("module", b"module"):
            if not isinstance(pid[1], Global):
                raise BadObject("a module that is no class")
            return pid[1]
        ref = storage_ref(pid)
        # As torch does: the first mention of a storage says how wide its elements are.
        self.itemsizes.setdefault(ref.key, DTYPE_BITS[ref.dtype] // 8)
        return ref

    def find_storages(self, keys: Any, big_endian: bool) -> None:
        # Python 2 wrote its strings as bytes.
        if isinstance(keys, list):
            keys = [k.decode("utf-8", "replace") if isinstance(k, bytes) else k for k in keys]
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            self.fail("no list of names", "storage keys")
        count = struct.Struct(">q" if big_endian else "<q")
        left = self.file.size
        for key in keys:
            if key in self.stretches or key not in self.itemsizes:
                self.fail(f"key {key[:50]} is twice in it, or of no tensor", "storage keys")
            field = f"storage {key[:50]}"
            if self.pos + count.size > left:
                self.fail("truncated: its size is missing", field)
            (numel,) = count.unpack_from(self.file.mapped(), self.pos)
            begin, nbytes = self.pos + count.size, numel * self.itemsizes[key]
            if numel < 0 or begin + nbytes > left:
                self.fail(f"{numel} elements, {left - begin} bytes are left", field)
            self.stretches[key] = Stretch(self.file, key, begin, nbytes)
            self.pos = begin + nbytes

    def resolve(self, ref: StorageRef) -> Stretch:
        """Where a storage lies; its size must be what the pickle says."""
        stretch = self.stretches.get(ref.key)
        if stretch is None:
            raise FormatError(
                self.file.path,
                "the storage is not in the file",
                field=one_line(f"storage {ref.key}"),
            )
        itemsize = DTYPE_BITS[ref.dtype] // 8
        wanted = ref.numel * itemsize
        if ref.view is not None and sum(ref.view) > ref.numel:
            wanted = sum(ref.view) * itemsize
        if wanted > stretch.nbytes or (ref.view is None and wanted != stretch.nbytes):
            raise FormatError(
                self.file.path,
                f"{stretch.nbytes} bytes, the pickle says {wanted}",
                field=one_line(f"storage {ref.key}"),
                offset=stretch.start,
            )
        return stretch
