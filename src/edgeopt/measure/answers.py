"""What artifacts answer: every output for every sample, kept on disk until it has been compared.

Each artifact answers in a fresh process of its own: a runtime that crashes takes nobody's answers
with it, and artifacts of different runtimes can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Fidelity, InputSpec, Progress
from edgeopt.errors import OutputError, SourceError
from edgeopt.measure.bench_worker import case_from_json, case_to_json
from edgeopt.measure.fidelity import FidelityMeter
from edgeopt.measure.jobs import match_outputs
from edgeopt.measure.matching import RowCount, RowMatcher
from edgeopt.measure.process import Feeds, Workplace
from edgeopt.measure.reporter import Reporter
from edgeopt.runtimes.engine import Answering, Case, make_engine

__all__ = ["ANSWER_JOBS", "Answers", "compare_answers", "take_answers"]


#: Answers that have nothing in common are said to be this far (dB) apart.
_FAR = 100.0


@dataclass(frozen=True)
class Answers:
    """One artifact's outputs for ``count`` samples, one ``.npy`` file each.

    ``names`` are in the artifact's own order. ``repeats_db`` is how close its answers to one sample
    are from run to run, where they are not the same.
    """

    folder: Path
    names: tuple[str, ...]
    count: int
    repeats_db: float | None = None

    def load(self, index: int) -> dict[str, NDArray[Any]]:
        return {
            name: np.load(self.folder / _file(index, i), allow_pickle=False)
            for i, name in enumerate(self.names)
        }

    def all_of(self, name: str) -> list[NDArray[Any]]:
        """One output of every sample."""
        position = self.names.index(name)
        return [
            np.load(self.folder / _file(index, position), allow_pickle=False)
            for index in range(self.count)
        ]

    def discard(self) -> None:
        """Give back the disk's room."""
        for file in self.folder.iterdir():
            file.unlink()


def take_answers(
    place: Workplace, key: str, case: Case, progress: Progress | None = None
) -> Answers:
    """Run ``case`` on all of the place's samples in a fresh process; ``key`` is a folder's name.

    Raises what the artifact or its runtime fails with; WorkerError where the process dies.
    """
    folder = place.folder / key
    folder.mkdir()
    job = {"kind": "answers", "case": case_to_json(case), "folder": key}
    outcome = place.run(job, progress=progress)
    if outcome.result is None:
        assert outcome.error is not None
        raise outcome.error
    return Answers(
        folder,
        tuple(outcome.result["outputs"]),
        place.feeds.count,
        outcome.result.get("repeats"),
    )


def compare_answers(
    base: Answers, other: Answers, loose: Sequence[str] = (), kinds: Sequence[str] = ()
) -> tuple[tuple[Fidelity, ...], RowCount | None]:
    """Fidelity of every output of ``base`` in ``other``; outputs are matched by name, else by
    position, and rows of those that are sets (``loose``, or of another number) by their values:
    how many were found again. ``kinds`` says of each sample what it is like, where they differ.
    SourceError where an output has no counterpart or another shape."""
    names = match_outputs(_specs(base), _specs(other), None)
    loosely = frozenset(loose)
    meters = {name: FidelityMeter(name, classes=name not in loosely) for name in names}
    matcher = RowMatcher(loosely)
    for index in range(base.count):
        expected, answered = base.load(index), other.load(index)
        ours, theirs = matcher.pair(expected, {name: answered[names[name]] for name in names})
        for name, meter in meters.items():
            problem = meter.add(ours[name], theirs[name], "".join(kinds[index : index + 1]))
            if problem:
                raise SourceError(problem)
    return tuple(meter.result() for meter in meters.values()), matcher.result()


def _specs(answers: Answers) -> tuple[InputSpec, ...]:
    return tuple(InputSpec(name, "", ()) for name in answers.names)


def _file(index: int, position: int) -> str:
    return f"{index:06d}-{position}.npy"


# ---------------------------------------------------------------------------------------------
# in the worker


def answers(job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter) -> dict[str, Any]:
    """Load the case's artifact and write its outputs for every sample. Result: their names."""
    case = case_from_json(job["case"])
    engine = make_engine(case)
    if not isinstance(engine, Answering):
        raise SourceError(f"{case.path}: {case.runtime} gives no outputs to compare")
    voice.busy("artifact", f"loading {case.runtime}")
    engine.imports()
    voice.busy("artifact", f"loading {case.path}")
    engine.load()
    names: tuple[str, ...] | None = None
    repeats = math.inf
    for index in range(feeds.count):
        voice.busy("artifact", f"running {case.path}")
        feed = feeds.load(folder, index)
        outputs = engine.answer(feed)
        if index == 0:
            repeats = _repeats(outputs, engine.answer(feed))
        if names is None:
            names = tuple(outputs)
        for position, name in enumerate(names):
            if name not in outputs:
                raise SourceError(f"{case.path}: gives no {name} for sample {index}")
            _write(folder / job["folder"] / _file(index, position), outputs[name], case, name)
        voice.progress(f"running {case.path.name}", (index + 1) / feeds.count)
    return {"outputs": list(names or ()), "repeats": None if math.isinf(repeats) else repeats}


def _repeats(first: Mapping[str, NDArray[Any]], again: Mapping[str, NDArray[Any]]) -> float:
    """How close (dB) two answers to one sample are, by the worst output; inf where they agree."""
    worst = math.inf
    for name, array in first.items():
        meter = FidelityMeter(name)
        if meter.add(np.asarray(array), np.asarray(again[name])) is not None:
            return -_FAR
        if not math.isnan(found := meter.result().sqnr_db):
            worst = min(worst, max(found, -_FAR))
    return worst


def _write(path: Path, array: NDArray[Any], case: Case, name: str) -> None:
    if array.dtype.kind not in "biuf":
        if array.dtype.kind != "V" or not array.dtype.name.startswith(("bfloat", "float")):
            raise SourceError(f"{case.path}: output {name} is {array.dtype}, not numbers")
        array = array.astype(np.float32)  # .npy knows numpy's own dtypes only
    try:
        np.save(path, array, allow_pickle=False)
    except OSError as error:
        reason = error.strerror or str(error)  # a short write has no errno of its own
        raise OutputError(
            f"{path.parent}: {reason}; set TMPDIR to a folder with room for the outputs, or give "
            "fewer samples"
        ) from error


ANSWER_JOBS: Mapping[str, Callable[[Mapping[str, Any], Feeds, Path, Any], dict[str, Any]]] = {
    "answers": answers
}
