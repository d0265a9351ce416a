"""What a process holds in memory, by kind: before the model came, and what it added.

A page that is resident belongs to exactly one kind, so the kinds add up to the resident size.
All come from one reading of /proc/self/smaps; the peak is VmHWM, which belongs to the process
alone (``ru_maxrss`` survives ``exec``: a small child of a large parent reports its parent's).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeopt.measure.sysfiles import kilobytes, reset_peak
from edgeopt.runtimes.smaps import Mapped, mappings

__all__ = ["Footprint", "FootprintReading"]

_PROC = Path("/proc/self")

#: Files that are none: memory which processes share, with a name so that they can.
_SHARED_MEMORY = ("/dev/zero", "/memfd:", "/SYSV", "/dev/shm/")


@dataclass(frozen=True)
class FootprintReading:
    """Bytes, each None where the system does not say.

    ``baseline`` was resident when the footprint began, and still is; ``anonymous`` (heap, stacks,
    shared memory, and the copies that a private mapping makes of pages it writes to) and ``other``
    (pages of files that are not the model's: libraries) have been added since; ``mapped`` are the
    resident pages of the model's own files. Together they are ``rss``. ``peak`` is the most that
    was resident at any time, ``how`` since when, and ``added`` by how much it exceeds what was
    resident when the footprint began (or at most before, where the system does not let the peak be
    set back; the present size stands in where no peak is kept); ``pss`` counts a page that n
    processes map as an n-th; ``swapped`` is memory of this process that is on disk, and so in none
    of the others.
    """

    baseline: int | None = None
    peak: int | None = None
    added: int | None = None
    rss: int | None = None
    anonymous: int | None = None
    mapped: int | None = None
    other: int | None = None
    pss: int | None = None
    swapped: int | None = None
    how: str = ""


@dataclass(frozen=True)
class _Kinds:
    anonymous: int = 0
    mapped: int = 0
    other: int = 0
    pss: int = 0
    swapped: int = 0


class Footprint:
    """Begun when the runtime's library is in and the model is not; then read whenever wanted."""

    def __init__(self, files: Iterable[Path], proc: Path = _PROC) -> None:
        self._proc = proc
        self._paths = {os.path.realpath(file) for file in files}
        self._inodes: set[tuple[int, int, int]] = set()
        self._began = self._psutil = None
        if proc.is_dir():
            self._inodes = {found for path in self._paths if (found := _inode(path)) is not None}
            self._began = self._kinds()
        else:
            self._psutil = _psutil_memory()
        # Last, so that the memory that reading itself took is not part of the peak.
        self._reset = reset_peak(proc)
        self._base = self._resident()

    @classmethod
    def begin(cls, files: Iterable[Path] = (), proc: Path = _PROC) -> Footprint:
        """Take the baseline, and set the peak back to it. ``files`` are those of the model."""
        return cls(files, proc)

    def read(self) -> FootprintReading:
        """What is resident now, against the baseline."""
        if not self._proc.is_dir():
            return self._read_psutil()
        status = kilobytes(self._proc / "status")
        since = "since the baseline" if self._reset else "since the process began"
        how = f"VmHWM {since}"
        now, began = self._kinds(), self._began
        if now is None or began is None:
            high = status.get("VmHWM")
            return FootprintReading(None, high, self._above(high), rss=status.get("VmRSS"), how=how)
        # What was given back of the baseline is no negative growth: it is baseline no more.
        kept = min(began.anonymous, now.anonymous) + min(began.other, now.other)
        rss = now.anonymous + now.mapped + now.other
        peak = status.get("VmHWM")
        return FootprintReading(
            baseline=kept,
            # Kernels count by the core and in batches: the counter can lag behind the pages.
            peak=None if peak is None else max(peak, rss),
            added=self._above(peak),
            rss=rss,
            anonymous=max(0, now.anonymous - began.anonymous),
            mapped=now.mapped,
            other=max(0, now.other - began.other),
            pss=now.pss,
            swapped=now.swapped,
            how=how,
        )

    def _kinds(self) -> _Kinds | None:
        totals = dict.fromkeys(("anonymous", "mapped", "other", "pss", "swapped"), 0)
        found = False
        for each in mappings(self._proc / "smaps"):
            found = True
            rss, anonymous = each.sizes.get("Rss", 0), each.sizes.get("Anonymous", 0)
            totals["anonymous"] += anonymous
            totals[self._kind(each)] += rss - anonymous
            totals["pss"] += each.sizes.get("Pss", 0)
            totals["swapped"] += each.sizes.get("Swap", 0)
        return _Kinds(**totals) if found else None

    def _kind(self, each: Mapped) -> str:
        """Of the pages that are no copies of this process's own."""
        # By name, and by inode: hard links have another name, layered file systems other inodes.
        if each.path in self._paths or (*each.device, each.inode) in self._inodes:
            return "mapped"
        return "anonymous" if each.path.startswith(_SHARED_MEMORY) else "other"

    def _read_psutil(self) -> FootprintReading:
        before, now = self._psutil, _psutil_memory()
        if before is None or now is None:
            return FootprintReading(how="unavailable: no /proc here, and no psutil")
        rss, peak = now
        how = "resident size" if peak is None else "peak working set since the process began"
        added = self._above(rss if peak is None else peak)
        return FootprintReading(min(before[0], rss), peak, added, rss=rss, how=how)

    def _resident(self) -> int | None:
        """What a later peak is measured above."""
        if self._psutil is not None:
            now, peak = self._psutil
            return now if peak is None else peak
        return kilobytes(self._proc / "status").get("VmRSS" if self._reset else "VmHWM")

    def _above(self, peak: int | None) -> int | None:
        return None if peak is None or self._base is None else max(0, peak - self._base)


def _inode(path: str) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)


def _psutil_memory() -> tuple[int, int | None] | None:
    """(resident now, the peak where the system keeps one: Windows), in bytes."""
    try:
        import psutil
    except ImportError:
        return None
    try:
        info = psutil.Process().memory_info()
    except psutil.Error:
        return None
    return int(info.rss), getattr(info, "peak_wset", None)
