"""A file out of memory, and the proof of it: what a cold load starts from.

``posix_fadvise(DONTNEED)`` is advice: it drops no page that is dirty or that anybody maps, and
says nothing about it. So the file is written back first, and ``mincore`` asked afterwards about
a fresh mapping. What is emptied is this machine's page cache. The cache of a disk, or of the host
of a virtual machine, is out of reach; a file system known to keep one of its own is named.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import SourceError
from edgeopt.measure.sysfiles import text

__all__ = ["Eviction", "evict", "file_system", "resident_bytes", "warm"]

#: Bytes mapped at a time to be asked about: a 32-bit process has no room for a whole model.
_WINDOW = 256 << 20

#: Bytes read at a time: enough for the disk's speed, and no more memory than that.
_CHUNK = 1 << 20

#: Times to try, and seconds between: pages in flight are given back a moment later.
_TRIES, _PAUSE = 5, 0.02

#: What an empty page cache does not mean: a cold file, on these.
_OWN_CACHE = {
    "zfs": "zfs keeps a cache of its own",
    "nfs": "its server keeps a cache of its own",
    "nfs4": "its server keeps a cache of its own",
    "cifs": "its server keeps a cache of its own",
    "smb3": "its server keeps a cache of its own",
    "9p": "its host keeps a cache of its own",
    "virtiofs": "its host keeps a cache of its own",
}

#: File systems that are memory: there is no disk to load from.
_MEMORY = ("tmpfs", "ramfs", "hugetlbfs", "devtmpfs")


@dataclass(frozen=True)
class Eviction:
    """What became of the files' pages. ``verified``: none of them is in memory any more.

    ``before`` and ``resident`` are bytes in memory, before and after, None where nobody says;
    ``total`` is the files' size. ``reason`` is empty where verified.
    """

    verified: bool
    resident: int | None
    total: int
    reason: str = ""
    before: int | None = None


def evict(files: Iterable[Path]) -> Eviction:
    """Take the pages of ``files`` out of memory, and look whether they have gone.

    Never raises for a file that cannot be evicted: the reason says why not.
    """
    real = list(dict.fromkeys(Path(os.path.realpath(file)) for file in files))
    try:
        total = sum(file.stat().st_size for file in real)
        before = _resident(real)
        reason = _obstacle(real)
        after = before
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE)
            for file in real:
                _advise_away(file)
            after = _resident(real)
            if reason or not after:
                break
    except OSError as error:
        return Eviction(False, None, 0, f"{error.filename}: {error.strerror}")
    if not reason and after is None:
        reason = _untold(real)
    elif not reason and after:
        reason = _who_holds(real, after)
    return Eviction(not reason, after, total, reason, before)


def resident_bytes(path: Path) -> int | None:
    """Bytes of the file that are in memory now; None where the system does not tell us.

    To whoever neither owns a file nor may write to it, Linux says that all of it is resident:
    that answer counts as none. Raises OSError where the file cannot be read.
    """
    ask = _mincore()
    if ask is None:
        return None
    size = path.stat().st_size
    pages = 0
    with path.open("rb") as stream:
        for start in range(0, size, _WINDOW):
            length = min(_WINDOW, size - start)
            window = mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ, offset=start)
            found = _ask(ask, window, length)
            window.close()
            if found is None:
                return None
            pages += int(np.count_nonzero(found & 1))
    resident = min(size, pages * mmap.PAGESIZE)
    if resident == size > 0 and not _may_ask(path):
        return None
    return resident


def warm(files: Iterable[Path]) -> int:
    """Read ``files`` from end to end, so that their pages are in memory; the bytes read.

    Raises SourceError where one cannot be read.
    """
    done = 0
    for file in files:
        try:
            with file.open("rb", buffering=0) as stream:
                while chunk := stream.read(_CHUNK):
                    done += len(chunk)
        except OSError as error:
            raise SourceError(f"{file}: {error.strerror}; give a file that can be read") from None
    return done


def file_system(path: Path, root: Path = Path("/")) -> str:
    """The type of the file system that ``path`` lies on, as ext4; "" where that is not known."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (text(root / "proc/self/mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [wanted]:
            return rest.split()[0]
    return ""


def _resident(files: Iterable[Path]) -> int | None:
    found = [resident_bytes(file) for file in files]
    known = [n for n in found if n is not None]
    return sum(known) if len(known) == len(found) else None


def _obstacle(files: Iterable[Path]) -> str:
    """Why evicting ``files`` cannot be verified, whatever comes of it; empty where it can."""
    if not hasattr(os, "posix_fadvise"):
        return f"{sys.platform} has no posix_fadvise"
    for file in files:
        kind = file_system(file)
        if kind in _MEMORY:
            return f"{file.name} lies on {kind}, which is memory"
        if kind in _OWN_CACHE or kind.startswith("fuse"):
            return f"{file.name} lies on {kind}: {_OWN_CACHE.get(kind, 'it may keep a cache')}"
    return ""


def _advise_away(file: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # a dirty page is not dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _untold(files: Iterable[Path]) -> str:
    if _mincore() is None:
        return f"{sys.platform} has no mincore that is known here"
    names = [file.name for file in files if not _may_ask(file)]
    return f"mincore tells only who owns or may write {', '.join(names) or 'the file'}"


def _who_holds(files: Iterable[Path], resident: int) -> str:
    """Why pages stayed: who maps the files, as far as their processes may be looked into."""
    wanted = {str(file) for file in files}
    holders = [str(pid) for pid in _processes() if wanted & _mapped_by(pid)]
    if str(os.getpid()) in holders:
        return f"{resident} bytes stay in memory: this process maps the file"
    if holders:
        return f"{resident} bytes stay in memory: process {', '.join(holders)} maps the file"
    kinds = ", ".join(sorted({file_system(file) or "its file system" for file in files}))
    return f"{resident} bytes stay in memory on {kinds}; somebody may hold or read the file"


def _processes() -> list[int]:
    try:
        return sorted(int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal())
    except OSError:
        return []


def _mapped_by(pid: int) -> set[str]:
    lines = (text(Path(f"/proc/{pid}/maps")) or "").splitlines()
    return {fields[5] for line in lines if len(fields := line.split(None, 5)) == 6}


def _may_ask(path: Path) -> bool:
    """Linux's own condition for a true answer, since 5.2: the owner, or allowed to write."""
    if not hasattr(os, "geteuid"):
        return False
    return os.geteuid() in (0, path.stat().st_uid) or os.access(path, os.W_OK)


def _ask(ask: Any, window: mmap.mmap, length: int) -> NDArray[np.uint8] | None:
    pages = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
    mapped = np.frombuffer(window, np.uint8)
    refused = ask(
        ctypes.c_void_p(mapped.ctypes.data),
        ctypes.c_size_t(length),
        ctypes.c_void_p(pages.ctypes.data),
    )
    return None if refused else pages


@cache
def _mincore() -> Any:
    """The C library's mincore; None where its answer is not known to mean this."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "mincore", None)
