"""What the runner on another machine can be asked for, one function a request."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["REQUESTS", "RequestContext"]


class RequestContext(Protocol):
    """Where a request is answered: its folder, and how progress goes back."""

    folder: Path

    def say(self, message: Mapping[str, Any]) -> None: ...

    def progress(self, step: str, fraction: float | None) -> None: ...


def environment(place: RequestContext, request: Mapping[str, Any]) -> dict[str, Any]:
    """The machine, as :func:`edgeopt.measure.environment.environment` describes it."""
    from edgeopt.measure.environment import environment

    return environment(threads=int(request["threads"]))


def drop(place: RequestContext, request: Mapping[str, Any]) -> dict[str, Any]:
    """Remove what was put under some names; says how many bytes are free then."""
    for name in request["names"]:
        (place.folder / name).unlink(missing_ok=True)
    return {"free": shutil.disk_usage(place.folder).free}


def job(place: RequestContext, request: Mapping[str, Any]) -> dict[str, Any]:
    """One job of :mod:`edgeopt.measure.worker` in a fresh process, on samples put before."""
    from edgeopt.measure.process import Feeds, Workplace

    samples = Feeds(request["samples"]["count"], tuple(request["samples"]["names"]))
    folder = place.folder / request["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    outcome = Workplace(folder, samples, {}, _jobs=request["number"]).run(
        request["job"], progress=place.progress, silence=request["silence"]
    )
    error = outcome.error and {"type": type(outcome.error).__name__, "message": str(outcome.error)}
    return {"result": outcome.result, "error": error, "subject": outcome.subject}


def resolve(place: RequestContext, request: Mapping[str, Any]) -> str:
    """The device that a runtime takes, as :func:`edgeopt.runtimes.devices.resolve`."""
    from edgeopt.runtimes.devices import resolve

    return resolve(request["device"], request["runtime"])


def bench(place: RequestContext, request: Mapping[str, Any]) -> dict[str, Any]:
    """A benchmark of files put before; what there is after each process round goes back too."""
    from edgeopt.measure.bench import Bench, run_bench
    from edgeopt.measure.remote.wire import trial_from_json
    from edgeopt.measure.trial import BenchSettings

    def so_far(found: Bench) -> None:
        place.say({"part": dataclasses.asdict(found)})

    found = run_bench(
        [trial_from_json(trial, place.folder) for trial in request["trials"]],
        BenchSettings(**request["settings"]),
        progress=place.progress,
        on_round=so_far,
    )
    return dataclasses.asdict(found)


REQUESTS: Mapping[str, Callable[[RequestContext, Mapping[str, Any]], Any]] = {
    "environment": environment,
    "drop": drop,
    "job": job,
    "resolve": resolve,
    "bench": bench,
}
