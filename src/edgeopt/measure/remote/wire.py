"""Trials and their results as JSON, on the way to another machine and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import Measurement, Unavailable
from edgeopt.measure.bench import Bench
from edgeopt.measure.bench_worker import case_from_json, case_to_json
from edgeopt.measure.trial import Trial

__all__ = ["bench_from_json", "trial_from_json", "trial_to_json"]


def trial_to_json(trial: Trial, feed: str, there: Mapping[Path, str]) -> dict[str, Any]:
    """A trial for another machine: ``feed`` names its arrays there, ``there`` its files."""
    case = case_to_json(trial.case)
    return {
        "subject": trial.subject,
        "case": {
            **case,
            "path": there[trial.case.path],
            "files": [there[file] for file in trial.case.files],
        },
        "conditions": dict(trial.conditions),
        "group": trial.group,
        "inputs": list(trial.feed),
        "feed": feed,
    }


def trial_from_json(value: Mapping[str, Any], folder: Path) -> Trial:
    """A trial as it was sent, its arrays read from ``folder``."""
    with np.load(folder / value["feed"], allow_pickle=False) as stored:
        feed = {name: stored[str(i)] for i, name in enumerate(value["inputs"])}
    return Trial(
        subject=value["subject"],
        case=case_from_json(value["case"]),
        conditions=value["conditions"],
        feed=feed,
        group=value["group"],
    )


def bench_from_json(value: Mapping[str, Any]) -> Bench:
    """What ``dataclasses.asdict`` made of it, read back."""
    return Bench(
        measurements=tuple(
            Measurement(
                **{
                    **m,
                    "values": tuple(map(tuple, m["values"])),
                    "blocks": tuple(map(tuple, m["blocks"])),
                }
            )
            for m in value["measurements"]
        ),
        unavailable=tuple(Unavailable(**u) for u in value["unavailable"]),
        info=value["info"],
        failures=value["failures"],
        warnings=tuple(value["warnings"]),
    )
