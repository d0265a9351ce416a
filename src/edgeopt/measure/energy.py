"""Energy from the counters that the hardware keeps: RAPL for processors, NVML for devices.

The counters belong to a whole processor package or device: what every other process used in
between is in them too, and idling is not subtracted. Where there is no counter, or only the
administrator may read it (as since Linux 5.10), the reason says so; never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeopt.measure.gpu import Gpu, Gpus
from edgeopt.measure.sysfiles import first_line, number

__all__ = ["POWERCAP", "EnergyMeter", "EnergyReading"]

POWERCAP = Path("/sys/class/powercap")

_MICRO = 1e-6


@dataclass(frozen=True)
class EnergyReading:
    """``joules`` of all the counters in ``parts`` together, None where there is none.

    ``covers`` says what they count; ``reason`` why one that was looked for is missing, empty
    where none is.
    """

    joules: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    covers: str = ""
    reason: str = ""


class EnergyMeter:
    """:meth:`begin` before the work, :meth:`end` after it: the joules between, or why not.

    ``gpu`` (of ``gpus``) is the device to count with the processor. Counters step about every
    millisecond (RAPL) to every 0.1 s (NVML), so the work should take much longer than that.
    """

    def __init__(
        self, gpus: Gpus | None = None, gpu: Gpu | None = None, root: Path = POWERCAP
    ) -> None:
        self._gpus, self._gpu = gpus, gpu
        self._packages = _packages(root)
        self._root = root
        self._before: dict[str, int | None] = {}
        self._gpu_before: float | None = None

    def begin(self) -> None:
        """Read the counters for the first time."""
        self._before = {name: number(p / "energy_uj") for name, p in self._packages.items()}
        self._gpu_before = self._gpu_energy()

    def end(self) -> EnergyReading:
        """What has been used since :meth:`begin`."""
        after = self._gpu_energy()
        parts: dict[str, float] = {}
        reasons = [] if self._packages else [f"no RAPL counters in {self._root}"]
        for name, folder in self._packages.items():
            used = _used(folder, self._before.get(name), number(folder / "energy_uj"))
            if isinstance(used, str):
                reasons.append(f"{name}: {used}")
            else:
                parts[name] = used * _MICRO
        gpu = self._gpu
        if gpu is not None:
            if after is None or self._gpu_before is None:
                reasons.append(f"{gpu.name}: no energy counter")
            else:
                parts[gpu.uuid] = after - self._gpu_before
        joules = sum(parts.values()) if parts else None
        covers = f"whole of {', '.join(parts)}, all processes" if parts else ""
        return EnergyReading(joules, parts, covers, "; ".join(reasons))

    def _gpu_energy(self) -> float | None:
        if self._gpus is None or self._gpu is None:
            return None
        return self._gpus.energy(self._gpu)


def _packages(root: Path) -> dict[str, Path]:
    """The folder of every processor package, by its name (package-0, package-0-die-1)."""
    found: dict[str, Path] = {}
    try:
        # A package can be there twice, through its registers and through memory ("-mmio"): the
        # first in this order counts. Domains within a package (core, dram) are part of it or
        # beside it, and are not counted; nor is "psys", which is the whole computer.
        folders = sorted(root.iterdir(), key=lambda p: ("mmio" in p.name, p.name))
    except OSError:
        return found
    for folder in folders:
        name = first_line(folder / "name") or ""
        if name.startswith("package"):
            found.setdefault(name, folder)
    return found


def _used(folder: Path, before: int | None, after: int | None) -> float | str:
    """Microjoules, or why they are not known."""
    if before is None or after is None:
        try:
            (folder / "energy_uj").read_bytes()
        except PermissionError:
            return "only the administrator may read the counter"
        except OSError as error:
            return str(error.strerror)
        return "the counter was not read at the beginning"
    if after >= before:
        return after - before
    span = number(folder / "max_energy_range_uj")
    return "the counter began anew" if span is None else after - before + span
