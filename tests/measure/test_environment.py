"""The environment, read from systems written out as files."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeopt.measure import environment as module
from edgeopt.measure.environment import environment


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine() -> None:
    found = environment(threads=2)
    assert found["numpy"] == np.__version__
    assert found["onnxruntime"] == onnxruntime.__version__
    assert found["python"] == platform.python_version()
    assert found["threads"] == 2
    assert found["edgeopt"]
    assert json.loads(json.dumps(found)) == found


def test_x86_in_a_v2_container(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: Zen 5\nflags\t\t: fpu avx2 avx512_vnni "
            "amx_int8\n\nprocessor\t: 1\nmodel name\t: other\n",
            "proc/meminfo": "MemTotal:       2048 kB\nMemFree: 1 kB\n",
            "proc/self/cgroup": "0::/pod/one\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/one/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/one/memory.max": "1000000\n",
            "sys/fs/cgroup/pod/memory.max": "max\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        },
    )
    found = environment(root=root)
    assert found["cpu"] == "Zen 5"
    assert found["features"] == ["avx2", "avx512_vnni", "amx"]
    assert found["memory_total"] == 2048 * 1024
    assert found["cpu_limit"] == 1.5
    assert found["memory_limit"] == 1_000_000
    assert found["governor"] == "powersave"


def test_arm_in_a_v1_container(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "Features : fp asimd asimddp i8mm sve\nCPU part : 0xd40\n",
            "proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    found = environment(root=root)
    assert found["cpu"] == "0xd40"
    assert found["features"] == ["dotprod", "i8mm", "sve"]
    assert found["cpu_limit"] == 0.5
    assert found["memory_limit"] == "none"


def test_what_cannot_be_found_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("getloadavg", "sched_getaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    found = environment(root=tmp_path)
    for key in ("cpu", "features", "cpu_limit", "memory_limit", "memory_total", "governor"):
        assert found[key] == "unavailable", key
    assert found["load_1min"] == found["cores_usable"] == "unavailable"


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("numpy", "no-such-package-as-this"))
    assert environment()["no-such-package-as-this"] == "unavailable"
