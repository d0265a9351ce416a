"""A worker: ``python -m edgeopt.measure.worker JOB.json``, started by :mod:`.process`.

It loads numpy and the runtime that the job needs, does one job, says the result on its pipe and
is gone. It never holds torch, the exporter or anything else whose memory or threads would be
measured with the model.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from edgeopt.errors import EdgeoptError
from edgeopt.measure.answers import ANSWER_JOBS
from edgeopt.measure.jobs import JOBS
from edgeopt.measure.llm_jobs import LLM_JOBS
from edgeopt.measure.process import Feeds
from edgeopt.measure.sizes import SIZE_JOBS

__all__ = ["PipeReporter", "main"]

_ALL_JOBS = {**JOBS, **LLM_JOBS, **ANSWER_JOBS, **SIZE_JOBS}

#: Seconds between two progress lines: each wakes the parent, which shares the machine's cores.
_QUIET = 0.2


class PipeReporter:
    """How a job speaks: progress on the pipe, and a mark on disk of what it is busy with.

    The mark is for the parent to read when native code takes the process down; writing it wakes
    nobody up.
    """

    def __init__(self, pipe: IO[bytes], mark: Path) -> None:
        self._pipe = pipe
        self._mark = mark.open("w", encoding="utf-8")
        self._spoke = 0.0
        self.subject = ""

    def busy(self, subject: str, doing: str) -> None:
        self.subject = subject
        self._mark.seek(0)
        self._mark.write(json.dumps([subject, doing]))
        self._mark.truncate()
        self._mark.flush()

    def progress(self, step: str, fraction: float | None) -> None:
        now = time.monotonic()
        if now - self._spoke >= _QUIET:
            self._spoke = now
            self.say({"step": step, "fraction": fraction})

    def say(self, message: Mapping[str, Any]) -> None:
        self._pipe.write(json.dumps(message).encode() + b"\n")
        self._pipe.flush()


def main(job: Path, pipe: IO[bytes]) -> None:
    """Do the job in file ``job`` and write the answer to ``pipe``."""
    document = json.loads(job.read_text(encoding="utf-8"))
    feeds = Feeds(document["feeds"]["count"], tuple(document["feeds"]["names"]))
    voice = PipeReporter(pipe, job.with_suffix(".mark"))
    try:
        result = _ALL_JOBS[document["kind"]](document, feeds, job.parent, voice)
    except EdgeoptError as error:
        voice.say(
            {
                "error": {
                    "type": type(error).__name__,
                    "message": str(error),
                    "subject": voice.subject,
                }
            }
        )
    else:
        voice.say({"result": result})


def _end_with_parent() -> None:
    """End when the parent's end of our input closes: it has died or given us up."""
    with contextlib.suppress(OSError):
        os.read(0, 1)
    os._exit(1)


def _no_core_dump() -> None:
    """A crash of native code is reported, and leaves no file of the model's size behind."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _as_process() -> None:
    _no_core_dump()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The pipe is ours alone: what native code prints to standard output goes to the log.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main(Path(sys.argv[1]), pipe)
    sys.stderr.flush()
    os._exit(0)  # without the teardown of the runtime, which can take long, and can crash


if __name__ == "__main__":
    _as_process()
