"""Workers that take turns: each asleep until the parent passes it the token.

The parent sleeps too, on the pipe of the worker whose turn it is. So at any time one process
computes, and what a worker holds (memory, threads, a crash) is its artifact's alone.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from edgeopt.errors import EdgeoptError, WorkerError
from edgeopt.measure.child import end, epitaph, read_mark, rebuilt, start

__all__ = ["Runner", "SubjectError", "runner"]

_WORKER = "edgeopt.measure.bench_worker"


class SubjectError(Exception):
    """Measuring one subject failed: ``error`` says why, ``subject`` which. The others go on."""

    def __init__(self, subject: str, error: EdgeoptError) -> None:
        super().__init__(f"{subject}: {error}")
        self.subject = subject
        self.error = error


class Runner:
    """A live worker. Made by :func:`runner`."""

    def __init__(self, subject: str, job: Path, log: IO[bytes], silence: float) -> None:
        self.subject = subject
        self._job = job
        self._silence = silence
        self._process = start(_WORKER, job, log)
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._forward, daemon=True).start()

    def _forward(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed under us when we give up
            for line in stdout:
                self._answers.put(line)
        self._answers.put(None)

    def ask(self, do: str, **more: Any) -> Mapping[str, Any]:
        """Give a command and wait, asleep, for its answer. Raises SubjectError."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: its last answer says of what
            stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
            stdin.flush()
        try:
            line = self._answers.get(timeout=self._silence)
        except queue.Empty:
            doing = read_mark(self._job.with_suffix(".mark"))[1]
            raise self._failed(
                f"no answer for {self._silence:g} s while {doing}; "
                "try smaller inputs, or a longer --timeout"
            ) from None
        try:
            # Of an answer that broke off, the end of the worker tells more.
            answer: Mapping[str, Any] | None = json.loads(line) if line is not None else None
        except ValueError:
            answer = None
        if answer is None:
            end(self._process)
            doing = read_mark(self._job.with_suffix(".mark"))[1]
            text = epitaph(self._process.returncode, doing, self._job.with_suffix(".log"))
            raise self._failed(text)
        if "error" in answer:
            raise SubjectError(self.subject, rebuilt(answer["error"]))
        result: Mapping[str, Any] = answer["result"]
        return result

    def _failed(self, text: str) -> SubjectError:
        return SubjectError(self.subject, WorkerError(text))

    def close(self) -> None:
        end(self._process)


@contextmanager
def runner(subject: str, job: Path, silence: float) -> Iterator[Runner]:
    """A worker for the job document ``job``; ended when the context is left, come what may."""
    with job.with_suffix(".log").open("wb") as log:
        live = Runner(subject, job, log, silence)
        try:
            yield live
        finally:
            live.close()
