"""Static INT8 from a float graph and samples, in one call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from edgeopt.core import Array, Decision, Progress
from edgeopt.graphs.static.calibrate import calibrate
from edgeopt.graphs.static.place import Range, place
from edgeopt.graphs.static.prepare import prepare
from edgeopt.graphs.static.rules import SEEDS
from edgeopt.graphs.static.select import Selection, select

__all__ = ["DEFAULT_METHOD", "StaticResult", "quantize_static"]

DEFAULT_METHOD = "mse"


@dataclass(frozen=True)
class StaticResult:
    """The model, what was decided, and what another placement needs (:meth:`again`)."""

    model: Any = field(repr=False)
    decisions: tuple[Decision, ...]
    selection: Selection
    ranges: Mapping[str, Range]
    prepared: Any = field(repr=False)

    def again(self, *, signed: bool, reduce_range: bool = False) -> StaticResult:
        """Other codes from the same ranges: nothing is run again."""
        placed = place(
            self.prepared,
            self.selection,
            self.ranges,
            signed=signed,
            reduce_range=reduce_range,
        )
        return StaticResult(
            placed.model, placed.decisions, self.selection, self.ranges, self.prepared
        )


def quantize_static(
    model: Path | Any,
    feeds: Iterable[Mapping[str, Array]],
    *,
    method: str = DEFAULT_METHOD,
    signed: bool = False,
    reduce_range: bool = False,
    ops: Collection[str] = SEEDS,
    exclude: Collection[str] = (),
    threads: int = 1,
    progress: Progress | None = None,
) -> StaticResult:
    """Prepare, select, calibrate and place.

    ``model``: a path to a float ONNX model, or a ModelProto (left as it is). ``feeds``: samples
    as dicts of arrays by input name. ``ops``: which operators with weights to do in integers.
    Nothing to quantize is no error: ``selection.nodes`` is then empty.
    """
    if isinstance(model, Path):
        source = onnx.load(str(model))
    else:
        source = onnx.ModelProto()
        source.CopyFrom(model)
    prepared = prepare(source)
    selection = select(prepared, ops, exclude)
    ranges: Mapping[str, Range] = {}
    if selection.ranges:
        ranges = calibrate(prepared, selection.ranges, feeds, method, threads, progress)
    placed = place(prepared, selection, ranges, signed=signed, reduce_range=reduce_range)
    return StaticResult(placed.model, placed.decisions, selection, ranges, prepared)
