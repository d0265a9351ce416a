"""The machine and the versions that a measurement was taken with.

Whatever cannot be found out is ``"unavailable"``: never left out, never zero.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["UNAVAILABLE", "environment"]

UNAVAILABLE = "unavailable"

#: Instruction sets that decide which integer kernels run, by the names the kernel gives them in
#: /proc/cpuinfo (x86-64 under "flags", ARM under "Features").
_FEATURES: Mapping[str, str] = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "amx_int8": "amx",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "sve": "sve",
}

_PACKAGES = ("numpy", "onnxruntime", "edgeopt")

#: cgroup v1 says "no limit" by a number near 2**63.
_NO_LIMIT = 1 << 60


def environment(*, threads: int = 1, root: Path = Path("/")) -> dict[str, Any]:
    """CPU, limits, load and versions as a JSON-ready mapping; ``root`` is where /proc hangs."""
    cpuinfo = _cpuinfo(root)
    return {
        "cpu": _cpu_model(cpuinfo),
        "features": _cpu_features(cpuinfo),
        "machine": platform.machine() or UNAVAILABLE,
        "system": f"{platform.system()} {platform.release()}".strip() or UNAVAILABLE,
        "cores": os.cpu_count() or UNAVAILABLE,
        "cores_usable": _usable_cores(),
        "cpu_limit": _cpu_limit(root),
        "memory_total": _memory_total(root),
        "memory_limit": _memory_limit(root),
        "load_1min": _load(),
        "governor": _first_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "threads": threads,
    }


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _first_line(path: Path) -> str:
    lines = (_text(path) or "").strip().splitlines()
    return lines[0] if lines else UNAVAILABLE


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first value of every key: all cores are taken to be alike."""
    values: dict[str, str] = {}
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    return values


def _cpu_model(cpuinfo: Mapping[str, str]) -> str:
    for key in ("model name", "Model", "Hardware", "CPU part"):
        if cpuinfo.get(key):
            return cpuinfo[key]
    return platform.processor() or UNAVAILABLE


def _cpu_features(cpuinfo: Mapping[str, str]) -> list[str] | str:
    listed = cpuinfo.get("flags") or cpuinfo.get("Features")
    if not listed:
        return UNAVAILABLE
    flags = frozenset(listed.split())
    return [name for flag, name in _FEATURES.items() if flag in flags]


def _usable_cores() -> int | str:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return UNAVAILABLE


def _load() -> float | str:
    if not hasattr(os, "getloadavg"):
        return UNAVAILABLE
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return UNAVAILABLE


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        if package == "edgeopt":  # run from its source tree
            from edgeopt import __version__

            return __version__
        return UNAVAILABLE


def _memory_total(root: Path) -> int | str:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            return int(rest.split()[0]) * 1024
    return UNAVAILABLE


def _cgroups(root: Path) -> dict[str, str]:
    """This process's group by controller; the unified hierarchy (v2) under the empty name."""
    groups = {}
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path.strip("/")
    return groups


def _up(base: Path, group: str) -> list[Path]:
    """The group's folder and those above it: a limit anywhere on the way holds."""
    parts = [part for part in group.split("/") if part]
    return [base.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _cpu_limit(root: Path) -> float | str:
    """Cores' worth of time that the container may use, "none", or unavailable."""
    groups = _cgroups(root)
    found: list[float] = []
    known = False
    for folder in _up(root / "sys/fs/cgroup", groups.get("", "")):
        quota, _, period = _first_line(folder / "cpu.max").partition(" ")
        known |= bool(period)
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            found.append(int(quota) / int(period))
    for folder in _up(root / "sys/fs/cgroup/cpu", groups.get("cpu", "")):
        quota = _first_line(folder / "cpu.cfs_quota_us")
        period = _first_line(folder / "cpu.cfs_period_us")
        known |= quota != UNAVAILABLE
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            found.append(int(quota) / int(period))
    return _limit(found, known)


def _memory_limit(root: Path) -> float | str:
    """Bytes that the container may use, "none", or unavailable."""
    groups = _cgroups(root)
    places: Sequence[tuple[Path, str]] = [
        *((p, "memory.max") for p in _up(root / "sys/fs/cgroup", groups.get("", ""))),
        *(
            (p, "memory.limit_in_bytes")
            for p in _up(root / "sys/fs/cgroup/memory", groups.get("memory", ""))
        ),
    ]
    values = [_first_line(folder / name) for folder, name in places]
    found = [int(value) for value in values if value.isdigit() and int(value) < _NO_LIMIT]
    return _limit(found, any(value != UNAVAILABLE for value in values))


def _limit(found: Sequence[float], known: bool) -> float | str:
    if found:
        return min(found)
    return "none" if known else UNAVAILABLE
