"""What a process's memory grew by: the peak above a baseline, and what it is made of.

``ru_maxrss`` is not used on Linux: it survives ``exec``, so a small child of a large parent
reports its parent's peak. ``VmHWM`` of /proc/self/status belongs to the process itself and can be
reset. Elsewhere psutil stands in, labelled for what it is; where nothing can be read the answer
is None, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeopt.measure.sysfiles import kilobytes, reset_peak

__all__ = ["MemoryMeter", "MemoryUse"]

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class MemoryUse:
    """Bytes above the baseline: ``peak``, and what was there at the end, by kind.

    ``anonymous`` is heap; ``mapped`` are pages of files, which the system can drop and share.
    Both are None where the system does not say. ``how`` names the counter behind ``peak``.
    """

    peak: int
    anonymous: int | None
    mapped: int | None
    how: str


@dataclass(frozen=True)
class _Reading:
    current: int
    peak: int
    anonymous: int | None
    mapped: int | None
    how: str


class MemoryMeter:
    """Takes its baseline when made; :meth:`stop` says what has been added since."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        reset = reset_peak(proc)
        before = _read(proc)
        # Without a reset, a peak from before would be taken for ours: measure above it instead.
        self._base = 0 if before is None else before.current if reset else before.peak
        self._before = before

    def stop(self) -> MemoryUse | None:
        """What was added since the baseline, or None where it cannot be read."""
        after = _read(self._proc)
        if after is None or self._before is None:
            return None
        return MemoryUse(
            peak=max(0, after.peak - self._base),
            anonymous=_growth(self._before.anonymous, after.anonymous),
            mapped=_growth(self._before.mapped, after.mapped),
            how=after.how,
        )


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else max(0, after - before)


def _read(proc: Path) -> _Reading | None:
    return _read_proc(proc) if proc.is_dir() else _read_psutil()


def _read_proc(proc: Path) -> _Reading | None:
    status = kilobytes(proc / "status")
    if "VmHWM" not in status or "VmRSS" not in status:
        return None
    rollup = kilobytes(proc / "smaps_rollup")
    anonymous = mapped = None
    if "Rss" in rollup and "Anonymous" in rollup:
        anonymous, mapped = rollup["Anonymous"], rollup["Rss"] - rollup["Anonymous"]
    return _Reading(status["VmRSS"], status["VmHWM"], anonymous, mapped, "VmHWM")


def _read_psutil() -> _Reading | None:
    try:
        import psutil
    except ImportError:
        return None
    try:
        info = psutil.Process().memory_info()
    except psutil.Error:
        return None
    peak = getattr(info, "peak_wset", None)  # Windows keeps the peak; others only the present
    how = "resident size at the end" if peak is None else "peak working set"
    return _Reading(info.rss, info.rss if peak is None else peak, None, None, how)
