"""A worker's life as its parent sees it: started, ended, and what can be said of its death."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from edgeopt import errors
from edgeopt.errors import EdgeoptError, WorkerError

__all__ = ["end", "epitaph", "read_mark", "rebuilt", "start"]

#: Errors that a worker may send by name, rebuilt from their message alone.
_BY_NAME: Mapping[str, type[EdgeoptError]] = {
    name: cls
    for name in errors.__all__
    if isinstance(cls := getattr(errors, name), type)
    and cls not in (errors.FormatError, errors.MissingExtraError)
}


#: Python 3.11 and later; another machine's may be older.
_SAFE = ["-P"] if hasattr(sys.flags, "safe_path") else []


def start(module: str, job: Path, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start ``python -P -m module JOB`` in the job's folder, its input and output pipes ours.

    Raises WorkerError where no process can be started.
    """
    if not sys.executable:
        raise WorkerError("this Python does not know its own executable; run it from a python")
    root = str(Path(errors.__file__).parent.parent.resolve())
    environment = {
        **os.environ,
        # What we found our modules by, the worker finds them by; the current folder ("") is not
        # passed on.
        "PYTHONPATH": os.pathsep.join(filter(None, (root, *sys.path))),
        # numpy's own pools are not what is measured; unused threads cost start time and memory.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        # llama.cpp asks for its threads itself. Where others want the cores too, threads that spin
        # while they wait for one another take up to twenty times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    try:
        return subprocess.Popen(
            # -P: not even the job's own folder comes before the library's.
            [sys.executable, *_SAFE, "-m", module, job.name],
            stdin=subprocess.PIPE,  # never written to: its end tells the worker we are gone
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=job.parent,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise WorkerError(f"cannot start a worker: {error.strerror}; free memory and retry") from (
            error
        )


def rebuilt(error: Mapping[str, Any]) -> EdgeoptError:
    """The error that a worker sent by name and message."""
    return _BY_NAME.get(error["type"], errors.SourceError)(error["message"])


def end(worker: subprocess.Popen[bytes]) -> None:
    """Leave nothing running: what has ended by itself is only reaped."""
    if worker.stdin is not None:
        with contextlib.suppress(OSError):
            worker.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        # A worker that has answered, or lost its input, ends at once; the rest is made to.
        worker.wait(timeout=0.5)
    if worker.returncode is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
        else:
            worker.kill()
        worker.wait()
    if worker.stdout is not None:
        worker.stdout.close()


def read_mark(mark: Path) -> tuple[str, str]:
    """What the worker was busy with when it ended: (subject, doing)."""
    try:
        subject, doing = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "", "starting"
    return str(subject), str(doing)


def epitaph(code: int | None, doing: str, log: Path) -> str:
    """Why a worker ended without an answer: its signal, or its last words."""
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the worker died from {name}{hint} while {doing}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f": {lines[-1][:300]}" if lines else ""
    return f"the worker ended with code {code} while {doing}{last}"
