"""Runs pytest as on another x86-64 CPU: ``python tests/cpus/emulated.py Haswell tests/...``

qemu's user emulation computes as the processor named does (a Haswell adds products of uint8 and
int8 in 16 bits, before VNNI; a Nehalem has no AVX at all), whatever is at hand. Processes that the
tests start are emulated too, and read the processor's own /proc/cpuinfo. For correctness alone:
what it says of time means nothing. As a pytest plugin it does the part inside the process.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["CPUS", "EMULATED", "command", "emulator"]

ROOT = Path(__file__).resolve().parents[2]
#: Set in an emulated process and those it starts: the command that starts another such process.
EMULATED = "EDGEOPT_TEST_EMULATED_PYTHON"

_NEHALEM = "fpu mmx sse sse2 ht syscall nx lm constant_tsc pni ssse3 cx16 sse4_1 sse4_2 popcnt"
#: Of qemu's CPU models, those whose integer products differ: the flags that Linux shows of them.
CPUS: Mapping[str, str] = {
    "Haswell": f"{_NEHALEM} movbe aes avx f16c rdrand lahf_lm abm fsgsbase bmi1 avx2 bmi2 fma",
    "Nehalem": _NEHALEM,
}
#: What those have and qemu does not: it would warn of each, on every start.
_LACKING = {"Haswell": ("pcid", "x2apic", "tsc-deadline", "hle", "invpcid", "rtm"), "Nehalem": ()}


def emulator() -> str:
    found = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if found is None:
        raise SystemExit("emulating another CPU needs qemu: apt-get install qemu-user-static")
    return found


def command(cpu: str) -> tuple[list[str], Path]:
    """(the command that starts Python on ``cpu``, a file that does)."""
    folder = ROOT / "build" / "cpus" / cpu
    (folder / "proc").mkdir(parents=True, exist_ok=True)
    core = "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: qemu's {}\nflags\t\t: {}\n\n"
    cores = "".join(core.format(i, cpu, CPUS[cpu]) for i in range(os.cpu_count() or 1))
    (folder / "proc" / "cpuinfo").write_text(cores, encoding="utf-8")
    option = ",".join([cpu, *(f"-{feature}" for feature in _LACKING[cpu])])
    start = [emulator(), "-L", str(folder), "-cpu", option, sys.executable]
    starter = folder / "python"
    quoted = " ".join(f"'{part}'" for part in start)
    starter.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n', encoding="utf-8")
    starter.chmod(0o755)
    return start, starter


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in CPUS:
        raise SystemExit(f"usage: emulated.py {{{','.join(CPUS)}}} [pytest's arguments]")
    start, starter = command(arguments[0])
    os.environ[EMULATED] = str(starter)
    pytest = ["-m", "pytest", "-p", "tests.cpus.emulated", "-p", "no:cacheprovider"]
    os.chdir(ROOT)
    os.execv(start[0], [*start, *pytest, *arguments[1:]])


if __name__ == "__main__":
    main(sys.argv[1:])
elif EMULATED in os.environ:
    # What is started from here is to be emulated as well.
    sys.executable = os.environ[EMULATED]
