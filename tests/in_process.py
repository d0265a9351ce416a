"""Child processes done in this one, or forked from it: starting them, and importing what they need,
is most of what a small model takes."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import WorkerError
from edgeopt.graphs.capture import child, parent
from edgeopt.measure import jobs, pair, process, worker
from edgeopt.measure.child import rebuilt
from edgeopt.verbs import graph_plan, proving

__all__ = ["forked_capture", "no_processes"]


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


def forked_capture(job: Path, room: Path, progress: Any) -> dict[str, Any]:
    """What ``parent._run`` does, in a child that has torch already: a copy of this process.

    What the export changes in torch and in the environment ends with the child, as it does there.
    """
    import torch

    _, ours = pipe = os.pipe()  # the child reads its end, and ends with us
    pid = os.fork()
    if pid == 0:
        sys.settrace(None)
        code = 1
        with (room / "stderr.txt").open("w", encoding="utf-8") as log:
            try:
                os.close(ours)
                for there, here in enumerate((pipe[0], log.fileno(), log.fileno())):
                    os.dup2(here, there)
                torch.set_num_threads(1)
                code = child.main(str(job))
            finally:
                traceback.print_exc(file=log)
                log.flush()
                os._exit(code)
    os.close(pipe[0])
    _, status = os.waitpid(pid, 0)
    os.close(ours)
    if status:
        raise WorkerError(f"status {status}: {(room / 'stderr.txt').read_text()}")
    answer: dict[str, Any] = json.loads((room / "result.json").read_text())
    return answer


def no_processes(
    monkeypatch: pytest.MonkeyPatch, *, capture: bool = True, seconds: float = 0.02
) -> None:
    """Measure (and, for ONNX sources, capture) in this process, and no longer than a verdict
    needs: ``seconds`` a comparison."""
    if capture:
        real = parent._run

        def run(job: Path, room: Path, progress: Any) -> dict[str, Any]:
            graph = json.loads(job.read_text())["kind"] == "onnx"
            return (_capture if graph else real)(job, room, progress)

        monkeypatch.setattr(parent, "_run", run)
    monkeypatch.setattr(process.Workplace, "run", _measure)
    monkeypatch.setattr(jobs, "BLOCK", seconds / 40)
    monkeypatch.setattr(proving, "_SECONDS", seconds)
    monkeypatch.setattr(graph_plan, "_CONTEST", seconds)
    monkeypatch.setattr(pair, "_alone", lambda place, job, progress: ([], []))
