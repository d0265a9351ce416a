"""The directory of a zip archive, read with bounds, its records left where they are.

Python's ``zipfile`` trusts the directory: it gives the last of two members of one name, reads
members that overlap, and inflates until memory ends. Here the directory (APPNOTE 6.3.10,
sections 4.3.7 to 4.3.16 and 4.5.3 for zip64) is held against the file: every member must lie
inside it, alone, not encrypted, under a name of its own.
"""

from __future__ import annotations

import itertools
import mmap
import struct
import zlib
from dataclasses import dataclass
from typing import NoReturn

from edgeopt.errors import FormatError
from edgeopt.files.reading import FileBytes
from edgeopt.files.text import one_line

__all__ = ["ZipMember", "ZipRecords"]

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")

STORED, DEFLATED = 0, 8
#: Bit 0 encrypted, 5 patched, 6 strongly encrypted, 13 masked headers.
_REFUSED_FLAGS = 0b0010_0000_0110_0001


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One member: ``start`` is where its (perhaps deflated) bytes begin in the file."""

    name: str
    method: int
    crc32: int
    packed: int
    nbytes: int
    header: int
    start: int


class ZipRecords:
    """The members of the zip archive at ``start:end`` of a mapped file, by name, in file order.

    Raises FormatError, naming the field and byte, when it is no sound archive.
    """

    def __init__(
        self, file: FileBytes, start: int = 0, end: int | None = None, field: str = ""
    ) -> None:
        self.file = file
        self.start = start
        self.end = file.size if end is None else end
        self.prefix = f"{field}, " if field else ""
        self.records: dict[str, ZipMember] = {}
        self._read_directory(*self._find_directory())

    def fail(self, problem: str, field: str, offset: int | None = None) -> NoReturn:
        where = one_line(self.prefix + field)
        raise FormatError(self.file.path, one_line(problem), field=where, offset=offset)

    # ------------------------------------------------------------------------- the directory

    def _find_directory(self) -> tuple[int, int, int]:
        """(entries, where the directory begins, where it ends), absolute."""
        buffer = self.file.mapped()
        lowest = max(self.start, self.end - _END.size - 0xFFFF)
        at = buffer.rfind(b"PK\5\6", lowest, self.end)
        if at < 0 or at + _END.size > self.end:
            self.fail("truncated: the zip archive has no end record", "end record", self.end)
        _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(buffer, at)
        if at + _END.size + comment != self.end:
            self.fail(
                f"{self.end - at - _END.size} bytes after it, it says {comment}", "end record", at
            )
        stop = at
        locator = at - _END64_LOCATOR.size
        if locator >= self.start and buffer[locator : locator + 4] == b"PK\6\7":
            _, disk, where, _ = _END64_LOCATOR.unpack_from(buffer, locator)
            stop = self.start + where
            if stop + _END64.size > locator:
                self.fail("points outside the file", "zip64 locator", locator)
            fields = _END64.unpack_from(buffer, stop)
            magic, first_disk, here, count, size, offset = fields[0], *fields[5:]
            if magic != b"PK\6\6":
                self.fail("no zip64 end record where it points", "zip64 locator", locator)
        if disk or first_disk or here != count:
            self.fail("an archive in several parts", "end record", at)
        begin = self.start + offset
        if begin + size > stop or count * _ENTRY.size > size:
            self.fail(
                f"a directory of {size} bytes for {count} members at {offset} does not fit",
                "end record",
                at,
            )
        limit = 50_000 + self.file.size // 4096
        if count > limit:
            self.fail(f"{count} members, the limit for this file is {limit}", "end record", at)
        return count, begin, begin + size

    def _read_directory(self, count: int, at: int, stop: int) -> None:
        buffer, directory = self.file.mapped(), at
        found: list[ZipMember] = []
        names: set[str] = set()
        for _ in range(count):
            if at + _ENTRY.size > stop:
                self.fail("truncated directory", "directory", at)
            entry = _ENTRY.unpack_from(buffer, at)
            magic, flags, method, crc = entry[0], entry[3], entry[4], entry[7]
            packed, nbytes, header = entry[8], entry[9], entry[16]
            name_size, extra_size, comment_size = entry[10], entry[11], entry[12]
            after = at + _ENTRY.size + name_size
            if magic != b"PK\1\2" or after + extra_size + comment_size > stop:
                self.fail("damaged directory", "directory", at)
            name = self._name(buffer[at + _ENTRY.size : after], at)
            if flags & _REFUSED_FLAGS:
                self.fail("encrypted or patched", f"member {name}", at)
            if method not in (STORED, DEFLATED):
                self.fail(f"compression method {method}, only 0 and 8 are read", f"member {name}")
            if name in names:
                self.fail("two members of this name", f"member {name}", at)
            names.add(name)
            wide = self._zip64(buffer[after : after + extra_size])
            values = []
            for value in (nbytes, packed, header):
                if value == 0xFFFFFFFF:
                    if not wide:
                        self.fail("a zip64 size is missing", f"member {name}", at)
                    value = wide.pop(0)
                values.append(value)
            nbytes, packed, header = values
            begin = self._data_start(buffer, name, self.start + header, directory)
            if begin + packed > directory:
                self.fail(f"{packed} bytes reach past the data", f"member {name}", begin)
            if method == STORED and packed != nbytes:
                self.fail(f"stored in {packed} bytes, said to be {nbytes}", f"member {name}", at)
            found.append(ZipMember(name, method, crc, packed, nbytes, self.start + header, begin))
            at = after + extra_size + comment_size
        found.sort(key=lambda record: record.header)
        for one, other in itertools.pairwise(found):
            if one.start + one.packed > other.header:
                self.fail(f"overlaps {one.name}", f"member {other.name}", other.header)
        self.records = {record.name: record for record in found}

    def _name(self, raw: bytes, at: int) -> str:
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a name that is not UTF-8", "directory", at)
        if "\0" in name:
            self.fail("a name with a NUL in it", "directory", at)
        return name

    @staticmethod
    def _zip64(extra: bytes) -> list[int]:
        """The 8-byte sizes of the zip64 extra field (id 1), in the order they stand in."""
        at = 0
        while at + 4 <= len(extra):
            kind, size = struct.unpack_from("<HH", extra, at)
            if kind == 1:
                body = extra[at + 4 : at + 4 + size]
                return [v for (v,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])]
            at += 4 + size
        return []

    def _data_start(self, buffer: mmap.mmap, name: str, header: int, directory: int) -> int:
        if header + _LOCAL.size > directory:
            self.fail("begins outside the data", f"member {name}", header)
        local = _LOCAL.unpack_from(buffer, header)
        at = header + _LOCAL.size
        if local[0] != b"PK\3\4" or buffer[at : at + local[9]] != name.encode():
            self.fail("no such member where the directory points", f"member {name}", header)
        names, extras = int(local[9]), int(local[10])
        return at + names + extras

    # --------------------------------------------------------------------------- the records

    def data(self, name: str, limit: int) -> bytes:
        """A small record's bytes, inflated where needed, at most ``limit``, CRC checked."""
        record = self.records[name]
        size = max(record.nbytes, record.packed)
        if size > limit:
            self.fail(f"{size} bytes, the limit is {limit}", f"member {name}")
        raw = self.file.mapped()[record.start : record.start + record.packed]
        if record.method == DEFLATED:
            engine = zlib.decompressobj(-15)
            try:
                raw = engine.decompress(raw, record.nbytes + 1)
            except zlib.error as error:
                self.fail(f"cannot be inflated: {error}", f"member {name}", record.start)
            if len(raw) != record.nbytes:
                self.fail(
                    f"does not inflate to the {record.nbytes} bytes it promises", f"member {name}"
                )
        # torch.serialization.set_crc32_options(False) writes zero for all of them.
        if record.crc32 and zlib.crc32(raw) != record.crc32:
            self.fail("its CRC-32 is wrong: the file is damaged", f"member {name}", record.start)
        return raw

    def check_crc(self, record: ZipMember) -> None:
        """Hold a stored record's bytes against its CRC-32, in pieces."""
        crc, left = 0, record.packed
        # Read, not mapped: mapped pages would count as this process's memory.
        with self.file.path.open("rb") as stream:
            stream.seek(record.start)
            while left and (piece := stream.read(min(left, 1 << 20))):
                crc = zlib.crc32(piece, crc)
                left -= len(piece)
        if record.crc32 and crc != record.crc32:
            self.fail(
                "its CRC-32 is wrong: the file is damaged", f"member {record.name}", record.start
            )
