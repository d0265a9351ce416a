"""The parent's side of a worker: start a fresh process, sleep until it speaks, survive its death.

A job is a JSON document in a temporary folder, its arrays ``.npy`` files beside it. The worker
answers with JSON lines on its own pipe; what native code prints goes to a file. It runs in a new
session with the temporary folder as its working directory, so that nothing lying where the user
works is imported, and Ctrl-C reaches the parent alone, which then ends the whole group.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Progress
from edgeopt.errors import EdgeoptError, InputsError, OutputError, WorkerError
from edgeopt.measure.child import end, epitaph, read_mark, rebuilt, start

__all__ = ["Elsewhere", "Feeds", "Outcome", "Workplace", "sample_name", "workplace"]

#: Seconds without a sign of life after which a worker is given up. It speaks at least once a
#: sample and once a round of blocks, so this bounds one load or one inference.
SILENCE = 600.0

#: The module that a worker runs.
_WORKER = "edgeopt.measure.worker"

#: How a worker can fail to answer.
_ENDED, _SILENT = "ended", "silent"


@dataclass(frozen=True)
class Feeds:
    """Samples on disk: how many, and the input names that their arrays belong to, in order."""

    count: int
    names: tuple[str, ...]

    def load(self, folder: Path, index: int) -> dict[str, NDArray[Any]]:
        return {
            name: np.load(folder / sample_name(index, i), allow_pickle=False)
            for i, name in enumerate(self.names)
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its result, or the error and which subject it was busy with."""

    result: Mapping[str, Any] | None
    error: EdgeoptError | None = None
    subject: str = ""


class Elsewhere(Protocol):
    """Another machine that jobs can be done on (see :mod:`edgeopt.measure.remote`)."""

    def run_job(
        self,
        place: Workplace,
        job: Mapping[str, Any],
        progress: Progress | None,
        silence: float,
    ) -> Outcome:
        """As :meth:`Workplace.run`, there; raises where the machine itself is lost."""

    def forget(self, place: Workplace) -> None:
        """Remove the samples of ``place`` there."""


@dataclass
class Workplace:
    """A temporary folder with the samples of one measurement, where its workers run.

    ``shapes`` are those of the first sample's inputs, which everything but fidelity is taken with.
    Where there is an ``elsewhere``, samples and models are sent there and the workers run there.
    """

    folder: Path
    feeds: Feeds
    shapes: Mapping[str, tuple[int, ...]]
    elsewhere: Elsewhere | None = None
    _jobs: int = 0

    def run(
        self,
        job: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        silence: float = SILENCE,
    ) -> Outcome:
        """Run ``job`` in a fresh process. Only an interrupt of the parent itself raises, and the
        loss of another machine."""
        if self.elsewhere is not None:
            return self.elsewhere.run_job(self, job, progress, silence)
        self._jobs += 1
        path = self.folder / f"job-{self._jobs}.json"
        document = {**job, "feeds": {"count": self.feeds.count, "names": list(self.feeds.names)}}
        path.write_text(json.dumps(document), encoding="utf-8")
        log, mark = path.with_suffix(".log"), path.with_suffix(".mark")
        with log.open("wb") as stderr:
            worker = start(_WORKER, path, stderr)
        try:
            answer = _listen(worker, progress, silence)
        finally:
            end(worker)
        if isinstance(answer, Outcome):
            return answer
        subject, doing = read_mark(mark)
        if answer is _SILENT:
            text = f"the worker gave no sign for {silence:.0f} s while {doing}; try smaller inputs"
        else:
            text = epitaph(worker.returncode, doing, log)
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
def workplace(
    feeds: Iterable[Mapping[str, NDArray[Any]]], on: Elsewhere | None = None
) -> Iterator[Workplace]:
    """A folder with ``feeds`` written out one at a time; removed at the end, come what may.
    Jobs run here, or ``on`` another machine.

    Raises InputsError where there are none or their names differ, OutputError where the disk
    that temporary files go to is full.
    """
    from edgeopt.files import leftovers  # not there on a machine that is measured on

    leftovers.clear(Path(tempfile.gettempdir()), "edgeopt-")
    with tempfile.TemporaryDirectory(
        prefix=f"edgeopt-{leftovers.owned_name()}-", ignore_cleanup_errors=True
    ) as name:
        place = _furnish(feeds, Path(name))
        place.elsewhere = on
        yield place
        if on is not None:  # after an error its whole folder goes
            on.forget(place)


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
            path = folder / sample_name(index, i)
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


def sample_name(index: int, position: int) -> str:
    """The file of one input of one sample."""
    return f"sample-{index:06d}-{position}.npy"


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
            error = message["error"]
            return Outcome(None, rebuilt(error), error["subject"])
        if progress is not None:
            progress(message["step"], message["fraction"])
