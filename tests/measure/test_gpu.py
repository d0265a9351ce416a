"""NVML's answers, by a module that gives them without a device."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeopt.measure.gpu import Gpu, GpuMemory, GpuMemoryMeter, Gpus

GB = 1 << 30


class NVMLError(Exception):
    pass


class Nvml:
    """What pynvml's module has, for devices given as mappings; a missing key is not supported."""

    NVMLError = NVMLError

    def __init__(self, *devices: dict[str, Any], broken: str = "") -> None:
        self.devices = devices
        self.broken = broken
        self.open = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise NVMLError(self.broken)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Mapping[str, Any]:
        return self.devices[index]

    def _get(self, handle: Mapping[str, Any], key: str) -> Any:
        if key not in handle:
            raise NVMLError("Not Supported")
        return handle[key]

    def nvmlDeviceGetUUID(self, handle: Mapping[str, Any]) -> Any:
        return self._get(handle, "uuid")

    def nvmlDeviceGetName(self, handle: Mapping[str, Any]) -> Any:
        return self._get(handle, "name")

    def nvmlDeviceGetMemoryInfo(self, handle: Mapping[str, Any]) -> Any:
        return SimpleNamespace(total=80 * GB, used=self._get(handle, "used"))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Mapping[str, Any]) -> Any:
        return [SimpleNamespace(pid=p, usedGpuMemory=m) for p, m in self._get(handle, "compute")]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Mapping[str, Any]) -> Any:
        return [SimpleNamespace(pid=p, usedGpuMemory=m) for p, m in self._get(handle, "graphics")]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Mapping[str, Any]) -> Any:
        return self._get(handle, "energy")

    def nvmlDeviceGetClockInfo(self, handle: Mapping[str, Any], kind: int) -> Any:
        return self._get(handle, "clocks")[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: Mapping[str, Any], kind: int) -> Any:
        return self._get(handle, "max_clocks")[kind]

    def nvmlDeviceGetTemperature(self, handle: Mapping[str, Any], sensor: int) -> Any:
        return self._get(handle, "temperature")

    def nvmlDeviceGetPowerUsage(self, handle: Mapping[str, Any]) -> Any:
        return self._get(handle, "power")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Mapping[str, Any]) -> Any:
        return self._get(handle, "limit")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Mapping[str, Any]) -> Any:
        return self._get(handle, "slowed")


def device(uuid: str = "GPU-a1", name: str = "H200", **more: Any) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "used": GB, **more}


def namespace(folder: Path, first: bool) -> Path:
    (folder / "ns").mkdir()
    (folder / "ns/pid").symlink_to("pid:[4026531836]" if first else "pid:[4026532222]")
    return folder


def test_devices_by_uuid() -> None:
    nvml = Nvml(device(), {"name": "without a uuid"}, device("GPU-b2", "L4"))
    gpus = Gpus(nvml)
    assert gpus.reason == ""
    assert gpus.devices == (
        Gpu("GPU-a1", "H200", "580.1", 80 * GB),
        Gpu("GPU-b2", "L4", "580.1", 80 * GB),
    )
    gpus.close()
    assert nvml.open == 0


def test_no_library_no_driver_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Gpus(Nvml(broken="NVML Shared Library Not Found"))
    assert broken.reason == "no NVIDIA device: NVML Shared Library Not Found"
    assert Gpus(Nvml()).reason == "no NVIDIA device: the driver lists none"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpus = Gpus()
    assert gpus.devices == ()
    assert gpus.reason == "no nvidia-ml-py here, edgeopt's extra gpu brings it"
    gpus.close()
    assert GpuMemoryMeter.begin(gpus).read() == GpuMemory(None, gpus.reason)


def test_the_library_itself_gives_devices_or_a_reason() -> None:
    gpus = Gpus()
    assert bool(gpus.devices) != bool(gpus.reason)
    gpus.close()


@pytest.mark.parametrize(
    ("environ", "ordinal", "found"),
    [
        ({}, 0, None),  # of two kinds, and CUDA counts the fastest first
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 1, "GPU-b2"),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}, 0, "GPU-b2"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b"}, 0, "GPU-b2"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-"}, 0, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, None),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 2, None),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "7"}, 0, None),
    ],
)
def test_the_device_that_cuda_means(
    environ: dict[str, str], ordinal: int, found: str | None
) -> None:
    gpu = Gpus(Nvml(device(), device("GPU-b2", "L4"))).find(ordinal, environ)
    assert (gpu and gpu.uuid) == found
    alike = Gpus(Nvml(device(), device("GPU-b2"))).find(1, {})
    assert alike is not None
    assert alike.uuid == "GPU-b2"


def test_the_two_lists_of_processes_are_not_added(tmp_path: Path) -> None:
    h200 = device(compute=[(7, 3 * GB), (8, GB)], graphics=[(7, 2 * GB)])
    gpus = Gpus(Nvml(h200))
    meter = GpuMemoryMeter.begin(gpus, pid=7, proc=namespace(tmp_path, True))
    assert meter.read() == GpuMemory(3 * GB, "NVML, this process")


def test_a_process_that_is_not_listed_falls_back_and_says_so(tmp_path: Path) -> None:
    h200 = device(compute=[(100, GB), (7, None)], graphics=[])
    gpus = Gpus(Nvml(h200))
    meter = GpuMemoryMeter.begin(gpus, pid=7, proc=namespace(tmp_path, False))
    h200["used"] = 4 * GB
    found = meter.read()
    assert found.nbytes == 3 * GB
    assert "whole device" in found.how
    h200["used"] = GB // 2  # another process has ended
    assert meter.read().nbytes == 0


def test_in_a_container_a_pid_listed_beforehand_is_anothers(tmp_path: Path) -> None:
    h200 = device(compute=[(7, 9 * GB)])
    meter = GpuMemoryMeter.begin(Gpus(Nvml(h200)), pid=7, proc=namespace(tmp_path, False))
    h200["used"] = 3 * GB
    found = meter.read()
    assert found.nbytes == 2 * GB
    assert "whole device" in found.how


def test_in_a_container_a_pid_listed_afterwards_is_ours(tmp_path: Path) -> None:
    h200 = device(compute=[])
    meter = GpuMemoryMeter.begin(Gpus(Nvml(h200)), pid=7, proc=namespace(tmp_path, False))
    h200["compute"] = [(7, 5 * GB)]
    assert meter.read() == GpuMemory(5 * GB, "NVML, this process")


def test_a_device_that_tells_nothing(tmp_path: Path) -> None:
    silent = {"uuid": "GPU-s", "name": "silent"}
    gpus = Gpus(Nvml(silent))
    (gpu,) = gpus.devices
    assert gpu.memory_total is None
    assert gpus.energy(gpu) is None
    assert set(gpus.state(gpu).values()) == {"unavailable"}
    assert GpuMemoryMeter.begin(gpus, pid=1, proc=tmp_path).read() == GpuMemory(
        None, "silent does not tell its memory"
    )
    two = Gpus(Nvml(device(), device("GPU-b2", "L4")))
    assert "not certain" in GpuMemoryMeter.begin(two, proc=tmp_path).read().how


def test_energy_clocks_and_what_slows() -> None:
    gpus = Gpus(
        Nvml(
            device(
                energy=12_500,
                clocks=(1000, 1100, 2600),
                max_clocks=(1900, 1980, 2619),
                temperature=61,
                power=250_000,
                limit=700_000,
                slowed=0x4 | 0x40 | 0x1,
            )
        )
    )
    (gpu,) = gpus.devices
    assert gpus.energy(gpu) == 12.5
    assert gpus.state(gpu) == {
        "clock_graphics_mhz": 1000,
        "clock_graphics_max_mhz": 1900,
        "clock_sm_mhz": 1100,
        "clock_sm_max_mhz": 1980,
        "clock_memory_mhz": 2600,
        "clock_memory_max_mhz": 2619,
        "temperature_c": 61,
        "power_w": 250.0,
        "power_limit_w": 700.0,
        "slowed_by": ["power cap", "thermal (hardware)"],
    }
