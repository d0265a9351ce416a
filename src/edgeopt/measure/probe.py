"""Whether a case runs at all, tried in a process of its own before anything is measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgeopt.measure.bench import BenchSettings, Trial, write_job
from edgeopt.measure.relay import SubjectError, runner

__all__ = ["problem_of"]


def problem_of(trial: Trial, settings: BenchSettings) -> str:
    """Why loading and one inference fail, in one line; empty where they do not."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-", ignore_cleanup_errors=True) as name:
        job = write_job(trial, Path(name).resolve(), 0)
        try:
            with runner(trial.subject, job, settings.silence) as worker:
                worker.ask("imports", pin=False)
                if worker.ask("load", cold=False)["repeats"]:
                    worker.ask("first")
        except SubjectError as problem:
            return str(problem.error)
    return ""
