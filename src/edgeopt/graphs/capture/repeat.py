"""Does a model answer the same twice? What draws at random inside cannot be held to anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.core import Array
from edgeopt.errors import CaptureError
from edgeopt.graphs.capture.check import FLOOR_DB, agreement_db, run_onnx

__all__ = ["repeated", "require_repeatable"]

#: A source whose own answers are less alike than this (dB) proves nothing of a file: the highest
#: floor that a quantized file is held to, and then some.
_LEAST_DB = 30.0

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
#: Inputs that scale what is drawn, by the names that text-to-speech models give them.
_SCALE = re.compile(r"noise|scale|temperature|dropout", re.IGNORECASE)


def require_repeatable(
    run: Callable[[Mapping[str, Array]], list[Array]], feed: Mapping[str, Array]
) -> None:
    """CaptureError where a torch model's two answers to one feed are not alike."""
    found = agreement_db(run(feed), run(feed))
    if found < FLOOR_DB:
        raise CaptureError(
            f"the model's own answers differ from run to run ({_apart(found)}): something in its"
            " forward() draws at random, so no file can answer as it does; turn that off (dropout"
            " and sampling only where self.training is set), or draw from a generator that"
            " forward() seeds itself"
        )


def repeated(path: Path, feed: Mapping[str, Array]) -> tuple[str, ...]:
    """Notes on how alike a file's answers to one feed are, where they are not the same.

    What draws from a seed in the file draws the same in every fresh session, and can be held to
    it. Raises CaptureError where the answers have next to nothing in common otherwise.
    """
    first, second = run_onnx(path, [feed, feed])
    found = agreement_db(first, second)
    if found >= FLOOR_DB:
        return ()
    drawing, seeded = _drawing(path)
    if seeded:
        return (f"the source draws at random ({drawing}), from a seed of its own",)
    what = f"{drawing} draws at random" if drawing else "it is not deterministic"
    if found >= _LEAST_DB:
        return (f"the source's own answers differ from run to run ({_apart(found)}): {what}",)
    raise CaptureError(
        f"{path}: the source's own answers differ from run to run ({_apart(found)}): {what}, so no"
        f" file can answer as it does; {_remedy(feed)}"
    )


def _apart(decibels: float) -> str:
    return "nothing in common" if decibels == -np.inf else f"{decibels:.1f} dB apart"


def _remedy(feed: Mapping[str, Array]) -> str:
    scales = [
        name for name, array in feed.items() if array.dtype.kind == "f" and _SCALE.search(name)
    ]
    if scales:
        return (
            f"give --data with {', '.join(scales)} at values that turn it off (0 for noise), or"
            " export the model without it"
        )
    return "export the model without it (eval mode, no sampling, no noise), or with a fixed seed"


def _drawing(path: Path) -> tuple[str, bool]:
    """The random operators of the file, its branches and functions, for a person, and whether
    there are some and all have a seed."""
    model = onnx.load(path, load_external_data=False)
    constants = {t.name: t for t in model.graph.initializer}
    found: dict[str, str] = {}
    seeds: list[bool] = []
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in _nodes(nodes):
            if node.op_type == "Constant" and node.output:
                constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
            if node.op_type in _RANDOM or _trains(node, constants):
                found.setdefault(node.op_type, node.name)
                seeds.append(any(a.name == "seed" for a in node.attribute))
    named = ", ".join(op + (f" ({name})" if name else "") for op, name in found.items())
    return named, bool(seeds) and all(seeds)


def _nodes(nodes: Sequence[Any]) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _trains(node: Any, constants: Mapping[str, Any]) -> bool:
    """A Dropout that drops: its third input is true."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    held = constants.get(node.input[2])
    return held is None or bool(numpy_helper.to_array(held).any())
