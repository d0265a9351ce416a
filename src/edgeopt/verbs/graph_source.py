"""The way in for sources that have a graph: samples, capture, fold. Shared by the verbs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core import Array, Progress, Source
from edgeopt.data.inputspec import parse_inputs
from edgeopt.data.samples import Feed, Samples, load
from edgeopt.data.split import split
from edgeopt.data.synthetic import synthetic
from edgeopt.errors import SourceError
from edgeopt.graphs.capture import Captured, capture

__all__ = ["Prepared", "has_graph", "prepare"]

#: Feeds that the proof compares on, at most this many and this many bytes together.
_PROOF_FEEDS = 64
_PROOF_BYTES = 256 << 20

_BARE = frozenset({"torch-state-dict", "torch-checkpoint", "safetensors", "gguf"})


@dataclass(frozen=True)
class Prepared:
    """A captured graph with the inputs to plan on and the inputs to judge by.

    ``calibration`` is None where nobody gave data; ``proof`` feeds were never used to choose
    anything, ``label`` says what they are. ``trial`` feeds are what candidates are timed on.
    """

    source: Source
    captured: Captured
    calibration: Samples | None
    trial: tuple[Feed, ...]
    proof: tuple[Feed, ...]
    label: str


def has_graph(source: Source, model: str | None) -> bool:
    """Whether the source carries code, or was given some: a bare state dict has none."""
    return model is not None or source.kind not in _BARE


def prepare(
    source: Source,
    workdir: Path,
    *,
    data: str | None,
    inputs: Sequence[str],
    model: str | None,
    trust_pickle: bool,
    opset: int = 21,
    progress: Progress | None = None,
) -> Prepared:
    """Capture the source's graph, and fit the samples to it (or make some up)."""
    from edgeopt.graphs.hints import input_hints

    if source.kind == "gguf":
        raise SourceError(f"{source.path}: a GGUF file holds no graph; give the model it came from")
    raw = load(data) if data is not None else None
    captured = capture(
        source,
        workdir,
        model=model,
        trust_pickle=trust_pickle,
        inputs=parse_inputs(tuple(inputs)),
        example=_example(raw),
        opset=opset,
        progress=progress,
    )
    hints = input_hints(captured.model)
    sizes = _sizes(captured)
    if raw is None:
        # Two draws: what candidates are tried on must not be what they are judged by.
        trial = synthetic(captured.inputs, hints, count=4, seed=1, sizes=sizes)
        proof = synthetic(captured.inputs, hints, count=8, seed=0, sizes=sizes)
        return Prepared(source, captured, None, tuple(trial), tuple(proof), proof.label)
    calibration, held_out = split(raw.fit(captured.inputs), hints=hints)
    return Prepared(
        source,
        captured,
        calibration,
        _bounded(calibration, 16),
        _bounded(held_out, _PROOF_FEEDS),
        held_out.label,
    )


def _example(raw: Samples | None) -> dict[str, Array] | None:
    """The first sample, where its arrays carry names; by position it is fitted after capture."""
    if raw is None or raw.resolve is not None:
        return None
    first = next(iter(raw), None)
    if first is None or any(name.startswith("#") for name in first):
        return None
    return first


def _sizes(captured: Captured) -> dict[str, int]:
    """Sizes of the free dimensions in the feed that was exported."""
    return {
        dim: size
        for spec in captured.inputs
        if spec.name in captured.example
        for dim, size in zip(spec.shape, captured.example[spec.name].shape, strict=False)
        if isinstance(dim, str)
    }


def _bounded(samples: Samples, count: int) -> tuple[Feed, ...]:
    feeds: list[Feed] = []
    room = _PROOF_BYTES
    for feed in itertools.islice(samples, count):
        room -= sum(array.nbytes for array in feed.values())
        if feeds and room < 0:
            break
        feeds.append(feed)
    return tuple(feeds)
