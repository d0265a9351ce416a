"""A benchmark on another machine: the same trials, the same worker, its own runtimes."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import Progress
from edgeopt.errors import InputsError, OutputError, UsageError, WorkerError
from edgeopt.measure.bench import Bench
from edgeopt.measure.remote.host import PACKAGES, Host
from edgeopt.measure.remote.shipping import Shipping
from edgeopt.measure.remote.wire import bench_from_json, trial_to_json
from edgeopt.measure.trial import BenchSettings, Trial

__all__ = ["RemoteBench"]


class RemoteBench:
    """Benchmarks on ``host``. Each artifact is sent once, however often it is measured."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._shipping = Shipping(host)

    def resolve(self, device: str, runtime: str) -> str:
        """The device that ``--device`` means there, as :func:`edgeopt.runtimes.devices.resolve`.

        Raises HostError where the runtime is not installed there, UsageError where it is not
        measured elsewhere, or has no such device.
        """
        self._require(runtime)
        request = {"do": "resolve", "device": device, "runtime": runtime}
        try:
            return str(self._host.ask(request, "looking for its devices"))
        except UsageError as error:
            raise UsageError(f"--on {self._host.target}: {error}") from None

    def environment(self, *, threads: int = 1) -> dict[str, Any]:
        """The machine, as it says of itself."""
        return self._host.environment(threads)

    def run(
        self,
        trials: Sequence[Trial],
        settings: BenchSettings,
        *,
        progress: Progress | None = None,
        on_round: Callable[[Bench], None] | None = None,
    ) -> Bench:
        """:func:`edgeopt.measure.bench.run_bench`, there.

        Where the machine is lost after the first process round, what it had given until then is
        returned, every subject with that failure. Raises otherwise as ``run_bench`` does, and
        what sending raises.
        """
        request = {
            "do": "bench",
            "trials": self._send(trials, progress),
            "settings": dataclasses.asdict(settings),
        }
        parts: list[Bench] = []

        def part(document: Mapping[str, Any]) -> None:
            parts[:] = [bench_from_json(self._shipping.as_here(document))]
            if on_round is not None:
                on_round(parts[0])

        try:
            document = self._host.ask(request, "measuring", progress, part)
        except WorkerError as error:
            if not parts:
                raise
            lost = dict.fromkeys((trial.subject for trial in trials), str(error))
            return dataclasses.replace(parts[0], failures={**lost, **parts[0].failures})
        return bench_from_json(self._shipping.as_here(document))

    def _require(self, runtime: str) -> None:
        if runtime not in PACKAGES:
            raise UsageError(
                f"--on {self._host.target}: {runtime} is not measured on another machine; export"
                " the model with edgeopt export, and measure that file"
            )
        self._host.need([runtime])

    def _send(self, trials: Sequence[Trial], progress: Progress | None) -> list[dict[str, Any]]:
        """Send what the trials need; the trials as they are there."""
        models: dict[Path, set[Path]] = {}
        for trial in trials:
            self._require(trial.case.runtime)
            models.setdefault(trial.case.path, set()).update(trial.case.files)
        there = self._shipping.send({m: sorted(files) for m, files in models.items()}, progress)
        with tempfile.TemporaryDirectory(prefix="edgeopt-", ignore_cleanup_errors=True) as name:
            self._host.put(_write_feeds(trials, Path(name)), progress)
        return [trial_to_json(trial, f"feeds/{i}.npz", there) for i, trial in enumerate(trials)]


def _write_feeds(trials: Sequence[Trial], folder: Path) -> dict[str, Path]:
    """An archive of each trial's arrays, numbered, as an input's name may be anything."""
    files = {}
    for i, trial in enumerate(trials):
        arrays = {str(k): np.asarray(value) for k, value in enumerate(trial.feed.values())}
        for name, value in zip(trial.feed, arrays.values(), strict=True):
            if value.dtype.hasobject:
                raise InputsError(f"input {name}: not an array of numbers")
        path = folder / f"feed-{i}.npz"
        try:
            np.savez(path, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(f"{folder}: {reason}; set TMPDIR to a folder with room") from error
        files[f"feeds/{i}.npz"] = path
    return files
