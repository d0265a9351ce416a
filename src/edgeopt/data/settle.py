"""Made-up inputs that a model really runs on, found by running it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edgeopt.core import Array, InputSpec
from edgeopt.data.fitting import is_text
from edgeopt.data.hint import Hint
from edgeopt.data.samples import SampleFeed
from edgeopt.data.sizes import batch_symbols, candidates
from edgeopt.data.synthetic import OTHER_BATCH, pinned, synthetic

__all__ = ["Settled", "larger", "settle"]

#: Feeds that are tried, and seconds that go into it; one is tried in any case.
_ATTEMPTS, _SECONDS = 1500, 20.0

#: None where the model runs on a feed, else its complaint.
Runs = Callable[[Mapping[str, Array]], "str | None"]


@dataclass(frozen=True)
class Settled:
    """``sizes`` of free dimensions by symbol and ``values`` of lone integers by input, of a
    ``feed`` that the model runs on; None, and its first ``complaint``, where it ran on none."""

    feed: SampleFeed | None
    sizes: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, int] = field(default_factory=dict)
    hints: Mapping[str, Hint] = field(default_factory=dict)
    complaint: str = ""


def settle(
    specs: Sequence[InputSpec],
    hints: Mapping[str, Hint],
    runs: Runs,
    fixed: Mapping[str, int] | None = None,
) -> Settled:
    """The likeliest sizes and values that the model runs on; ``fixed`` sizes are not tried others.

    Raises InputsError where no inputs can be made up for these types.
    """
    complaint, start = "", time.monotonic()
    for count, (sizes, values) in enumerate(candidates(specs, hints, fixed)):
        if count and (count >= _ATTEMPTS or time.monotonic() - start > _SECONDS):
            break
        known = pinned(hints, values)
        feed = next(iter(synthetic(specs, known, count=1, sizes=sizes)))
        found = runs(feed)
        if found is None:
            return Settled(feed, sizes, values, known)
        complaint = complaint or found
    return Settled(None, complaint=complaint)


def larger(specs: Sequence[InputSpec], settled: Settled) -> SampleFeed | None:
    """The same sizes with several samples in a batch; None where the batch is not free."""
    batch = dict.fromkeys(batch_symbols(specs), OTHER_BATCH)
    if not batch or any(is_text(spec.dtype) for spec in specs):
        return None
    sizes = {**settled.sizes, **batch}
    return next(iter(synthetic(specs, settled.hints, count=1, sizes=sizes)))
