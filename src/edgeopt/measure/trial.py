"""What is to be measured, and how long: trials and settings, and a trial as a worker reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.errors import InputsError, OutputError
from edgeopt.measure.bench_worker import case_to_json
from edgeopt.runtimes.engine import Case, Feed

__all__ = ["BenchSettings", "Trial", "write_job"]


@dataclass(frozen=True)
class Trial:
    """One artifact under one set of conditions. ``subject`` names it in the results;
    ``conditions`` are what its measurements carry, and ``group`` is what it shares with the
    trials that it takes turns with."""

    subject: str
    case: Case
    conditions: Mapping[str, Any]
    feed: Feed = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class BenchSettings:
    """``processes`` fresh workers a trial; ``seconds`` of steady-state timing a trial over all of
    them; ``turn`` seconds a turn; about ``samples`` inferences' times kept a process; ``silence``
    seconds after which a worker without an answer is given up. Artifacts that together need more
    than ``memory`` bytes (None: what the machine has available) are measured one at a time."""

    processes: int = 8
    seconds: float = 10.0
    turn: float = 0.02
    samples: int = 2000
    silence: float = 600.0
    cold: bool = True
    pin: bool = True
    energy: bool = True
    memory: int | None = None


def write_job(trial: Trial, folder: Path, index: int) -> Path:
    """The trial as a worker reads it: a document, and its inputs beside it."""
    job = folder / f"case-{index}.json"
    document = {
        "subject": trial.subject,
        "case": case_to_json(trial.case),
        "names": list(trial.feed),
        "feed": f"case-{index}.npz",
    }
    arrays = {str(i): np.asarray(value) for i, value in enumerate(trial.feed.values())}
    for name, value in zip(trial.feed, arrays.values(), strict=True):
        if value.dtype.hasobject:
            raise InputsError(f"input {name}: not an array of numbers")
    try:
        np.savez(folder / f"case-{index}.npz", **arrays)  # type: ignore[arg-type]
        job.write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{folder}: {reason}; set TMPDIR to a folder with room") from error
    return job
