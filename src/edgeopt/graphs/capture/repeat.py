"""Does a model answer the same twice? What draws at random inside cannot be held to anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgeopt.core import Array
from edgeopt.errors import CaptureError
from edgeopt.graphs.capture.check import FLOOR_DB, agreement_db, run_onnx
from edgeopt.graphs.draws import draws

__all__ = ["repeated", "require_repeatable"]

#: A source whose own answers are less alike than this (dB) proves nothing of a file: the highest
#: floor that a quantized file is held to, and then some.
_LEAST_DB = 30.0

#: Runs of a graph that has nodes that draw.
_DRAWS = 5


def require_repeatable(
    run: Callable[[Mapping[str, Array]], list[Array]], feed: Mapping[str, Array]
) -> None:
    """CaptureError where a torch model's two answers to one feed are not alike."""
    found = agreement_db(run(feed), run(feed))
    if found < FLOOR_DB:
        raise CaptureError(
            f"the model's own answers differ from run to run ({_apart(found)}): something in its"
            " forward() draws at random or keeps state from call to call, so no file can answer as"
            " it does; turn drawing off (dropout and sampling only where self.training is set), or"
            " draw from a generator that forward() seeds itself; take state as an input; or keep"
            " the weights alone with --to safetensors"
        )


def repeated(path: Path, feed: Mapping[str, Array]) -> tuple[str, ...]:
    """Notes on how alike a file's answers to one feed are, where they are not the same.

    What draws from a seed in the file draws the same in every fresh session, and can be held to
    it. Raises CaptureError where the answers have next to nothing in common otherwise.
    """
    drawn = draws(path)
    # Two draws may be alike by chance: one number that scales everything often is.
    first, *others = run_onnx(path, [feed] * (_DRAWS if drawn.nodes else 2))
    found = min(agreement_db(first, other) for other in others)
    if found >= FLOOR_DB:
        return ()
    drawing = ", ".join(drawn.nodes)
    if drawn.seeded:
        return (f"the source draws at random ({drawing}), from a seed of its own",)
    what = f"{drawing} draws at random" if drawing else "it is not deterministic"
    if found >= _LEAST_DB:
        return (f"the source's own answers differ from run to run ({_apart(found)}): {what}",)
    raise CaptureError(
        f"{path}: the source's own answers differ from run to run ({_apart(found)}): {what}, so no"
        f" file can answer as it does; {drawn.remedy}"
    )


def _apart(decibels: float) -> str:
    return "nothing in common" if decibels == -np.inf else f"{decibels:.1f} dB apart"
