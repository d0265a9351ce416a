"""Child processes done in this one, or forked from one that has imported already: starting them,
and importing what they need, is most of what a small model takes."""

from __future__ import annotations

import functools
import gc
import io
import json
import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from edgeopt.errors import WorkerError
from edgeopt.graphs.capture import child, parent
from edgeopt.measure import jobs, pair, process, worker
from edgeopt.measure.child import rebuilt
from edgeopt.targets.onnx import planner
from edgeopt.targets.onnx import prove as proving

__all__ = ["forked_capture", "forked_command", "no_processes", "ready_to_export", "untraced"]

P = ParamSpec("P")
T = TypeVar("T")


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


def _forked(work: Callable[[], int], out: Path, err: Path) -> int:
    """The status of ``work`` done in a copy of this process, which prints to two files (or one).

    What it changes in modules and in the environment ends with it. Its standard input ends when
    this process does.
    """
    ends, ours = os.pipe()
    pid = os.fork()
    if pid == 0:
        sys.settrace(None)
        gc.freeze()
        code = 1
        with out.open("ab") as printed, err.open("ab") as log:
            try:
                os.close(ours)
                for there, here in enumerate((ends, printed.fileno(), log.fileno())):
                    os.dup2(here, there)
                # Not pytest's, which may be files of its own.
                sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
                sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
                code = work()
            finally:
                if sys.exc_info()[0] is not None:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
    os.close(ends)
    _, status = os.waitpid(pid, 0)
    os.close(ours)
    return os.waitstatus_to_exitcode(status)


@functools.cache
def ready_to_export() -> None:
    """One small export here, so that copies of this process import nothing for theirs; and torch's
    table of operators, a third of the time that a small model takes, is made once an opset rather
    than once an export. No tracer: none of it is ours."""
    import torch
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    def export() -> None:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
            torch.onnx.export(program, dynamo=True, opset_version=21, verbose=False, optimize=True)

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    said = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    untraced(export)()
    logging.disable(said)


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """The function without coverage's tracer, for what is long and not ours."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return call


def forked_capture(job: Path, room: Path, progress: Any) -> dict[str, Any]:
    """What ``parent._run`` does, in a child that has torch already: a copy of this process."""
    import torch

    ready_to_export()

    def work() -> int:
        torch.set_num_threads(1)
        return child.main(str(job))

    log = room / "stderr.txt"
    status = _forked(work, log, log)
    if status:
        raise WorkerError(f"status {status}: {log.read_text(errors='replace')}")
    answer: dict[str, Any] = json.loads((room / "result.json").read_text())
    return answer


def _command(
    words: Sequence[str], folder: Path, out: Path, err: Path, stdin: Connection, path: list[str]
) -> None:
    from edgeopt import cli

    with out.open("ab") as printed, err.open("ab") as log:
        for there, here in enumerate((stdin.fileno(), printed.fileno(), log.fileno())):
            os.dup2(here, there)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    os.chdir(folder)
    sys.path[:] = [str(folder), *path]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    sys.argv = ["edgeopt", *words]
    no_processes(pytest.MonkeyPatch(), seconds=0.2)
    cli.main()


def forked_command(
    words: Sequence[str], folder: Path, out: Path, err: Path, *, seconds: float = 240
) -> int:
    """The exit status of ``edgeopt WORDS`` run in ``folder``, which prints to two files (or one).

    It runs in a copy of a process that has imported and exported, and done nothing else: a copy of
    this one has the locks of threads that it does not have. What it starts to export a model is
    forked in turn, and what it measures takes no process of its own and little time; ``bench`` and
    ``compare`` measure in fresh processes as ever. Its standard input ends when this process does.
    """
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload(["tests.ready"])
    ends, ours = clean.Pipe(duplex=False)
    child = clean.Process(target=_command, args=(words, folder, out, err, ends, sys.path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        child.start()
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
        pytest.fail(f"{' '.join(words)}: over {seconds} s\n{err.read_text(errors='replace')}")
    ours.close()
    return child.exitcode


def _captured(job: Path, room: Path, progress: Any) -> dict[str, Any]:
    graph = json.loads(job.read_text())["kind"] == "onnx"
    return (_capture if graph else forked_capture)(job, room, progress)


def no_processes(
    monkeypatch: pytest.MonkeyPatch, *, capture: bool = True, seconds: float = 0.02
) -> None:
    """Measure in this process, and no longer than a verdict needs: ``seconds`` a comparison; and
    ``capture`` ONNX sources in this process, torch's in copies of it."""
    if capture:
        monkeypatch.setattr(parent, "_run", _captured)
    monkeypatch.setattr(process.Workplace, "run", _measure)
    monkeypatch.setattr(jobs, "BLOCK", seconds / 40)
    monkeypatch.setattr(proving, "_SECONDS", seconds)
    monkeypatch.setattr(planner, "_CONTEST", seconds)
    monkeypatch.setattr(pair, "_alone", lambda place, job, progress: ([], []))
