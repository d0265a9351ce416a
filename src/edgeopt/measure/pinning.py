"""Cores for a worker: as many physical ones as it has threads, the fastest that it may have.

A thread that wanders loses its caches; two threads on one core's two hyper-threads share what a
thread on a core has alone; and on a big.LITTLE machine a slow core makes all the others wait.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.measure.sysfiles import first_line, number

__all__ = ["Core", "Pinning", "cores", "pin"]

_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Core:
    """One logical processor. Those of one physical core have the same ``siblings``.

    ``capacity`` says which of a machine's cores are the faster ones, 0 where it does not tell.
    """

    cpu: int
    siblings: str
    package: int
    capacity: int


@dataclass(frozen=True)
class Pinning:
    """The logical processors that the process may run on now, and how that came about."""

    cpus: tuple[int, ...]
    pinned: bool
    how: str


def cores(allowed: Collection[int], root: Path = _CPUS) -> list[Core]:
    """What the machine says of the logical processors ``allowed``."""
    found = []
    for cpu in sorted(allowed):
        folder = root / f"cpu{cpu}"
        topology = folder / "topology"
        siblings = first_line(topology / "core_cpus_list")
        siblings = siblings or first_line(topology / "thread_siblings_list") or str(cpu)
        capacity = number(folder / "cpu_capacity")
        # A machine whose cores are not alike gives them different capacities or frequencies.
        capacity = capacity or number(folder / "cpufreq/cpuinfo_max_freq") or 0
        package = number(topology / "physical_package_id") or 0
        found.append(Core(cpu, siblings, package, capacity))
    return found


def pin(threads: int, root: Path = _CPUS) -> Pinning:
    """Keep this process on ``threads`` physical cores, one logical processor of each.

    To be called before a runtime starts its threads, which inherit it. Where there are fewer
    physical cores than threads, the process keeps all that it was allowed, and that is said.
    """
    if not hasattr(os, "sched_setaffinity"):
        return Pinning((), False, f"not pinned: {sys.platform} has no sched_setaffinity")
    allowed = cores(os.sched_getaffinity(0), root)
    every = tuple(core.cpu for core in allowed)
    chosen = _choose(allowed, threads)
    if len(chosen) < threads:
        found = f"{len(chosen)} physical cores, {len(allowed)} logical, are allowed"
        return Pinning(every, False, f"not pinned: {threads} threads, and {found}")
    cpus = tuple(sorted(core.cpu for core in chosen))
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        return Pinning(every, False, f"not pinned: {error.strerror}")
    fastest = len({core.capacity for core in allowed}) > 1
    kind = "the fastest physical cores" if fastest else "physical cores"
    listed = ", ".join(map(str, cpus))
    return Pinning(cpus, True, f"pinned to {kind}, one thread each: cpu {listed}")


def _choose(allowed: Sequence[Core], threads: int) -> list[Core]:
    """The fastest first; together on one package; core 0, where interrupts go, last."""
    one_each: dict[str, Core] = {}
    for core in allowed:
        one_each.setdefault(core.siblings, core)
    ranked = sorted(one_each.values(), key=lambda c: (-c.capacity, c.package, c.cpu == 0, c.cpu))
    return ranked[:threads]
