"""Child processes done in this one: starting them is most of what a small model takes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from edgeopt.graphs.capture import child, parent
from edgeopt.measure import jobs, pair, process, worker
from edgeopt.measure.child import rebuilt
from edgeopt.verbs import graph_plan, proving

__all__ = ["no_processes"]


def _measure(
    place: process.Workplace, job: dict[str, Any], *, progress: Any = None, silence: float = 0
) -> process.Outcome:
    place._jobs += 1
    path = place.folder.resolve() / f"job-{place._jobs}.json"
    feeds = {"count": place.feeds.count, "names": list(place.feeds.names)}
    path.write_text(json.dumps({**job, "feeds": feeds}))
    pipe = io.BytesIO()
    worker.main(path, pipe)
    last = json.loads(pipe.getvalue().splitlines()[-1])
    if "result" in last:
        return process.Outcome(last["result"])
    error = last["error"]
    return process.Outcome(None, rebuilt(error), error["subject"])


def _capture(job: Path, room: Path, progress: Any) -> dict[str, Any]:
    answer: dict[str, Any] = child._do(json.loads(job.read_text()), room, lambda step: None)
    return {"peak_bytes": 0, **answer}


def no_processes(monkeypatch: pytest.MonkeyPatch, *, capture: bool = True) -> None:
    """Measure (and, for ONNX sources, capture) in this process, and no longer than a verdict
    needs."""
    if capture:
        monkeypatch.setattr(parent, "_run", _capture)
    monkeypatch.setattr(process.Workplace, "run", _measure)
    monkeypatch.setattr(jobs, "BLOCK", 0.0005)
    monkeypatch.setattr(proving, "_SECONDS", 0.02)
    monkeypatch.setattr(graph_plan, "_CONTEST", 0.02)
    monkeypatch.setattr(pair, "_alone", lambda place, job, progress: ([], []))
