"""The first thing that runs on another machine: its source is sent there as text.

It makes a folder, says what it found, takes the runner, and hands over to it. If the runner does
not come (the other side had seen enough, or is gone), the folder goes again.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

__all__ = ["boot"]


def boot(asked: Mapping[str, Any], stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """``asked``: the ``folder`` to be in (or None), ``packages`` to look for (module name to
    distribution), the runner's ``size`` and ``sha256``, and ``main``, the module to hand over to.
    """
    os.umask(0o077)
    hello: dict[str, Any] = {
        "python": platform.python_version(),
        "executable": sys.executable,
        "machine": platform.machine(),
        "packages": {name: _version(name, dist) for name, dist in asked["packages"].items()},
        "folder": "",
    }
    try:
        folder = _new_folder(asked["folder"])
    except OSError as error:
        _say(stdout, {**hello, "problem": error.strerror or str(error)})
        return
    kept = False
    try:
        free = shutil.disk_usage(folder).free
        _say(stdout, {**hello, "folder": str(folder), "free": free})
        data = stdin.read(asked["size"])
        if hashlib.sha256(data).hexdigest() == asked["sha256"]:
            _unpack(data, folder / "lib", stdout)
            kept = (folder / "lib").is_dir()
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    if kept:
        sys.path.insert(0, str(folder / "lib"))
        importlib.import_module(asked["main"]).main(folder, stdin, stdout)


def _unpack(data: bytes, into: Path, stdout: IO[bytes]) -> None:
    """Put out, not run from the archive: every worker would compile it again."""
    try:
        zipfile.ZipFile(io.BytesIO(data)).extractall(into)
    except OSError as error:
        shutil.rmtree(into, ignore_errors=True)
        message = f"{into.parent}: {error.strerror or error}"
        _say(stdout, {"error": {"type": "OutputError", "message": message, "subject": ""}})


def _new_folder(given: str | None) -> Path:
    """A new folder, on disk where there is one: in a file system that is main memory a model would
    count twice, and never load cold."""
    usual = (os.environ.get("TMPDIR"), "/var/tmp", "/data/local/tmp")
    for place in (given,) if given else usual:
        if given or (place and os.access(place, os.W_OK | os.X_OK)):
            return Path(tempfile.mkdtemp(prefix="edgeopt-", dir=place)).resolve()
    return Path(tempfile.mkdtemp(prefix="edgeopt-")).resolve()


def _version(module: str, distribution: str) -> str | None:
    """The package's version, found without importing it; None where it is not installed."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown"


def _say(stdout: IO[bytes], message: Mapping[str, Any]) -> None:
    stdout.write(b"edgeopt " + json.dumps(message).encode() + b"\n")
    stdout.flush()
