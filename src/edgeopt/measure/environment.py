"""The machine and the versions that a measurement was taken with.

Whatever cannot be found out is ``"unavailable"`` (of GPUs, with the reason): never left out, never
zero.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeopt.measure import cpu
from edgeopt.measure.gpu import Gpus
from edgeopt.measure.limits import cpu_limit, memory_limit
from edgeopt.measure.sysfiles import first_line, kilobytes, numbers, text

__all__ = ["CONDITIONS", "MACHINE", "UNAVAILABLE", "differences", "environment", "fingerprint"]

UNAVAILABLE = "unavailable"

#: What makes it another machine: figures from both sides are not compared.
MACHINE: Mapping[str, str] = {
    "cpu": "CPU",
    "features": "CPU features",
    "cores": "cores",
    "cores_usable": "usable cores",
    "cpu_limit": "CPU limit",
    "memory_limit": "memory limit",
    "memory_total": "memory",
    "machine": "architecture",
    "operating_system": "system",
    "virtual_machine": "virtual machine",
}

#: What can differ on one machine, and should be known when figures do.
CONDITIONS: Mapping[str, str] = {
    "system": "kernel",
    "governor": "governor",
    "turbo": "turbo",
    "frequency_max_mhz": "maximal frequency",
    "container": "container",
    "huge_pages": "transparent huge pages",
    "python": "Python",
    "numpy": "numpy",
    "onnxruntime": "ONNX Runtime",
    "torch": "torch",
    "llama-cpp-python": "llama-cpp-python",
    "edgeopt": "edgeopt",
    "threads": "threads",
}

#: Distributions that bring each package, by the name that it is imported by or known under.
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-openvino",
        "onnxruntime-directml",
        "onnxruntime-qnn",
    ),
    "torch": ("torch",),
    "llama-cpp-python": ("llama-cpp-python",),
    "edgeopt": ("edgeopt",),
}

#: Hypervisors by what their firmware calls the computer.
_HYPERVISORS: Mapping[str, str] = {
    "qemu": "qemu",
    "kvm": "kvm",
    "vmware": "vmware",
    "virtualbox": "virtualbox",
    "innotek": "virtualbox",
    "microsoft corporation": "hyper-v",
    "xen": "xen",
    "parallels": "parallels",
    "amazon ec2": "amazon ec2",
    "google compute engine": "google compute engine",
    "apple virtualization": "apple virtualization",
}

#: Containers by a part of their processes' control group.
_CONTAINERS = ("kubepods", "docker", "containerd", "libpod", "lxc", "garden")

#: Shares by which memory may differ: a kernel keeps some to itself, and not always as much.
_MEMORY_SLACK = 0.02

_GIB = 1 << 30


def environment(*, threads: int = 1, root: Path = Path("/")) -> dict[str, Any]:
    """CPU, limits, load and versions as a JSON-ready mapping; ``root`` is where /proc hangs.

    Bytes, MHz, degrees Celsius. What moves while one measures is in
    :mod:`edgeopt.measure.activity`.
    """
    usable = _usable_cores()
    cpus = range(os.cpu_count() or 0) if usable is None else usable
    memory = kilobytes(root / "proc/meminfo")
    found: dict[str, Any] = {
        "cpu": cpu.cpu_model(root),
        "features": cpu.cpu_features(root),
        "board": cpu.board(root),
        "machine": platform.machine() or None,
        "operating_system": platform.system() or None,
        "system": f"{platform.system()} {platform.release()}".strip() or None,
        "virtual_machine": _virtual_machine(root),
        "container": _container(root),
        "cores": os.cpu_count(),
        "cores_usable": None if usable is None else len(usable),
        "cores_physical": cpu.physical_cores(root, cpus),
        "cpu_limit": cpu_limit(root),
        "memory_total": memory.get("MemTotal"),
        "memory_available": memory.get("MemAvailable"),
        "memory_limit": memory_limit(root),
        "swap_used": _difference(memory.get("SwapTotal"), memory.get("SwapFree")),
        "huge_pages": _chosen(first_line(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        "huge_pages_reserved": _one_of(root / "proc/meminfo", "HugePages_Total"),
        "load_1min": _load(),
        "governor": cpu.governor(root, cpus),
        "turbo": cpu.turbo(root),
        **cpu.frequencies(root, cpus),
        "temperature_c": cpu.temperature(root),
        "thermal_throttles": cpu.thermal_throttles(root),
        "firmware_limits": cpu.firmware_limits(root),
        "gpus": _gpus(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "threads": threads,
    }
    return {name: UNAVAILABLE if value is None else value for name, value in found.items()}


def fingerprint(environment: Mapping[str, Any]) -> str:
    """One line that names the kind of machine: the same line, and figures may be compared.

    Memory is rounded up to whole GiB. What differs is said by :func:`differences`.
    """
    words = []
    for name in MACHINE:
        value = environment.get(name, UNAVAILABLE)
        if name in ("memory_total", "memory_limit") and _is_number(value):
            value = f"{-(-value // _GIB):.0f} GiB"
        elif isinstance(value, (list, tuple)):
            value = " ".join(map(str, value))
        words.append(f"{name}={value}")
    return "; ".join(words)


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], of: Mapping[str, str] = MACHINE
) -> list[str]:
    """What differs between two environments, in words; of :data:`MACHINE` or :data:`CONDITIONS`.

    What either of them does not mention (an older document) is no difference.
    """
    found = []
    for name, title in of.items():
        if name not in first or name not in second:
            continue
        one, other = first[name], second[name]
        if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
            found += _lists(title, one, other)
        elif name == "memory_total" and _is_number(one) and _is_number(other):
            if abs(one - other) > _MEMORY_SLACK * max(one, other):
                found.append(f"{title}: {one / _GIB:.1f} GiB, {other / _GIB:.1f} GiB")
        elif one != other:
            found.append(f"{title}: {one}, {other}")
    return found


def _lists(title: str, one: Collection[Any], other: Collection[Any]) -> list[str]:
    only = [
        f"only the {which} has {', '.join(map(str, extra))}"
        for which, extra in (
            ("first", [item for item in one if item not in other]),
            ("second", [item for item in other if item not in one]),
        )
        if extra
    ]
    return [f"{title}: {', '.join(only)}"] if only else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _usable_cores() -> set[int] | None:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return None


def _load() -> float | None:
    if not hasattr(os, "getloadavg"):
        return None
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _version(package: str) -> str | None:
    """Without importing it; under another distribution's name, with that name."""
    for name in _PACKAGES[package]:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return version if name == package else f"{version} ({name})"
    if package == "edgeopt":  # run from its source tree
        from edgeopt.version import VERSION

        return VERSION
    return None


def _gpus() -> list[dict[str, Any]] | str:
    """NVIDIA devices: name, uuid, driver, memory in bytes; or why none is known of."""
    gpus = Gpus()
    if not gpus.devices:
        return f"{UNAVAILABLE}: {gpus.reason}"
    found = [asdict(gpu) for gpu in gpus.devices]
    gpus.close()
    return [{k: UNAVAILABLE if v is None else v for k, v in each.items()} for each in found]


def _difference(total: int | None, free: int | None) -> int | None:
    return None if total is None or free is None else total - free


def _chosen(line: str | None) -> str | None:
    """The word in brackets: ``always [madvise] never``."""
    words = [word[1:-1] for word in (line or "").split() if word.startswith("[")]
    return words[0] if words else None


def _one_of(path: Path, name: str) -> int | None:
    """One ``Name:  123`` line of a file."""
    return numbers(path).get(f"{name}:")


def _virtual_machine(root: Path) -> str | None:
    """The hypervisor's name, "yes" where it has none, "none" on bare metal; None if not known."""
    flags = cpu.cpu_flags(root)
    if flags is not None and "hypervisor" not in flags:
        return "none"
    dmi = root / "sys/class/dmi/id"
    called = " ".join(first_line(dmi / n) or "" for n in ("sys_vendor", "product_name")).lower()
    for part, name in _HYPERVISORS.items():
        if part in called:
            return name
    other = first_line(root / "sys/hypervisor/type")
    other = other or first_line(root / "proc/device-tree/hypervisor/compatible")
    return other or (None if flags is None else "yes")


def _container(root: Path) -> str | None:
    """What kind of container this is, "none", or None where nobody says."""
    named = first_line(root / "run/systemd/container")
    if named:
        return named
    for mark, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman")):
        if (root / mark).exists():
            return name
    groups = text(root / "proc/self/cgroup")
    if groups is None:
        return None
    return next((name for name in _CONTAINERS if name in groups), "none")
