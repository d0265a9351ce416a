"""Samples joined to batches, for runs whose result is a sum over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from edgeopt.core import Array
from edgeopt.modules.model import TorchModel

__all__ = ["collate", "row_count"]


def collate(
    model: TorchModel, feeds: Iterable[Mapping[str, Array]], rows: int
) -> Iterator[Mapping[str, Array]]:
    """Feeds joined along their leading axis, where that is the same free one for all inputs.

    Neighbours whose other axes agree come together in batches of ``rows``; the last of a run of
    them takes what is left over with it, so that only a run of one is a lone row. Every row comes
    once, in order.
    """
    first = {spec.shape[0] if spec.shape else 0 for spec in model.inputs}
    joins = len(first) == 1 and isinstance(next(iter(first)), str)
    names = [spec.name for spec in model.inputs]
    waiting: list[Mapping[str, Array]] = []
    count = 0
    for given in feeds:
        feed = {name: given[name] for name in names}
        if waiting and not (joins and _tails(waiting[-1]) == _tails(feed)):
            yield _joined(waiting)
            waiting, count = [], 0
        waiting.append(feed)
        count += row_count(feed)
        if joins and count >= 2 * rows:
            whole = _joined(waiting)
            for begin in range(0, count - 2 * rows + 1, rows):
                yield {name: array[begin : begin + rows] for name, array in whole.items()}
            begin += rows
            waiting, count = [{n: array[begin:] for n, array in whole.items()}], count - begin
    if waiting:
        yield _joined(waiting)


def row_count(feed: Mapping[str, Array]) -> int:
    """Rows of a feed: the length of its leading axis."""
    return max((len(array) for array in feed.values() if np.ndim(array)), default=1)


def _joined(feeds: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    if len(feeds) == 1:
        return feeds[0]
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _tails(feed: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(array)[1:] for name, array in feed.items()}
