"""What else went on while one measured: steal, other processes, throttling, swapping.

Two :func:`snapshot`, one before and one after, and :func:`between` them. All are counters, so
nothing has to run in between.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgeopt.measure.cpu import thermal_throttles
from edgeopt.measure.limits import throttled_seconds
from edgeopt.measure.sysfiles import first_line, numbers, text

__all__ = ["Activity", "ActivitySnapshot", "between", "snapshot"]

#: The columns of /proc/stat that make up a processor's time. Guests' time is in "user" already.
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")

_IDLE = ("idle", "iowait")


@dataclass(frozen=True)
class ActivitySnapshot:
    """Counters at one moment; None where the system keeps none.

    ``cpu`` are clock ticks by processor and column of /proc/stat, of the processors that this
    process could use then; ``own`` those of the processes asked about.
    """

    seconds: float
    cpu: Mapping[str, Mapping[str, int]]
    own: int | None
    throttled: float | None
    thermal: int | None
    swapped: int | None
    load: float | None


@dataclass(frozen=True)
class Activity:
    """Between two snapshots; shares are of the time of all processors usable in both, 0 to 1.

    ``steal``: taken by the hypervisor for others. ``busy``: computing, by whomever. ``others``:
    computing for processes that were not asked about. ``throttled``: seconds that the container's
    limit kept threads waiting. ``thermal_throttles``: times a core was too hot. ``swapped``: pages
    moved to and from disk. ``load``: of the last minute, at the end. None: not known.
    """

    seconds: float
    steal: float | None
    busy: float | None
    others: float | None
    throttled: float | None
    thermal_throttles: int | None
    swapped: int | None
    load: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; what is not known is "unavailable"."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: "unavailable" if value is None else value for name, value in pairs}


def snapshot(pids: Iterable[int] = (), root: Path = Path("/")) -> ActivitySnapshot:
    """The counters now. ``pids`` are the processes whose time is one's own, this one included."""
    pages = numbers(root / "proc/vmstat")
    swapped = [pages[name] for name in ("pswpin", "pswpout") if name in pages]
    return ActivitySnapshot(
        seconds=time.monotonic(),
        cpu=_ticks(root),
        own=_own({os.getpid(), *pids}, root),
        throttled=throttled_seconds(root),
        thermal=thermal_throttles(root),
        swapped=sum(swapped) if swapped else None,
        load=_load(root),
    )


def between(before: ActivitySnapshot, after: ActivitySnapshot) -> Activity:
    """What went on from one snapshot to the next, of the same processes."""
    steal = busy = others = None
    # A process that has been pinned in between could use fewer of them afterwards.
    both = before.cpu.keys() & after.cpu.keys()
    spent = {
        name: sum(max(0, after.cpu[cpu][name] - before.cpu[cpu][name]) for cpu in both)
        for name in _COLUMNS
    }
    total = sum(spent.values())
    if total > 0:
        working = total - sum(spent[name] for name in _IDLE) - spent["steal"]
        steal, busy = spent["steal"] / total, working / total
        own = _grown(before.own, after.own)
        if own is not None:
            others = min(1.0, max(0.0, (working - own) / total))
    return Activity(
        seconds=after.seconds - before.seconds,
        steal=steal,
        busy=busy,
        others=others,
        throttled=_grown(before.throttled, after.throttled),
        thermal_throttles=_grown(before.thermal, after.thermal),
        swapped=_grown(before.swapped, after.swapped),
        load=after.load,
    )


def _grown(before: Any, after: Any) -> Any:
    return None if before is None or after is None else max(0, after - before)


def _ticks(root: Path) -> dict[str, dict[str, int]]:
    """Ticks by processor and column; the whole machine as one where affinity is not known."""
    usable = {"cpu"}
    if hasattr(os, "sched_getaffinity"):
        usable = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    rows = [line.split() for line in (text(root / "proc/stat") or "").splitlines()]
    return {
        row[0]: {name: int(ticks) for name, ticks in zip(_COLUMNS, row[1:], strict=False)}
        for row in rows
        if len(row) > len(_COLUMNS) and row[0] in usable
    }


def _own(pids: Collection[int], root: Path) -> int | None:
    """Ticks of the processes and of their children that have ended; None where one is gone."""
    total = 0
    for pid in pids:
        # The name, in brackets, may hold blanks and brackets; what follows the last one does not.
        columns = (text(root / f"proc/{pid}/stat") or "").rpartition(")")[2].split()
        if len(columns) < 15:
            return None
        total += sum(int(ticks) for ticks in columns[11:15])  # utime stime cutime cstime
    return total


def _load(root: Path) -> float | None:
    line = (first_line(root / "proc/loadavg") or "").split()
    return float(line[0]) if line else None
