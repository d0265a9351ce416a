"""The parent's side of a worker: start a fresh process, sleep until it speaks, survive its death.

A job is a JSON document in a temporary folder, its arrays ``.npy`` files beside it. The worker
answers with JSON lines on its own pipe; what native code prints goes to a file. It runs in a new
session with the temporary folder as its working directory, so that nothing lying where the user
works is imported, and Ctrl-C reaches the parent alone, which then ends the whole group.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt import errors
from edgeopt.core import Progress
from edgeopt.errors import EdgeoptError, InputsError, OutputError, WorkerError

__all__ = ["Feeds", "Outcome", "Workplace", "rebuild_error", "workplace"]

#: Seconds without a sign of life after which a worker is given up. It speaks at least once a
#: sample and once a round of blocks, so this bounds one load or one inference.
SILENCE = 600.0

#: How a worker can fail to answer.
_ENDED, _SILENT = "ended", "silent"

#: Errors that a worker may send by name, rebuilt from their message alone.
_BY_NAME: Mapping[str, type[EdgeoptError]] = {
    name: cls
    for name in errors.__all__
    if isinstance(cls := getattr(errors, name), type)
    and cls not in (errors.FormatError, errors.MissingExtraError)
}


@dataclass(frozen=True)
class Feeds:
    """Samples on disk: how many, and the input names that their arrays belong to, in order."""

    count: int
    names: tuple[str, ...]

    def load(self, folder: Path, index: int) -> dict[str, NDArray[Any]]:
        return {
            name: np.load(folder / _sample_name(index, i), allow_pickle=False)
            for i, name in enumerate(self.names)
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its result, or the error and which subject it was busy with."""

    result: Mapping[str, Any] | None
    error: EdgeoptError | None = None
    subject: str = ""


@dataclass
class Workplace:
    """A temporary folder with the samples of one measurement, where its workers run.

    ``shapes`` are those of the first sample's inputs, which everything but fidelity is taken with.
    """

    folder: Path
    feeds: Feeds
    shapes: Mapping[str, tuple[int, ...]]
    _jobs: int = 0

    def run(
        self,
        job: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        silence: float = SILENCE,
    ) -> Outcome:
        """Run ``job`` in a fresh process. Only an interrupt of the parent itself raises."""
        self._jobs += 1
        path = self.folder / f"job-{self._jobs}.json"
        document = {**job, "feeds": {"count": self.feeds.count, "names": list(self.feeds.names)}}
        path.write_text(json.dumps(document), encoding="utf-8")
        log, mark = path.with_suffix(".log"), path.with_suffix(".mark")
        with log.open("wb") as stderr:
            worker = _start(path, stderr)
        try:
            answer = _listen(worker, progress, silence)
        finally:
            _end(worker)
        if isinstance(answer, Outcome):
            return answer
        subject, doing = _read_mark(mark)
        if answer is _SILENT:
            text = f"the worker gave no sign for {silence:.0f} s while {doing}; try smaller inputs"
        else:
            text = _epitaph(worker.returncode, doing, log)
        return Outcome(None, WorkerError(text), subject)

    def run_candidates(
        self, job: Mapping[str, Any], progress: Progress | None = None
    ) -> tuple[Mapping[str, Any] | None, dict[str, str]]:
        """Run a job on its ``candidates``, again without each one that takes the worker down.

        Returns the result (None when no candidate is left) and why those went that did. Raises
        what is no candidate's fault.
        """
        left = dict(job["candidates"])
        failures: dict[str, str] = {}
        while left:
            outcome = self.run({**job, "candidates": left}, progress=progress)
            if outcome.error is None:
                return outcome.result, failures
            if outcome.subject not in left:
                raise outcome.error
            failures[outcome.subject] = str(outcome.error)
            del left[outcome.subject]
        return None, failures


@contextmanager
def workplace(feeds: Iterable[Mapping[str, NDArray[Any]]]) -> Iterator[Workplace]:
    """A folder with ``feeds`` written out one at a time; removed at the end, come what may.

    Raises InputsError where there are none or their names differ, OutputError where the disk
    that temporary files go to is full.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-", ignore_cleanup_errors=True) as name:
        yield _furnish(feeds, Path(name))


def _furnish(feeds: Iterable[Mapping[str, NDArray[Any]]], folder: Path) -> Workplace:
    names: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = {}
    count = 0
    for index, feed in enumerate(feeds):
        if index == 0:
            names = tuple(feed)
            shapes = {name: np.shape(value) for name, value in feed.items()}
        if set(feed) != set(names):
            raise InputsError(
                f"sample {index} has inputs {', '.join(feed)}, the first has {', '.join(names)}"
            )
        for i, name in enumerate(names):
            path = folder / _sample_name(index, i)
            try:
                np.save(path, np.asarray(feed[name]), allow_pickle=False)
            except ValueError as error:
                raise InputsError(f"sample {index}, {name}: not an array of numbers") from error
            except OSError as error:
                reason = error.strerror or str(error)  # a short write has no errno of its own
                raise OutputError(
                    f"{folder}: {reason}; set TMPDIR to a folder with room for the samples"
                ) from error
        count += 1
    if count == 0:
        raise InputsError("no samples to measure with; give --data or --input")
    return Workplace(folder, Feeds(count, names), shapes)


def rebuild_error(error: Mapping[str, Any]) -> EdgeoptError:
    """The error that another process sent as its ``type`` and ``message``."""
    return _BY_NAME.get(error["type"], errors.SourceError)(error["message"])


def _sample_name(index: int, position: int) -> str:
    return f"sample-{index:06d}-{position}.npy"


def _start(job: Path, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise WorkerError("this Python does not know its own executable; run it from a python")
    root = str(Path(errors.__file__).resolve().parent.parent)
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
            [sys.executable, "-m", "edgeopt.measure.worker", job.name],
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


def _listen(
    worker: subprocess.Popen[bytes], progress: Progress | None, silence: float
) -> Outcome | str:
    """Wait for the answer, asleep in between; or say that it ended without, or went silent."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    stdout = worker.stdout
    assert stdout is not None

    def forward() -> None:
        with contextlib.suppress(ValueError, OSError):  # closed under us when we give up
            for line in stdout:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=forward, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=silence)
        except queue.Empty:
            return _SILENT
        if line is None:
            return _ENDED
        message = json.loads(line)
        if "result" in message:
            return Outcome(message["result"])
        if "error" in message:
            return Outcome(None, rebuild_error(message["error"]), message["error"]["subject"])
        if progress is not None:
            progress(message["step"], message["fraction"])


def _end(worker: subprocess.Popen[bytes]) -> None:
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


def _read_mark(mark: Path) -> tuple[str, str]:
    """What the worker was busy with when it ended: (subject, doing)."""
    try:
        subject, doing = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "", "starting"
    return str(subject), str(doing)


def _epitaph(code: int | None, doing: str, log: Path) -> str:
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
