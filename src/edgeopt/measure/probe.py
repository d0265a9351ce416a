"""Whether a case runs at all, tried in a process of its own before anything is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeopt.measure.relay import SubjectError, runner
from edgeopt.measure.trial import BenchSettings, Trial, write_job

__all__ = ["problem_of", "without_repacking"]

#: Tokens that a GGUF file is tried with, and the end that means an instruction of the kernels is
#: not one of the machine's.
_PROBE_TOKENS = 32
_ILLEGAL = "died from SIGILL"


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


def without_repacking(
    trials: Sequence[Trial], settings: BenchSettings
) -> tuple[list[Trial], list[str]]:
    """The trials, GGUF ones without llama.cpp's repacking where that crashes; and what to say.

    Some virtual machines announce AMX and do not run it: weights that were repacked for it then
    end the process. Each GGUF file is tried for a few tokens; where one dies so, all go without.
    """
    first: dict[str, Trial] = {}
    for trial in trials:
        if trial.case.runtime == "llama.cpp" and trial.case.device == "cpu":
            first.setdefault(trial.subject, trial)
    for trial in first.values():
        probe = replace(trial, case=replace(trial.case, workload="pp", tokens=_PROBE_TOKENS))
        if _ILLEGAL in problem_of(probe, settings):
            options = {"repack": False}
            plain = [
                replace(t, case=replace(t.case, options={**(t.case.options or {}), **options}))
                if t.case.runtime == "llama.cpp"
                else t
                for t in trials
            ]
            return plain, [
                "llama.cpp's repacking ends in SIGILL on this machine: GGUF files are measured "
                "without it"
            ]
    return list(trials), []
