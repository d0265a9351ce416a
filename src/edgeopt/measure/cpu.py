"""The processor: its name, what it can do, how fast it runs, and whether it had to slow down.

``root`` is where /proc and /sys hang. What cannot be found out is None.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from edgeopt.measure.sysfiles import first_line, number, numbered, text

__all__ = [
    "FEATURES",
    "board",
    "cpu_features",
    "cpu_flags",
    "cpu_model",
    "firmware_limits",
    "frequencies",
    "governor",
    "physical_cores",
    "temperature",
    "thermal_throttles",
    "turbo",
]

#: Instruction sets that decide which kernels run, by the names the kernel gives them in
#: /proc/cpuinfo (x86-64 under "flags", ARM under "Features").
FEATURES: Mapping[str, str] = {
    "f16c": "f16c",
    "fma": "fma",
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "avx_vnni": "avx_vnni",
    "avx_vnni_int8": "avx_vnni_int8",
    "amx_int8": "amx",
    "amx_bf16": "amx_bf16",
    "neon": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "sme2": "sme2",
}

#: Cores by implementer and part, as ARM's kernels number them: they give no name in words.
_PARTS: Mapping[int, Mapping[int, str]] = {
    0x41: {
        0xB76: "ARM1176",
        0xC07: "Cortex-A7",
        0xC08: "Cortex-A8",
        0xC09: "Cortex-A9",
        0xC0F: "Cortex-A15",
        0xD02: "Cortex-A34",
        0xD03: "Cortex-A53",
        0xD04: "Cortex-A35",
        0xD05: "Cortex-A55",
        0xD07: "Cortex-A57",
        0xD08: "Cortex-A72",
        0xD09: "Cortex-A73",
        0xD0A: "Cortex-A75",
        0xD0B: "Cortex-A76",
        0xD0C: "Neoverse-N1",
        0xD0D: "Cortex-A77",
        0xD0E: "Cortex-A76AE",
        0xD40: "Neoverse-V1",
        0xD41: "Cortex-A78",
        0xD42: "Cortex-A78AE",
        0xD44: "Cortex-X1",
        0xD46: "Cortex-A510",
        0xD47: "Cortex-A710",
        0xD48: "Cortex-X2",
        0xD49: "Neoverse-N2",
        0xD4A: "Neoverse-E1",
        0xD4B: "Cortex-A78C",
        0xD4C: "Cortex-X1C",
        0xD4D: "Cortex-A715",
        0xD4E: "Cortex-X3",
        0xD4F: "Neoverse-V2",
        0xD80: "Cortex-A520",
        0xD81: "Cortex-A720",
        0xD82: "Cortex-X4",
        0xD83: "Neoverse-V3AE",
        0xD84: "Neoverse-V3",
        0xD85: "Cortex-X925",
        0xD87: "Cortex-A725",
        0xD8E: "Neoverse-N3",
    },
    0x51: {
        0x800: "Kryo 2xx Gold",
        0x801: "Kryo 2xx Silver",
        0x802: "Kryo 3xx Gold",
        0x803: "Kryo 3xx Silver",
        0x804: "Kryo 4xx Gold",
        0x805: "Kryo 4xx Silver",
        0x001: "Oryon",
    },
    0x61: {
        0x022: "Apple M1 Icestorm",
        0x023: "Apple M1 Firestorm",
        0x024: "Apple M1 Pro Icestorm",
        0x025: "Apple M1 Pro Firestorm",
        0x028: "Apple M1 Max Icestorm",
        0x029: "Apple M1 Max Firestorm",
        0x032: "Apple M2 Blizzard",
        0x033: "Apple M2 Avalanche",
        0x034: "Apple M2 Pro Blizzard",
        0x035: "Apple M2 Pro Avalanche",
        0x038: "Apple M2 Max Blizzard",
        0x039: "Apple M2 Max Avalanche",
    },
    0xC0: {0xAC3: "Ampere-1", 0xAC4: "Ampere-1A"},
    0x46: {0x001: "A64FX"},
    0x48: {0xD01: "Kunpeng-920"},
    0x4E: {0x003: "Denver 2", 0x004: "Carmel"},
}

#: Bits of a Raspberry Pi's firmware word: what holds it back now; 16 higher, since it started.
_FIRMWARE = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}

_CPUS = "sys/devices/system/cpu"


def cpu_model(root: Path) -> str | None:
    """The processor in words. Cores of several kinds are counted: 4x Cortex-A55 + 2x Cortex-A76."""
    blocks = _cpuinfo(root)
    parts: dict[str, int] = {}
    for block in blocks:
        if name := _part(block):
            parts[name] = parts.get(name, 0) + 1
    if len(parts) == 1:
        return next(iter(parts))
    if parts:
        return " + ".join(f"{count}x {name}" for name, count in sorted(parts.items()))
    for key in ("model name", "Model", "Hardware", "uarch", "CPU part"):
        for block in blocks:
            if block.get(key):
                return block[key]
    return platform.processor() or None


def cpu_features(root: Path) -> list[str] | None:
    """Names out of :data:`FEATURES` that the processor has."""
    for block in _cpuinfo(root):
        listed = block.get("flags") or block.get("Features")
        if listed:
            flags = frozenset(listed.split())
            return list(dict.fromkeys(name for flag, name in FEATURES.items() if flag in flags))
    return None


def cpu_flags(root: Path) -> frozenset[str] | None:
    """Every flag that an x86-64 kernel lists; None on other processors."""
    for block in _cpuinfo(root):
        if block.get("flags"):
            return frozenset(block["flags"].split())
    return None


def board(root: Path) -> str | None:
    """The computer in words, as Raspberry Pi 4 Model B Rev 1.4."""
    found = first_line(root / "proc/device-tree/model")
    if found:
        return found
    for block in _cpuinfo(root):
        if block.get("Model"):
            return block["Model"]
    return first_line(root / "sys/class/dmi/id/product_name")


def frequencies(root: Path, cpus: Collection[int]) -> dict[str, Any]:
    """MHz over the logical processors ``cpus``: the slowest and the fastest now, and the limits.

    ``frequency_how`` is ``scaling_cur_freq``, or ``cpuinfo``, which in a virtual machine is the
    nominal frequency and never changes.
    """
    folders = [root / _CPUS / f"cpu{cpu}" / "cpufreq" for cpu in sorted(cpus)]
    now = _megahertz(folders, "scaling_cur_freq")
    how: str | None = "scaling_cur_freq"
    if not now:
        blocks = [b for b in _cpuinfo(root) if b.get("processor", "").isdecimal()]
        shown = [b.get("cpu MHz", "") for b in blocks if int(b["processor"]) in cpus]
        now = [round(float(mhz)) for mhz in shown if mhz.replace(".", "", 1).isdecimal()]
        how = "cpuinfo"
    low = _megahertz(folders, "scaling_min_freq") or _megahertz(folders, "cpuinfo_min_freq")
    high = _megahertz(folders, "scaling_max_freq") or _megahertz(folders, "cpuinfo_max_freq")
    return {
        "frequency_now_mhz": [min(now), max(now)] if now else None,
        "frequency_min_mhz": min(low, default=None),
        "frequency_max_mhz": max(high, default=None),
        "frequency_how": how if now else None,
    }


def governor(root: Path, cpus: Collection[int]) -> str | None:
    """What decides the frequency: performance, powersave, ...; several where cores differ."""
    folders = [root / _CPUS / f"cpu{cpu}" / "cpufreq" for cpu in sorted(cpus)]
    found = {first_line(folder / "scaling_governor") for folder in folders} - {None}
    return ", ".join(sorted(str(name) for name in found)) or None


def turbo(root: Path) -> str | None:
    """Whether the processor may exceed its nominal frequency: on or off."""
    off = number(root / _CPUS / "intel_pstate/no_turbo")
    boost = number(root / _CPUS / "cpufreq/boost")
    if off is None and boost is None:
        return None
    return "on" if off == 0 or boost == 1 else "off"


def physical_cores(root: Path, cpus: Collection[int]) -> int | None:
    """Physical cores among the logical processors ``cpus``."""
    found = set()
    for cpu in cpus:
        topology = root / _CPUS / f"cpu{cpu}" / "topology"
        line = first_line(topology / "core_cpus_list")
        found.add(line or first_line(topology / "thread_siblings_list"))
    return None if None in found or not found else len(found)


def thermal_throttles(root: Path) -> int | None:
    """Times that a core or a package was too hot and slowed down, since the machine started."""
    packages: dict[str, int] = {}
    cores = []
    for folder in numbered(root / _CPUS, "cpu"):
        core = number(folder / "thermal_throttle/core_throttle_count")
        package = number(folder / "thermal_throttle/package_throttle_count")
        if core is not None:
            cores.append(core)
        if package is not None:  # every core of a package shows its package's
            packages[first_line(folder / "topology/physical_package_id") or ""] = package
    return sum(cores) + sum(packages.values()) if cores or packages else None


def firmware_limits(root: Path) -> list[str] | None:
    """What a Raspberry Pi's firmware holds it back for: now, and at any time since it started."""
    line = first_line(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        word = int(line or "", 16)
    except ValueError:
        return None
    now = [name for bit, name in _FIRMWARE.items() if word >> bit & 1]
    since = [f"{name} (earlier)" for bit, name in _FIRMWARE.items() if word >> (bit + 16) & 1]
    return now + since


def temperature(root: Path) -> float | None:
    """The hottest of the machine's own sensors, in degrees Celsius."""
    zones = numbered(root / "sys/class/thermal", "thermal_zone")
    found = [value for zone in zones if (value := number(zone / "temp")) is not None]
    likely = [value / 1000 for value in found if 0 < value < 150_000]  # others are not connected
    return max(likely, default=None)


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """One mapping a logical processor; what stands below them all is one more."""
    blocks: list[dict[str, str]] = []
    for paragraph in (text(root / "proc/cpuinfo") or "").split("\n\n"):
        pairs = (line.partition(":") for line in paragraph.splitlines())
        block = {key.strip(): value.strip() for key, _, value in pairs if key.strip()}
        if block:
            blocks.append(block)
    return blocks


def _part(block: Mapping[str, str]) -> str | None:
    try:
        implementer, part = int(block["CPU implementer"], 16), int(block["CPU part"], 16)
    except (KeyError, ValueError):
        return None
    name = _PARTS.get(implementer, {}).get(part)
    return name or f"implementer {implementer:#x} part {part:#x}"


def _megahertz(folders: Collection[Path], name: str) -> list[int]:
    found = [number(folder / name) for folder in folders]
    return [round(kilohertz / 1000) for kilohertz in found if kilohertz]
