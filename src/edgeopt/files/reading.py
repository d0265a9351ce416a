"""Reading files that may be anything: what every format module stands on.

Nothing here trusts a file. Only regular files are opened (a FIFO or a device never is), sizes are
checked before anything is mapped, and every read of a tensor first checks that the file is still
the one that was described: reading past the end of a mapped file that has shrunk would kill the
process.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS, Array
from edgeopt.errors import FormatError, SourceError

__all__ = [
    "MAX_RANK",
    "Buffer",
    "FileBytes",
    "PrivateMaps",
    "as_named",
    "checked_shape",
    "is_plain_name",
    "numpy_dtype",
    "open_regular",
    "plain_reader",
    "read_head",
    "read_json",
    "read_json_list",
    "read_whole",
    "reading",
]

Buffer: TypeAlias = "bytes | mmap.mmap"

_J = TypeVar("_J", dict[str, Any], list[Any])

#: numpy can hold no more dimensions than this.
MAX_RANK = 64

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)

_REASONS = {
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "no such file or folder",
    errno.EACCES: "permission denied; check who may read it",
    errno.EPERM: "permission denied; check who may read it",
    errno.ELOOP: "too many symbolic links on the way to it",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the operating system says about ``path`` into a one-line SourceError."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        reason = _REASONS.get(code) or (os.strerror(code) if code else str(error))
        where = error.filename if isinstance(error.filename, str) else os.fspath(path)
        raise SourceError(f"{where}: {reason}") from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise SourceError("the path contains a NUL character; no file has such a name") from error


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading (through symbolic links); anything else is a SourceError.

    The kind is looked at before opening, as opening a device can have effects, and once more on
    what was opened, as the name may have come to mean something else in between.
    """
    with reading(path):
        _require_regular(path, path.stat().st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _require_regular(path, os.fstat(descriptor).st_mode)
        except BaseException:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise SourceError(f"{path}: is {kind}; give a model file")


def read_head(path: Path, limit: int = 4096) -> bytes:
    """The first bytes of a regular file, at most ``limit``."""
    with reading(path), open_regular(path) as stream:
        return stream.read(limit)


def read_whole(path: Path, limit: int) -> bytes:
    """A regular file's bytes; FormatError where they are more than ``limit``."""
    with reading(path), open_regular(path) as stream:
        # Asked for so many bytes at most, Python would take room for all of them first.
        data = stream.read() if os.fstat(stream.fileno()).st_size <= limit else None
    if data is None or len(data) > limit:
        raise FormatError(path, f"larger than {limit} bytes, too large for a file of its kind")
    return data


def read_json(path: Path, *, limit: int = 16 << 20) -> dict[str, Any]:
    """A JSON object from a file of at most ``limit`` bytes, or a FormatError."""
    return _json(path, limit, dict)


def read_json_list(path: Path, *, limit: int = 16 << 20) -> list[Any]:
    """Like :func:`read_json`, for a JSON list."""
    return _json(path, limit, list)


def _json(path: Path, limit: int, kind: type[_J]) -> _J:
    data = read_whole(path, limit)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, f"is not valid JSON ({_short(error)})") from error
    if not isinstance(value, kind):
        raise FormatError(
            path, f"holds a JSON {type(value).__name__}, a {kind.__name__} was expected"
        )
    return value


def as_named(path: Path) -> Path:
    """``path`` from the root on, under the name that it was given.

    Links are not followed, as in download caches a link has the model's name and the file behind
    it a digest's; only where ``..`` is part of the path there is no other way.
    """
    named = path.absolute()
    return named.resolve() if ".." in named.parts else named


def is_plain_name(name: object) -> TypeGuard[str]:
    """A file name and nothing else: no folder, no NUL, not ``.`` or ``..``."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(c in name for c in "/\\\0")
    )


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


# ---------------------------------------------------------------------------------------------
# mapped reads


#: Room for copies is not set aside for a whole file of which little may be written to.
_NORESERVE = 0x4000 if sys.platform == "linux" else 0


class _Map(mmap.mmap):
    """A mapping that knows which file it shows."""

    path: Path
    identity: tuple[int, int, int, int]

    def private(self) -> mmap.mmap:
        """The same file for reading and writing: pages written to become this process's own."""
        with open_regular(self.path) as stream:
            if _identity(os.fstat(stream.fileno())) != self.identity:
                raise _changed(self.path)
            flags = mmap.MAP_PRIVATE | _NORESERVE
            return mmap.mmap(stream.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)


class PrivateMaps:
    """Writable arrays in the place of read-only views over mapped files."""

    def __init__(self) -> None:
        self._maps: dict[int, tuple[_Map, mmap.mmap]] = {}

    def writable(self, array: Array) -> Array:
        """The same bytes of the same file; what is written stays in this process, page by page.

        An array that is no view of a mapped file is copied.
        """
        owner: Any = array
        while isinstance(owner, (np.ndarray, memoryview)):
            owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
        if not isinstance(owner, _Map):
            return np.array(array)
        if id(owner) not in self._maps:
            self._maps[id(owner)] = owner, owner.private()
        begin = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        _, buffer = self._maps[id(owner)]
        same: Array = np.ndarray(array.shape, array.dtype, buffer, begin, array.strides)
        return same


class FileBytes:
    """A regular file's bytes, mapped at the first read and not before.

    The file is remembered as it was when described (device, inode, size, time of change); a file
    that has been replaced, truncated or written to since is a SourceError, not a crash.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as stream:
            status = os.fstat(stream.fileno())
        self.path = path
        self.size = status.st_size
        self._identity = _identity(status)
        self._map: _Map | None = None

    def mapped(self) -> mmap.mmap:
        """The whole file, mapped read-only. An empty file cannot be mapped: SourceError."""
        if self._map is None:
            with open_regular(self.path) as stream:
                self._require_same(os.fstat(stream.fileno()))
                if self.size == 0:
                    raise SourceError(f"{self.path}: is empty (0 bytes)")
                self._map = _Map(stream.fileno(), 0, access=mmap.ACCESS_READ)
                self._map.path, self._map.identity = self.path, self._identity
        else:
            self._require_unchanged(self._map)
        return self._map

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes ``offset : offset + nbytes`` as a read-only array over the mapping."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise FormatError(
                self.path,
                f"{nbytes} bytes reach past the end of the file ({self.size} bytes)",
                offset=offset,
            )
        if nbytes == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(self.mapped(), np.uint8, nbytes, offset)

    def _require_unchanged(self, mapped: mmap.mmap) -> None:
        """Reading past the end of a mapped file that shrank would kill the process.

        A file that was deleted, or has another in its place, is no harm: the mapping keeps the one
        that was opened.
        """
        if mapped.size() < self.size:
            raise SourceError(
                f"{self.path}: shrank from {self.size} to {mapped.size()} bytes while in use; "
                "run again when nothing else writes to it"
            )
        try:
            now = _identity(self.path.stat())
        except OSError:
            return
        if now[:2] == self._identity[:2] and now != self._identity:
            raise SourceError(f"{self.path}: was written to since it was opened; open it again")

    def _require_same(self, status: os.stat_result) -> None:
        if _identity(status) != self._identity:
            raise _changed(self.path)


def _changed(path: Path) -> SourceError:
    return SourceError(f"{path}: changed since it was opened; run the command again")


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of that name; ``bfloat16``, ``float8_*``, ``int4``, ... from ml_dtypes."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def checked_shape(dims: Sequence[int], bits: int) -> str | None:
    """None when a tensor of these dimensions can exist, else what is wrong, in a few words."""
    if len(dims) > MAX_RANK:
        return f"{len(dims)} dimensions, the limit is {MAX_RANK}"
    if any(d < 0 for d in dims):
        return f"a negative dimension in {str(list(dims))[:200]}"
    if math.prod(d for d in dims if d) * bits >= 8 << 63:
        return f"shape {str(list(dims))[:200]} has more bytes than can be counted"
    return None


def plain_reader(
    file: FileBytes, offset: int, shape: tuple[int, ...], dtype: str
) -> Callable[[int, int], Array]:
    """A reader of rows of a dense little-endian tensor that begins at byte ``offset``.

    Whole-byte dtypes come back as read-only views over the mapping (copied only where the data is
    not aligned for its dtype). 4- and 2-bit dtypes are packed low bits first, as ONNX and torch
    do, and come back unpacked. 6-bit dtypes come back as their packed bytes, uint8
    ``[rows, bytes per row]``.
    """
    count = shape[0] if shape else 1
    per_row = math.prod(shape[1:])
    bits = DTYPE_BITS[dtype]

    def read(lo: int, hi: int) -> Array:
        if not 0 <= lo <= hi <= count or (not shape and (lo, hi) != (0, 1)):
            raise IndexError(f"rows {lo}:{hi} of a tensor with {count} rows")
        wanted = (hi - lo, *shape[1:]) if shape else ()
        first, last = lo * per_row * bits, hi * per_row * bits
        raw = file.view(offset + first // 8, -(-last // 8) - first // 8)
        if bits >= 8:
            values = raw.view(numpy_dtype(dtype))
            return np.require(values, requirements="A").reshape(wanted)
        if bits == 6:
            if hi > lo and (per_row * bits) % 8:
                raise FormatError(file.path, f"rows of {per_row} {dtype} values end inside a byte")
            return raw.reshape(hi - lo, -1)
        return _unpack(raw, (first % 8) // bits, math.prod(wanted), dtype, bits).reshape(wanted)

    return read


def _unpack(raw: NDArray[np.uint8], skip: int, count: int, dtype: str, bits: int) -> Array:
    """``count`` values of 4 or 2 bits after the first ``skip``, low bits of a byte first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = ((raw[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[skip : skip + count]
    if dtype.startswith("uint"):
        return codes.astype(numpy_dtype(dtype))
    if dtype.startswith("int"):
        sign = 1 << (bits - 1)
        return ((codes.astype(np.int8) ^ sign) - sign).astype(numpy_dtype(dtype))
    return codes.view(numpy_dtype(dtype))
