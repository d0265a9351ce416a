"""A bench worker: ``python -m edgeopt.measure.bench_worker CASE.json``, one artifact, one process.

It takes commands, a JSON line each, and answers each with one. Between two commands it sleeps on
its input, so that another artifact's worker has the machine to itself. It loads numpy and the
runtime of its case, nothing else whose memory or threads would be measured with the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from edgeopt.errors import EdgeoptError
from edgeopt.measure.clock import quiet, timed
from edgeopt.measure.cold import evict, warm
from edgeopt.measure.energy import EnergyMeter
from edgeopt.measure.footprint import Footprint
from edgeopt.measure.gpu import GpuMemoryMeter, Gpus
from edgeopt.measure.pinning import pin
from edgeopt.runtimes.engine import Case, Engine, Feed, make_engine

__all__ = ["BenchWorker", "case_from_json", "case_to_json", "main"]

_WorkerCommand: TypeAlias = Mapping[str, Any]

#: The part of a turn that goes before it, not recorded: the first inferences after a sleep meet
#: caches and predictors as another process has left them.
_LEAD_IN = 0.1

#: Where one inference takes more than this part of a turn, none goes before it: it would cost as
#: much as it mends.
_LONG = 0.25

_PR_SET_PDEATHSIG = 1


class BenchWorker:
    """One case, and what it can be asked to do with it."""

    def __init__(self, case: Case, feed: Feed, mark: Callable[[str], None]) -> None:
        self._case = case
        self._feed = feed
        self._mark = mark
        self._engine: Engine = make_engine(case)
        self._footprint: Footprint | None = None
        # Only a worker that computes on a device loads the library that watches it.
        self._gpus = Gpus() if case.device == "cuda" else None
        self._gpu = self._gpus.find() if self._gpus is not None else None
        self._gpu_memory: GpuMemoryMeter | None = None
        self._energy = EnergyMeter(self._gpus, self._gpu)
        self._last = 0.0

    def imports(self, command: _WorkerCommand) -> dict[str, Any]:
        """Load the runtime; what is resident then is the baseline."""
        self._mark(f"loading {self._case.runtime}")
        pinned = pin(self._case.threads) if command.get("pin", True) else None
        if self._gpus is not None:
            self._gpu_memory = GpuMemoryMeter.begin(self._gpus, self._gpu)
        start = time.perf_counter()
        self._engine.imports()
        seconds = time.perf_counter() - start
        gc.collect()
        self._footprint = Footprint.begin(self._case.files)
        return {"seconds": seconds, "pinned": pinned and dataclasses.asdict(pinned)}

    def load(self, command: _WorkerCommand) -> dict[str, Any]:
        """Open the artifact, its pages brought in before, or (``cold``) thrown out and checked."""
        path = self._case.path
        eviction = None
        if command["cold"]:
            self._mark(f"evicting {path}")
            eviction = evict(self._case.files)
        else:
            self._mark(f"reading {path}")
            warm(self._case.files)
        self._mark(f"loading {path}")
        start = time.perf_counter()
        self._engine.load()
        seconds = time.perf_counter() - start
        answer: dict[str, Any] = {"seconds": seconds, "repeats": self._engine.repeats}
        if eviction is not None:
            answer["verified"] = eviction.verified
            answer["reason"] = eviction.reason
        return answer

    def first(self, command: _WorkerCommand) -> dict[str, Any]:
        """The first inference."""
        self._mark(f"running {self._case.path}")
        self._engine.prepare(self._feed)
        start = time.perf_counter()
        self._engine.run()
        self._last = time.perf_counter() - start
        return {"seconds": self._last}

    def turn(self, command: _WorkerCommand) -> dict[str, Any]:
        """Inferences for ``seconds``, at least one, each timed; ``limit`` of the times are kept,
        evenly spread over the turn."""
        self._mark(f"running {self._case.path}")
        seconds, limit = float(command["seconds"]), int(command["limit"])
        run = self._engine.run
        with quiet():
            if self._last < _LONG * seconds:
                timed(run, _LEAD_IN * seconds)
                # On a busy machine it is an interruption, as a rule, after which the time is found
                # to be up, and the next inference would meet what it left.
                run()
            if command.get("energy"):
                self._energy.begin()
            samples = timed(run, seconds)
            energy = self._energy.end() if command.get("energy") else None
        self._last = samples[-1]
        # What is left out is as good as what is kept: a quick model's times need not all be
        # stored, and its turns must not end before the machine has shown its moods.
        count = min(limit, len(samples))
        kept = [samples[i * len(samples) // count] for i in range(count)]
        answer: dict[str, Any] = {
            "samples": [round(value, 9) for value in kept],
            "runs": len(samples),
            "seconds": sum(samples),
        }
        if energy is not None:
            answer["energy"] = {
                "joules": energy.joules,
                "reason": energy.reason,
                "how": energy.covers,
            }
        return answer

    def memory(self, command: _WorkerCommand) -> dict[str, Any]:
        """What is resident now and was at most, and what the runtime did."""
        assert self._footprint is not None
        memory = dataclasses.asdict(self._footprint.read())
        if self._gpu_memory is None:
            memory["gpu_how"] = "runs on the CPU"
        else:
            found = self._gpu_memory.read()
            memory["gpu"], memory["gpu_how"] = found.nbytes, found.how
        return {"memory": memory, "info": self._engine.info()}


_COMMANDS = frozenset({"imports", "load", "first", "turn", "memory"})


def case_to_json(case: Case) -> dict[str, Any]:
    return {
        **{name: getattr(case, name) for name in _PLAIN},
        "path": str(case.path),
        "files": [str(file) for file in case.files],
        "options": dict(case.options or {}),
    }


_PLAIN = ("runtime", "device", "threads", "workload", "tokens")


def case_from_json(value: Mapping[str, Any]) -> Case:
    return Case(
        path=Path(value["path"]),
        files=tuple(Path(file) for file in value["files"]),
        options=dict(value["options"]),
        **{name: value[name] for name in _PLAIN},
    )


def main(job: Path, commands: IO[bytes], pipe: IO[bytes]) -> None:
    """Answer the commands that come in, until there are no more or one fails."""
    document = json.loads(job.read_text(encoding="utf-8"))
    case = case_from_json(document["case"])
    with job.with_suffix(".mark").open("w", encoding="utf-8") as marks:
        doing = "starting"

        def mark(at: str) -> None:
            nonlocal doing
            doing = at
            # Read by the parent when native code takes this process down.
            marks.seek(0)
            marks.write(json.dumps([document["subject"], doing]))
            marks.truncate()
            marks.flush()

        worker: BenchWorker | None = None
        for line in commands:
            command = json.loads(line)
            assert command["do"] in _COMMANDS
            try:
                if worker is None:
                    worker = BenchWorker(case, _feed(job.parent, document), mark)
                answer = {"result": getattr(worker, command["do"])(command)}
            except EdgeoptError as error:
                said = {"type": type(error).__name__, "message": str(error), "subject": ""}
                answer = {"error": said}
            except MemoryError:
                text = f"out of memory while {doing}; use smaller inputs, or a machine with more"
                said = {"type": "WorkerError", "message": text, "subject": ""}
                answer = {"error": said}
            pipe.write(json.dumps(answer).encode() + b"\n")
            pipe.flush()
            if "error" in answer:
                return


def _feed(folder: Path, document: Mapping[str, Any]) -> Feed:
    """Arrays by input name; the archive numbers them, as a name may be anything."""
    if not document["names"]:
        return {}
    with np.load(folder / document["feed"], allow_pickle=False) as stored:
        return {name: stored[str(i)] for i, name in enumerate(document["names"])}


def _end_with_parent() -> None:
    """A parent that is killed closes our input, which nobody reads while a model runs: have the
    kernel end us as well."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _as_process() -> None:
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        # A crash of native code is reported, and leaves no file of the model's size behind.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _end_with_parent()
    # The pipe is ours alone: what native code prints to standard output goes to the log.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main(Path(sys.argv[1]), sys.stdin.buffer, pipe)
    sys.stderr.flush()
    os._exit(0)  # without the teardown of the runtime, which can take long, and can crash


if __name__ == "__main__":
    _as_process()
