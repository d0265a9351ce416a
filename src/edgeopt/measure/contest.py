"""A contest between candidates for one choice: all timed in one worker, block by block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeopt.core import Progress
from edgeopt.errors import WorkerError
from edgeopt.measure.process import Elsewhere, workplace
from edgeopt.numerics.statistics import ratio_interval, round_ratios

__all__ = ["Timings", "fastest", "time_candidates"]


class Timings(dict[str, list[float]]):
    """Seconds per inference of each candidate's blocks; block ``i`` of all ran in one round.

    ``failures`` names the candidates that are not among them, each with its reason.
    """

    def __init__(
        self, values: Mapping[str, Sequence[float]], failures: Mapping[str, str] | None = None
    ) -> None:
        super().__init__({name: list(blocks) for name, blocks in values.items()})
        self.failures: dict[str, str] = dict(failures or {})


def time_candidates(
    candidates: Mapping[str, Path],
    feeds: Mapping[str, NDArray[Any]] | Iterable[Mapping[str, NDArray[Any]]],
    *,
    threads: int = 1,
    seconds: float = 1.5,
    on: Elsewhere | None = None,
    progress: Progress | None = None,
) -> Timings:
    """Time ``candidates`` (name to ONNX file) against each other on one feed, or on several.

    All sessions are open in one worker and take turns in blocks of about 12 ms, in rotating
    order; with several feeds, each round uses the next one for every candidate. ``seconds`` is
    the time given to all of them together. A candidate that does not load or run is left out and
    named in ``failures``; one whose native code takes the worker down is left out too, and the
    others are timed again without it. ``on`` is another machine to time them on. Raises
    InputsError where no feed is given.
    """
    samples = [feeds] if isinstance(feeds, Mapping) else feeds
    job = {
        "kind": "contest",
        "candidates": {name: str(path.resolve()) for name, path in candidates.items()},
        "threads": threads,
        "seconds": seconds,
    }
    with workplace(samples, on) as place:
        result, failures = place.run_candidates(job, progress)
    if result is None:
        return Timings({}, failures)
    return Timings(result["timings"], {**failures, **result["failures"]})


def fastest(
    timings: Mapping[str, Sequence[float]], prefer_order: Sequence[str], margin: float = 0.03
) -> str:
    """The first of ``prefer_order`` that was timed, unless a later one is clearly faster.

    Clearly: the upper bound of the 95% interval of their ratio, round by round, lies below
    ``1 - margin``. A later one takes the title from whoever holds it when it comes to its turn,
    so noise alone never moves the choice off the preferred candidate. Candidates that
    ``prefer_order`` does not name come last, in their own order. Raises WorkerError when there
    are no timings.
    """
    ranked = [name for name in prefer_order if timings.get(name)]
    ranked += [name for name in timings if name not in ranked and timings[name]]
    if not ranked:
        reasons = getattr(timings, "failures", {})
        detail = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise WorkerError(f"no candidate could be timed{': ' + detail if detail else ''}")
    holder = ranked[0]
    for name in ranked[1:]:
        ratios = round_ratios(timings[holder], timings[name])
        if len(ratios) >= 3 and ratio_interval(ratios).high < 1.0 - margin:
            holder = name
    return holder
