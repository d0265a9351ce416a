"""Pinning: on machines written out as files, and on this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt import errors
from edgeopt.measure.pinning import cores, pin

needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity"
)


def machine(root: Path, *cpus: tuple[str, int, int]) -> Path:
    """Logical processors as (siblings, package, capacity)."""
    for number, (siblings, package, capacity) in enumerate(cpus):
        topology = root / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "core_cpus_list").write_text(siblings + "\n")
        (topology / "physical_package_id").write_text(f"{package}\n")
        (root / f"cpu{number}/cpu_capacity").write_text(f"{capacity}\n")
    return root


HYPER = [(f"{n % 4},{n % 4 + 4}", n % 4 // 2, 1024) for n in range(8)]
BIG_LITTLE = [(str(n), 0, 446 if n < 4 else 1024) for n in range(6)]


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """What is allowed, and after it what has been set."""
    calls: list[set[int]] = [set(range(8))]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: calls[-1], raising=False)
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda pid, cpus: calls.append(set(cpus)), raising=False
    )
    return calls


@pytest.mark.parametrize(
    ("threads", "chosen"), [(1, {1}), (2, {0, 1}), (3, {0, 1, 2}), (4, {0, 1, 2, 3})]
)
def test_one_hyper_thread_of_each_core_of_one_package_first(
    tmp_path: Path, affinity: list[set[int]], threads: int, chosen: set[int]
) -> None:
    found = pin(threads, machine(tmp_path, *HYPER))
    assert found.pinned
    assert set(found.cpus) == affinity[-1] == chosen
    assert found.how.startswith("pinned to physical cores")


def test_more_threads_than_physical_cores_keep_what_is_allowed(
    tmp_path: Path, affinity: list[set[int]]
) -> None:
    found = pin(5, machine(tmp_path, *HYPER))
    assert not found.pinned
    assert found.cpus == tuple(range(8))
    assert found.how == "not pinned: 5 threads, and 4 physical cores, 8 logical, are allowed"
    assert len(affinity) == 1


def test_big_cores_before_little_ones(tmp_path: Path, affinity: list[set[int]]) -> None:
    affinity[0] = set(range(6))
    found = pin(2, machine(tmp_path, *BIG_LITTLE))
    assert found.cpus == (4, 5)
    assert "the fastest" in found.how


def test_only_among_the_allowed(tmp_path: Path, affinity: list[set[int]]) -> None:
    affinity[0] = {2, 3, 5}
    assert pin(2, machine(tmp_path, *BIG_LITTLE)).cpus == (2, 5)


def test_frequencies_tell_cores_apart_where_capacities_do_not(tmp_path: Path) -> None:
    root = machine(tmp_path, ("0", 0, 0), ("1", 0, 0))
    (root / "cpu1/cpufreq").mkdir()
    (root / "cpu1/cpufreq/cpuinfo_max_freq").write_text("2400000\n")
    assert [core.capacity for core in cores({0, 1, 7}, root)] == [0, 2400000, 0]


def test_a_refusal_and_a_system_without(
    tmp_path: Path, affinity: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, cpus: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    found = pin(1, machine(tmp_path, *HYPER))
    assert (found.pinned, found.how) == (False, "not pinned: Operation not permitted")
    monkeypatch.delattr(os, "sched_setaffinity")
    found = pin(1, tmp_path)
    assert (found.pinned, found.cpus) == (False, ())
    assert "no sched_setaffinity" in found.how


@needs_affinity
def test_this_machine_threads_started_later_included() -> None:
    script = (
        "import os, threading; from edgeopt.measure.pinning import pin\n"
        "found = pin(1); seen = []\n"
        "t = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))\n"
        "t.start(); t.join(); assert found.pinned and seen == [set(found.cpus)], (found, seen)"
    )
    root = str(Path(errors.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
