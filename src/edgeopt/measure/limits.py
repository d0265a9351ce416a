"""What a container may use of the machine: cgroups, version 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeopt.measure.sysfiles import first_line, numbers, text

__all__ = ["cpu_limit", "memory_limit", "throttled_seconds"]

#: cgroup v1 says "no limit" by a number near 2**63.
_NO_LIMIT = 1 << 60


def _cgroups(root: Path) -> dict[str, str]:
    """This process's group by controller; the unified hierarchy (v2) under the empty name."""
    groups = {}
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path.strip("/")
    return groups


def _up(base: Path, group: str) -> list[Path]:
    """The group's folder and those above it: a limit anywhere on the way holds."""
    parts = [part for part in group.split("/") if part]
    return [base.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def cpu_limit(root: Path) -> float | str | None:
    """Cores' worth of time that the container may use, "none", or None where nobody says."""
    groups = _cgroups(root)
    found: list[float] = []
    known = False
    for folder in _up(root / "sys/fs/cgroup", groups.get("", "")):
        quota, _, period = (first_line(folder / "cpu.max") or "").partition(" ")
        known |= bool(period)
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            found.append(int(quota) / int(period))
    for folder in _up(root / "sys/fs/cgroup/cpu", groups.get("cpu", "")):
        quota = first_line(folder / "cpu.cfs_quota_us") or ""
        period = first_line(folder / "cpu.cfs_period_us") or ""
        known |= bool(quota)
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            found.append(int(quota) / int(period))
    return _limit(found, known)


def memory_limit(root: Path) -> float | str | None:
    """Bytes that the container may use, "none", or None where nobody says."""
    groups = _cgroups(root)
    places: Sequence[tuple[Path, str]] = [
        *((p, "memory.max") for p in _up(root / "sys/fs/cgroup", groups.get("", ""))),
        *(
            (p, "memory.limit_in_bytes")
            for p in _up(root / "sys/fs/cgroup/memory", groups.get("memory", ""))
        ),
    ]
    values = [first_line(folder / name) or "" for folder, name in places]
    found = [int(value) for value in values if value.isdigit() and int(value) < _NO_LIMIT]
    return _limit(found, any(values))


def _limit(found: Sequence[float], known: bool) -> float | str | None:
    if found:
        return min(found)
    return "none" if known else None


def throttled_seconds(root: Path) -> float | None:
    """Seconds for which the container's limit has kept its threads off the cores, so far."""
    groups = _cgroups(root)
    for folder in _up(root / "sys/fs/cgroup", groups.get("", "")):
        stat = numbers(folder / "cpu.stat")
        if "throttled_usec" in stat:
            return stat["throttled_usec"] / 1e6
    for folder in _up(root / "sys/fs/cgroup/cpu", groups.get("cpu", "")):
        stat = numbers(folder / "cpu.stat")
        if "throttled_time" in stat:
            return stat["throttled_time"] / 1e9
    return None
