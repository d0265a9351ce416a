"""Jobs of :mod:`edgeopt.measure.worker` done on another machine, on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt.core import Progress
from edgeopt.errors import SourceError
from edgeopt.measure.child import rebuilt
from edgeopt.measure.process import Outcome, Workplace, sample_name
from edgeopt.measure.remote.host import Host
from edgeopt.measure.remote.shipping import Shipping

__all__ = ["RemoteJobs"]

#: The fields of a job that are a model's path.
_MODELS = ("source", "artifact", "path")


class RemoteJobs:
    """Where the workers of a :class:`~edgeopt.measure.process.Workplace` run: on ``host``."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._shipping = Shipping(host)
        self._places: dict[Path, str] = {}
        self._jobs = 0

    @property
    def name(self) -> str:
        """The machine as ``--on`` calls it."""
        return str(replace(self.host.target, folder=None))

    def environment(self, threads: int = 1) -> dict[str, Any]:
        """The machine there, and what ``--on`` calls it."""
        return {**self.host.environment(threads), "on": self.name}

    def run_job(
        self,
        place: Workplace,
        job: Mapping[str, Any],
        progress: Progress | None,
        silence: float,
    ) -> Outcome:
        """Send what ``job`` needs and is not there yet, and do it in a fresh process there.

        Raises OutputError where there is no room for it, WorkerError where the machine is lost.
        """
        self._jobs += 1
        folder = self._send_samples(place, progress)
        paths = [job[key] for key in _MODELS if key in job]
        paths += job.get("candidates", {}).values()
        there = self._shipping.send({Path(p): _files(Path(p)) for p in paths}, progress)
        found = self.host.ask(
            {
                "do": "job",
                "folder": folder,
                "number": self._jobs,
                "samples": {"count": place.feeds.count, "names": list(place.feeds.names)},
                "job": _moved(job, there),
                "silence": silence,
            },
            f"doing a {job['kind']} job",
            progress,
        )
        answer = self._shipping.as_here(found)
        error = answer["error"]
        return Outcome(answer["result"], rebuilt(error) if error else None, answer["subject"])

    def forget(self, place: Workplace) -> None:
        """Remove the samples of ``place`` there."""
        folder = self._places.pop(place.folder, None)
        if folder is not None:
            self.host.drop(_samples(place, folder))

    def _send_samples(self, place: Workplace, progress: Progress | None) -> str:
        folder = self._places.setdefault(place.folder, f"samples/{len(self._places)}-{self._jobs}")
        self.host.put(_samples(place, folder), progress)
        return folder


def _samples(place: Workplace, folder: str) -> dict[str, Path]:
    """Name there -> file here."""
    names = [
        sample_name(index, position)
        for index in range(place.feeds.count)
        for position in range(len(place.feeds.names))
    ]
    return {f"{folder}/{name}": place.folder / name for name in names}


def _files(path: Path) -> tuple[Path, ...]:
    """What a model maps. Of a file that is no model, itself: its loader has something to say."""
    from edgeopt.files.onnx import describe

    try:
        return describe(path).files
    except SourceError:
        return (path,)


def _moved(job: Mapping[str, Any], there: Mapping[Path, str]) -> dict[str, Any]:
    """The job with every file's path as it is there."""
    moved = dict(job)
    for key in _MODELS:
        if key in job:
            moved[key] = there[Path(job[key])]
    if "candidates" in job:
        moved["candidates"] = {n: there[Path(path)] for n, path in job["candidates"].items()}
    if "files" in job:
        moved["files"] = [there[Path(file)] for file in job["files"] if Path(file) in there]
    return moved
