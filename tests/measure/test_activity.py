"""What went on meanwhile: counters written out as files, and this machine's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgeopt.measure.activity import between, snapshot


def counters(
    root: Path,
    stat: str,
    *,
    own: int = 0,
    swapped: int = 0,
    throttled: int = 0,
    thermal: int = 0,
) -> Path:
    me = os.getpid()
    files = {
        "proc/stat": stat,
        f"proc/{me}/stat": f"{me} (a) b) (c) S {'0 ' * 10}{own} 1 2 3 0 0\n",
        "proc/vmstat": f"pswpin {swapped}\npswpout 5\npgfault 9\n",
        "proc/loadavg": "1.25 0.5 0.1 1/2 3\n",
        "proc/self/cgroup": "0::/a\n",
        "sys/fs/cgroup/a/cpu.stat": f"usage_usec 1\nthrottled_usec {throttled}\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": f"{thermal}\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    allowed = [{0, 1}]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: allowed[0], raising=False)
    return allowed


ZERO = "cpu  9 9 9 9 9 9 9 9 0 0\n" + "".join(f"cpu{n} 0 0 0 0 0 0 0 0 0 0\n" for n in range(3))
#     user nice system idle iowait irq softirq steal guest: 100 ticks each of the first two
LATER = (
    "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 30 5 5 40 10 1 4 5 30 0\ncpu1 20 0 0 65 0 0 0 15 20 0\n"
    "cpu2 999 0 0 0 0 0 0 999 0 0\n"
)


def test_shares_of_the_processors_that_may_be_used(tmp_path: Path) -> None:
    before = snapshot(root=counters(tmp_path, ZERO))
    after = snapshot(
        root=counters(tmp_path, LATER, own=35, swapped=7, throttled=2_500_000, thermal=3)
    )
    found = between(before, after)
    assert found.steal == pytest.approx(20 / 200)
    assert found.busy == pytest.approx(65 / 200)
    assert found.others == pytest.approx(30 / 200)
    assert found.throttled == 2.5
    assert found.thermal_throttles == 3
    assert found.swapped == 7
    assert found.load == 1.25
    assert found.seconds >= 0
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_a_process_that_was_pinned_in_between(tmp_path: Path, two_cores: list[set[int]]) -> None:
    before = snapshot(root=counters(tmp_path, ZERO))
    two_cores[0] = {1}
    found = between(before, snapshot(root=counters(tmp_path, LATER)))
    assert (found.steal, found.busy) == (0.15, 0.2)


def test_nothing_known_is_none_and_not_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = between(snapshot(root=tmp_path), snapshot(root=tmp_path))
    assert set(found.to_json().values()) == {"unavailable", found.seconds}
    root = counters(tmp_path, ZERO)
    monkeypatch.delattr(os, "sched_getaffinity")
    before = snapshot(root=root)
    counters(tmp_path, "cpu  19 9 9 19 9 9 9 9 0 0\n")
    assert between(before, snapshot(root=root)).busy == 0.5
    # A process that has ended says no more what it used.
    assert between(before, snapshot([2**22 + 1], root)).others is None


def test_time_throttled_in_a_v1_container(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/cpu/x"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("nr_throttled 4\nthrottled_time 1500000000\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:cpu,cpuacct:/x\n0::/\n")
    assert snapshot(root=tmp_path).throttled == 1.5


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc")
def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    before = snapshot()
    while before.own is None or (snapshot().own or 0) < before.own + 3:
        pass
    found = between(before, snapshot())
    for share in (found.steal, found.busy, found.others):
        assert share is not None
        assert 0 <= share <= 1
    assert found.busy
