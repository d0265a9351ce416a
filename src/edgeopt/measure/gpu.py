"""NVIDIA devices through NVML: who they are, what a process holds of them, energy, clocks.

Devices go by UUID: NVML counts them in the order of the bus, CUDA by default the fastest first.
Where there is no device, no driver or no nvidia-ml-py, :attr:`Gpus.reason` says so and the list
is empty; what a device does not tell is None.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Gpu", "GpuMemory", "GpuMemoryMeter", "Gpus"]

#: The inode of the first PID namespace (PROC_PID_INIT_INO): a process elsewhere has other PIDs
#: than the driver knows.
_FIRST_NAMESPACE = "pid:[4026531836]"

#: NVML's clocks: graphics, multiprocessors, memory.
_CLOCKS = {"graphics": 0, "sm": 1, "memory": 2}

#: Why a device runs slower than it could, by the bits of NVML's event reasons.
_SLOWED: Mapping[int, str] = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Gpu:
    """One device. ``memory_total`` in bytes, None where the device does not tell."""

    uuid: str
    name: str
    driver: str
    memory_total: int | None


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of device memory; None with the reason in ``how``, else how they were counted."""

    nbytes: int | None
    how: str


class Gpus:
    """The devices that NVML sees. ``library`` is the ``pynvml`` module, imported when not given."""

    def __init__(self, library: Any = None) -> None:
        self._handles: dict[str, Any] = {}
        self.devices: tuple[Gpu, ...] = ()
        self.reason = ""
        if library is None:
            try:
                library = importlib.import_module("pynvml")
            except ImportError:
                # no advice with a path in it: this text is saved and sent to others
                self.reason = "no nvidia-ml-py here, edgeopt's extra gpu brings it"
                return
        self._nvml = library
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            self.reason = f"no NVIDIA device: {error}"
            return
        self.devices = self._look()
        if not self.devices:
            self.reason = "no NVIDIA device: the driver lists none"

    def close(self) -> None:
        """Give NVML back; the devices are not asked afterwards."""
        if self.devices:
            self._ask("Shutdown")
        self._handles.clear()

    def find(self, ordinal: int = 0, environ: Mapping[str, str] | None = None) -> Gpu | None:
        """The device that CUDA calls ``ordinal``; None where that is not certain.

        It is where CUDA_VISIBLE_DEVICES names UUIDs, where CUDA counts as NVML does, or where all
        devices are of one kind (those stay in the order of the bus).
        """
        environ = os.environ if environ is None else environ
        alike = len({gpu.name for gpu in self.devices}) <= 1
        in_order = alike or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        visible = environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            names = [str(i) for i in range(len(self.devices))]
        else:
            names = [name.strip() for name in visible.split(",")]
        if not 0 <= ordinal < len(names):
            return None
        name = names[ordinal]
        if name.isdecimal():
            index = int(name)
            return self.devices[index] if in_order and index < len(self.devices) else None
        found = [gpu for gpu in self.devices if name and gpu.uuid.startswith(name)]
        return found[0] if len(found) == 1 else None

    def used(self, gpu: Gpu) -> int | None:
        """Bytes that all processes together, and the driver, hold on the device."""
        found = self._of(gpu, "DeviceGetMemoryInfo")
        return None if found is None else int(found.used)

    def of_process(self, gpu: Gpu, pid: int) -> int | None:
        """Bytes that the process holds on the device; None where NVML does not list it.

        A process that computes and draws is in two lists with the same memory: the larger counts.
        """
        found = []
        for kind in ("Compute", "Graphics"):
            listed = self._of(gpu, f"DeviceGet{kind}RunningProcesses") or ()
            # None for its memory: not available (as under Windows' display driver).
            sizes = [p.usedGpuMemory for p in listed if p.pid == pid]
            if sizes and None not in sizes:
                found.append(sum(sizes))
        return max(found, default=None)

    def energy(self, gpu: Gpu) -> float | None:
        """Joules since the driver was loaded, of the whole device."""
        return _thousandth(self._of(gpu, "DeviceGetTotalEnergyConsumption"))

    def state(self, gpu: Gpu) -> dict[str, Any]:
        """Clocks (MHz), temperature (C), power (W), and what slows the device down, JSON-ready.

        What the device does not tell is "unavailable".
        """
        found: dict[str, Any] = {}
        for name, kind in _CLOCKS.items():
            found[f"clock_{name}_mhz"] = self._of(gpu, "DeviceGetClockInfo", kind)
            found[f"clock_{name}_max_mhz"] = self._of(gpu, "DeviceGetMaxClockInfo", kind)
        found["temperature_c"] = self._of(gpu, "DeviceGetTemperature", 0)
        found["power_w"] = _thousandth(self._of(gpu, "DeviceGetPowerUsage"))
        found["power_limit_w"] = _thousandth(self._of(gpu, "DeviceGetEnforcedPowerLimit"))
        bits = self._of(gpu, "DeviceGetCurrentClocksThrottleReasons")
        slowed = None if bits is None else [word for bit, word in _SLOWED.items() if bits & bit]
        found["slowed_by"] = slowed
        return {name: "unavailable" if v is None else v for name, v in found.items()}

    def _look(self) -> tuple[Gpu, ...]:
        driver = str(self._ask("SystemGetDriverVersion") or "unavailable")
        devices = []
        for index in range(self._ask("DeviceGetCount") or 0):
            handle = self._ask("DeviceGetHandleByIndex", index)
            uuid = None if handle is None else self._ask("DeviceGetUUID", handle)
            if uuid is None:
                continue
            self._handles[uuid] = handle
            name = self._ask("DeviceGetName", handle) or "unavailable"
            memory = self._ask("DeviceGetMemoryInfo", handle)
            total = None if memory is None else int(memory.total)
            devices.append(Gpu(uuid, str(name), driver, total))
        return tuple(devices)

    def _of(self, gpu: Gpu, question: str, *more: Any) -> Any:
        return self._ask(question, self._handles[gpu.uuid], *more)

    def _ask(self, question: str, *about: Any) -> Any:
        """The answer of ``nvml<question>``, None where there is none."""
        try:
            return getattr(self._nvml, f"nvml{question}")(*about)
        except self._nvml.NVMLError:
            return None


class GpuMemoryMeter:
    """Begun before the runtime touches the device; then read whenever wanted."""

    def __init__(self, gpus: Gpus, gpu: Gpu | None, pid: int, proc: Path) -> None:
        self._gpus, self._gpu, self._pid = gpus, gpu, pid
        if gpu is None:
            return
        self._before = gpus.used(gpu)
        # In a container our PID may be somebody else's outside: whoever is listed before we have
        # touched the device is not us.
        self._stranger = not _first_namespace(proc) and gpus.of_process(gpu, pid) is not None

    @classmethod
    def begin(
        cls,
        gpus: Gpus,
        gpu: Gpu | None = None,
        pid: int | None = None,
        proc: Path = Path("/proc/self"),
    ) -> GpuMemoryMeter:
        """``gpu`` is the one that CUDA calls 0 where none is given, ``pid`` this process."""
        return cls(gpus, gpu or gpus.find(), os.getpid() if pid is None else pid, proc)

    def read(self) -> GpuMemory:
        """What the process holds now; else, labelled, what the whole device's use grew by."""
        gpu = self._gpu
        if gpu is None:
            return GpuMemory(None, self._gpus.reason or "which device CUDA uses is not certain")
        own = None if self._stranger else self._gpus.of_process(gpu, self._pid)
        if own is not None:
            return GpuMemory(own, "NVML, this process")
        after = self._gpus.used(gpu)
        if after is None or self._before is None:
            return GpuMemory(None, f"{gpu.name} does not tell its memory")
        grown = max(0, after - self._before)
        return GpuMemory(grown, "NVML, growth of the whole device: the process is not listed")


def _first_namespace(proc: Path) -> bool:
    try:
        return str((proc / "ns/pid").readlink()) == _FIRST_NAMESPACE
    except OSError:
        return True  # no namespaces here


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000
