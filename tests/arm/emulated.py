"""An aarch64 CPU to run edgeopt on: qemu's user emulation over the fetched sysroot.

What comes from it is correctness, never timing.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.arm.fetch_sysroot import emulator

__all__ = ["CPUS", "FOLDER", "Cpu", "have"]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "arm"
GUEST = Path(__file__).with_name("guest.py")

_BASE = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOTPROD = f"{_BASE} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
_NEW = f"{_DOTPROD} sve i8mm bf16 svei8mm"


@dataclass(frozen=True)
class Cpu:
    """A CPU model of qemu's. ``part`` and ``listed`` are what Linux says of it in /proc/cpuinfo:
    qemu before 8.1 shows the host's file there, on which ONNX Runtime's CPU detection crashes.
    """

    name: str
    option: str
    part: int
    listed: str
    features: frozenset[str]

    def run(self, *arguments: str, timeout: float = 900) -> str:
        """Run the guest's script; its stdout. AssertionError with its stderr where it fails."""
        root = self._root()
        python = next((FOLDER / "sysroot/usr/bin").glob("python3.*[0-9]"))
        command = [emulator(), "-L", str(root), "-cpu", self.option]
        done = subprocess.run(
            [*command, str(python), "-S", str(GUEST), *arguments],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(FOLDER / "site"), str(ROOT / "src")]),
                "PYTHONDONTWRITEBYTECODE": "1",
                "NUMBA_CACHE_DIR": str(FOLDER / "numba" / self.name),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{self.name}: {done.returncode}\n{done.stderr[-3000:]}"
        return done.stdout

    def _root(self) -> Path:
        """The sysroot with this CPU's /proc/cpuinfo: a folder of links."""
        root = FOLDER / "roots" / self.name
        (root / "proc").mkdir(parents=True, exist_ok=True)
        (root / "proc/cpuinfo").write_text(
            "".join(self._core(i) for i in range(os.cpu_count() or 1)), encoding="utf-8"
        )
        for entry in (FOLDER / "sysroot").iterdir():
            link = root / entry.name
            if not link.is_symlink():
                link.symlink_to(entry)
        return root

    def _core(self, number: int) -> str:
        return (
            f"processor\t: {number}\nBogoMIPS\t: 100.00\nFeatures\t: {self.listed}\n"
            "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
            f"CPU part\t: {self.part:#x}\nCPU revision\t: 1\n\n"
        )


#: No dotprod (Raspberry Pi 3; the Pi 4's A72 has none either); dotprod (Pi 5); i8mm and SVE.
#: With SME, numpy's own products are wrong under emulation, so it is off; vectors of 256 bits are
#: what Neoverse V1 has, and wider ones take minutes to emulate.
_A53 = Cpu("cortex-a53", "cortex-a53", 0xD03, _BASE, frozenset())
_A76 = Cpu("cortex-a76", "cortex-a76", 0xD0B, _DOTPROD, frozenset({"dotprod"}))
_NEWER = frozenset({"dotprod", "sve", "i8mm"})
_NEWEST = (
    Cpu("neoverse-v1", "neoverse-v1", 0xD40, _NEW, _NEWER),
    Cpu("max", "max,sme=off,sve-max-vq=2", 0xD40, _NEW, _NEWER),
)


def have() -> bool:
    """Whether ``make test-arm`` has fetched what this needs."""
    return (FOLDER / "fetched").is_file()


@cache
def _known() -> str:
    listing = [emulator(), "-cpu", "help"]  # ends with 1, and has listed them
    return subprocess.run(listing, capture_output=True, text=True, check=False).stdout


def _cpus() -> tuple[Cpu, ...]:
    if not have():
        return (_A53, _A76, _NEWEST[0])
    known = _known().split()
    return (_A53, _A76, next(cpu for cpu in _NEWEST if cpu.name in known))


CPUS = _cpus()
