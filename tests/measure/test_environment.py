"""The environment, read from systems written out as files."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeopt import errors
from edgeopt.measure import environment as module
from edgeopt.measure.environment import CONDITIONS, differences, environment, fingerprint
from edgeopt.measure.gpu import Gpu


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


def test_gpus_by_name_or_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    none = environment()["gpus"]
    assert isinstance(none, list) or none.startswith("unavailable: no ")
    closed: list[bool] = []

    class Two:
        reason = ""
        devices = (Gpu("GPU-a", "H200", "580.1", 80 << 30), Gpu("GPU-b", "L4", "580.1", None))

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(module, "Gpus", Two)
    found = environment()
    assert found["gpus"] == [
        {"uuid": "GPU-a", "name": "H200", "driver": "580.1", "memory_total": 80 << 30},
        {"uuid": "GPU-b", "name": "L4", "driver": "580.1", "memory_total": "unavailable"},
    ]
    assert json.loads(json.dumps(found)) == found
    assert closed
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert environment()["gpus"].startswith("unavailable: no nvidia-ml-py here")


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


def test_packages_that_are_not_there_or_come_under_another_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages = {"no-such-package": ("no-such-package",), "onnxruntime": ("no-such", "numpy")}
    monkeypatch.setattr(module, "_PACKAGES", packages)
    found = environment()
    assert found["no-such-package"] == "unavailable"
    assert found["onnxruntime"] == f"{np.__version__} (numpy)"


def test_versions_are_found_without_importing() -> None:
    script = (
        "import sys; from edgeopt.measure.environment import environment\n"
        "from edgeopt.measure import activity, cold, energy, footprint, gpu, pinning\n"
        "environment(); gpu.Gpus()\n"
        "print(sorted({'torch', 'onnxruntime', 'onnx', 'psutil', 'llama_cpp'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(errors.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


PI4_CORE = """processor\t: {n}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)


@pytest.mark.usefixtures("four_cores")
def test_a_raspberry_pi(tmp_path: Path) -> None:
    cpus = "sys/devices/system/cpu"
    freq = f"{cpus}/cpu{{n}}/cpufreq"
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "".join(PI4_CORE.format(n=n) for n in range(4))
            + "Revision\t: c03114\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/meminfo": "MemTotal: 3884000 kB\nMemAvailable: 3000000 kB\n"
            "SwapTotal: 102396 kB\nSwapFree: 100000 kB\n",
            **{f"{freq.format(n=n)}/scaling_cur_freq": f"{600000 + n}\n" for n in range(4)},
            **{f"{freq.format(n=n)}/scaling_min_freq": "600000\n" for n in range(4)},
            **{f"{freq.format(n=n)}/scaling_max_freq": "1500000\n" for n in range(4)},
            **{f"{freq.format(n=n)}/scaling_governor": "ondemand\n" for n in range(4)},
            **{f"{cpus}/cpu{n}/topology/core_cpus_list": f"{n}\n" for n in range(4)},
            "sys/class/thermal/thermal_zone0/temp": "61341\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        },
    )
    found = environment(root=root)
    assert found["cpu"] == "Cortex-A72"
    assert found["board"] == "Raspberry Pi 4 Model B Rev 1.4"
    assert found["features"] == []
    assert found["cores_physical"] == 4
    assert found["frequency_now_mhz"] == [600, 600]
    assert (found["frequency_min_mhz"], found["frequency_max_mhz"]) == (600, 1500)
    assert found["governor"] == "ondemand"
    assert found["temperature_c"] == 61.341
    assert found["firmware_limits"] == [
        "under-voltage",
        "throttled",
        "under-voltage (earlier)",
        "throttled (earlier)",
    ]
    assert found["swap_used"] == 2396 * 1024
    assert found["memory_available"] == 3000000 * 1024
    assert found["virtual_machine"] == "unavailable"


@pytest.mark.usefixtures("four_cores")
def test_cores_of_two_kinds(tmp_path: Path) -> None:
    block = "processor : {n}\nFeatures : asimdhp asimddp i8mm bf16 sve sve2 sme\n"
    block += "CPU implementer : 0x41\nCPU part : {part}\n\n"
    freq = "sys/devices/system/cpu/cpu{n}/cpufreq/"
    root = write(
        tmp_path,
        {
            "proc/cpuinfo": "".join(
                block.format(n=n, part=p)
                for n, p in enumerate(["0xd05", "0xd05", "0xd0b", "0xfff"])
            ),
            freq.format(n=0) + "scaling_governor": "schedutil\n",
            freq.format(n=2) + "scaling_governor": "performance\n",
            freq.format(n=0) + "cpuinfo_min_freq": "300000\n",
            freq.format(n=2) + "cpuinfo_max_freq": "2400000\n",
        },
    )
    found = environment(root=root)
    assert found["cpu"] == "2x Cortex-A55 + 1x Cortex-A76 + 1x implementer 0x41 part 0xfff"
    assert found["features"] == ["fp16", "dotprod", "i8mm", "bf16", "sve", "sve2", "sme"]
    assert found["governor"] == "performance, schedutil"
    assert (found["frequency_min_mhz"], found["frequency_max_mhz"]) == (300, 2400)
    assert found["frequency_now_mhz"] == found["frequency_how"] == "unavailable"


@pytest.mark.usefixtures("four_cores")
def test_x86_bare_metal_with_counters(tmp_path: Path) -> None:
    cpu = "sys/devices/system/cpu"
    files = {
        "proc/cpuinfo": "".join(
            f"processor : {n}\nmodel name : Xeon\ncpu MHz : {800 + 100 * n}.5\nflags : fma f16c\n\n"
            for n in range(8)
        ),
        "proc/meminfo": "HugePages_Total:       3\n",
        "proc/self/cgroup": "0::/\n",
        f"{cpu}/intel_pstate/no_turbo": "1\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    for n in range(4):
        files[f"{cpu}/cpu{n}/thermal_throttle/core_throttle_count"] = f"{n}\n"
        files[f"{cpu}/cpu{n}/thermal_throttle/package_throttle_count"] = f"{10 + n // 2}\n"
        files[f"{cpu}/cpu{n}/topology/physical_package_id"] = f"{n // 2}\n"
        files[f"{cpu}/cpu{n}/topology/thread_siblings_list"] = f"{n % 2},{n % 2 + 2}\n"
    found = environment(root=write(tmp_path, files))
    assert found["virtual_machine"] == "none"
    assert found["container"] == "none"
    assert found["thermal_throttles"] == 0 + 1 + 2 + 3 + 10 + 11
    assert found["cores_physical"] == 2
    assert found["turbo"] == "off"
    assert found["frequency_now_mhz"] == [800, 1100]  # of the usable ones
    assert found["frequency_how"] == "cpuinfo"
    assert (found["huge_pages"], found["huge_pages_reserved"]) == ("madvise", 3)


@pytest.mark.parametrize(
    ("files", "virtual", "container"),
    [
        ({"proc/cpuinfo": "flags : fpu hypervisor\n"}, "yes", "unavailable"),
        (
            {
                "proc/cpuinfo": "flags : hypervisor\n",
                "sys/class/dmi/id/sys_vendor": "QEMU\n",
                "run/systemd/container": "lxc\n",
            },
            "qemu",
            "lxc",
        ),
        ({"sys/hypervisor/type": "xen\n", "run/.containerenv": ""}, "xen", "podman"),
        ({".dockerenv": "", "proc/cpuinfo": "flags : fpu\n"}, "none", "docker"),
        ({"proc/self/cgroup": "0::/kubepods.slice/x\n"}, "unavailable", "kubepods"),
    ],
)
def test_machines_within_machines(
    tmp_path: Path, files: dict[str, str], virtual: str, container: str
) -> None:
    found = environment(root=write(tmp_path, files))
    assert (found["virtual_machine"], found["container"]) == (virtual, container)


def test_the_fingerprint_tells_machines_apart_and_not_days() -> None:
    one = environment()
    other = {**one, "load_1min": 99.0, "system": "Linux 99", "memory_total": 8 * 1024**3}
    same = {**one, "load_1min": 99.0, "system": "Linux 99", "memory_available": 1}
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(other)
    assert json.loads(json.dumps(fingerprint(one))) == fingerprint(one)


@pytest.mark.parametrize("name", ["cpu", "features", "cores_usable", "cpu_limit", "memory_limit"])
def test_each_part_of_the_machine_counts(name: str) -> None:
    one = environment()
    other = {**one, name: ["sve"] if name == "features" else 12345678901}
    assert fingerprint(one) != fingerprint(other)
    (found,) = differences(one, other)
    assert found.startswith(module.MACHINE[name])


def test_differences_in_words() -> None:
    one = {"cpu": "A", "features": ["avx2", "amx"], "memory_total": 8 << 30, "governor": "x"}
    assert differences(one, one) == []
    assert differences(one, {**one, "memory_total": int((8 << 30) * 0.99)}) == []
    other = {"cpu": "B", "features": ["avx2", "sve"], "memory_total": 4 << 30, "governor": "y"}
    assert differences(one, other) == [
        "CPU: A, B",
        "CPU features: only the first has amx, only the second has sve",
        "memory: 8.0 GiB, 4.0 GiB",
    ]
    assert differences(one, other, CONDITIONS) == ["governor: x, y"]
    assert differences(one, {**one, "cpu": "unavailable"}) == ["CPU: A, unavailable"]
    assert differences(one, {}) == []
    assert differences(one, {**one, "features": "unavailable"}) == [
        "CPU features: ['avx2', 'amx'], unavailable"
    ]
