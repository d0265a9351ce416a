"""Fetch what an aarch64 process needs to run on this machine under qemu's user emulation.

    python tests/arm/fetch_sysroot.py build/arm

makes ``build/arm/sysroot`` (Debian's arm64 Python and C libraries, unpacked, never installed) and
``build/arm/site`` (aarch64 wheels of the versions in constraints.txt). No root: apt works on lists
of its own, and nothing outside the folder changes. A second call does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

#: The guest's packages; the first is found out from what Debian's python3 is.
_LIBRARIES = ("libstdc++6",)
_WHEELS = ("numpy", "onnxruntime", "ml-dtypes", "numba", "llvmlite")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")

_APT = """\
Dir::State "{apt}/state";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}/cache";
APT::Architecture "arm64";
APT::Architectures {{ "arm64"; }};
APT::Sandbox::User "root";
Debug::NoLocking "true";
"""


class Missing(Exception):
    """Something that this machine lacks: one line, with how to get it."""


def emulator() -> str:
    """The path of qemu's user emulator; Missing where there is none."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        found = shutil.which(name)
        if found:
            return found
    raise Missing(
        "qemu-aarch64-static is not installed; on Debian or Ubuntu:"
        " apt-get install qemu-user-static"
    )


def fetch(folder: Path) -> None:
    """Fill ``folder``, unless it holds just this already. Raises Missing."""
    emulator()
    stamp, wanted = folder / "fetched", _digest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print("fetching an arm64 Python, numpy and ONNX Runtime: a minute, 120 MB, once", flush=True)
    python = _sysroot(folder)
    _site(folder, python)
    stamp.write_text(wanted, encoding="utf-8")


def _digest() -> str:
    pins = "\n".join(_pinned().values())
    return hashlib.sha256(pins.encode() + Path(__file__).read_bytes()).hexdigest()


def _pinned() -> dict[str, str]:
    """Wheel -> ``name==version`` of constraints.txt."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        requirement = line.split(";")[0].strip()
        name = requirement.partition("==")[0]
        if name in _WHEELS:
            found[name] = requirement
    return {name: found[name] for name in _WHEELS}


def _sysroot(folder: Path) -> str:
    """Debian's arm64 packages, unpacked; returns the Python's version, as ``3.11``."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise Missing(
                f"{tool} is not installed; the arm64 Python is Debian's: run this on Debian or in "
                "its container"
            )
    apt = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "conf").write_text(_APT.format(apt=apt.resolve()), encoding="utf-8")
    env = {"APT_CONFIG": str((apt / "conf").resolve())}
    # A source of this machine may have nothing for arm64: what counts is whether Python is found.
    updated = _run(["apt-get", "-q", "update"], env, check=False)
    depends = _run(["apt-cache", "depends", "python3-minimal"], env, check=False)
    version = re.search(r"python(3\.\d+)-minimal", depends)
    if version is None:
        said = (updated.strip().splitlines() or ["nothing"])[-1]
        raise Missing(f"apt finds no arm64 packages in this machine's sources (it said: {said})")
    python = version.group(1)
    packages = (f"python{python}-minimal", f"libpython{python}-stdlib", *_LIBRARIES)
    download = ["apt-get", "-qq", "-y", "--download-only", "--no-install-recommends", "install"]
    _run([*download, *packages], env)
    sysroot = folder / "sysroot"
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(sysroot)])
    shutil.rmtree(apt)
    return python


def _site(folder: Path, python: str) -> None:
    wheels = folder / "wheels"
    tag = python.replace(".", "")
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(wheels)]
    command += [f"--python-version={python}", "--implementation=cp"]
    command += [f"--abi={abi}" for abi in (f"cp{tag}", "abi3", "none")]
    command += [f"--platform={platform}" for platform in _PLATFORMS]
    try:
        _run([*command, *_pinned().values()])
    except Missing as error:
        raise Missing(f"no aarch64 wheels for Python {python} as pinned: {error}") from None
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    shutil.rmtree(wheels)


def _run(command: Sequence[str], env: Mapping[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and done.returncode:
        last = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        raise Missing(f"{command[0]} ended with {done.returncode}, saying: {last}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    try:
        fetch(parser.parse_args().folder)
    except Missing as error:
        sys.exit(f"make test-arm: {error}")


if __name__ == "__main__":
    main()
