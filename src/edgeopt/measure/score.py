"""How close candidates come to a reference, before any of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeopt.core import Progress
from edgeopt.measure.process import Elsewhere, workplace

__all__ = ["score_candidates"]


def score_candidates(
    reference: Path,
    candidates: Mapping[str, Path],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    *,
    kinds: Sequence[str] = (),
    probabilities: Sequence[str] = (),
    near: float | None = None,
    batch: Sequence[str] = (),
    threads: int = 1,
    on: Elsewhere | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """SQNR (dB) of each candidate's worst float output against the reference, on the worst of the
    ``kinds`` that the feeds are of, or over all feeds. Of ``probabilities``, kinds whose errors are
    all below ``near`` do not count (:func:`~edgeopt.measure.kinds.worst_kind`). Where ``batch``
    names inputs whose first axis is one, a row beside others counts too, with its margin.

    One fresh worker process runs them all; one that it dies of is left out of the next. A
    candidate that does not load or run scores -inf; a model without float outputs scores inf.
    ``on`` is another machine to run them on: kernels may round differently there.
    Raises the reference's error where that does not run.
    """
    job = {
        "kind": "score",
        "source": str(reference.resolve()),
        "candidates": {name: str(path.resolve()) for name, path in candidates.items()},
        "threads": threads,
        "kinds": list(kinds),
        "probabilities": list(probabilities),
        "near": near,
        "batch": list(batch),
    }
    with workplace(feeds, on) as place:
        result, _ = place.run_candidates(job, progress)
    scores: Mapping[str, float | None] = {} if result is None else result["scores"]
    return {
        name: -math.inf if (score := scores.get(name)) is None else float(score)
        for name in candidates
    }
