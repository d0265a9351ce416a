"""The way in for sources that have a graph: samples, capture, fold. Shared by the verbs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeopt.core import Array, InputSpec, Progress, Source
from edgeopt.data.hint import Hint
from edgeopt.data.inputspec import parse_inputs
from edgeopt.data.samples import SampleFeed, Samples, load
from edgeopt.data.sizes import batch_axes, batch_symbols, sizes_of
from edgeopt.data.split import split
from edgeopt.data.synthetic import OTHER_BATCH, pinned, synthetic
from edgeopt.errors import InputsError, SourceError, UsageError
from edgeopt.graphs.capture import Captured, capture
from edgeopt.targets.onnx.token_hints import with_tokens

__all__ = [
    "Prepared",
    "batch_inputs",
    "example_of",
    "has_graph",
    "narrowed",
    "prepare",
    "require_graph",
    "single_steps",
]

#: Feeds that the proof compares on, at most this many and this many bytes together.
_PROOF_FEEDS = 64
_PROOF_BYTES = 256 << 20

#: Made-up feeds: one of each kind that inputs come in.
MADE_UP = 8

_BARE = frozenset({"torch-state-dict", "torch-checkpoint", "safetensors", "gguf"})


@dataclass(frozen=True)
class Prepared:
    """A captured graph with the inputs to plan on and the inputs to judge by.

    ``calibration`` is None where nobody gave data; ``proof`` feeds were never used to choose
    anything, ``label`` says what they are; ``made_up``: they are so although there were samples (a
    single one, which calibrated). ``trial`` feeds are what candidates are scored and timed
    on. ``kinds`` and ``trial_kinds`` say of
    each feed what it is like, where they are made up.
    """

    source: Source
    captured: Captured
    calibration: Samples | None
    trial: tuple[SampleFeed, ...]
    proof: tuple[SampleFeed, ...]
    label: str
    made_up: bool = False
    kinds: tuple[str, ...] = ()
    trial_kinds: tuple[str, ...] = ()

    @property
    def given(self) -> bool:
        """Whether the inputs are the user's own, not made up."""
        return self.calibration is not None and not self.made_up


def has_graph(source: Source, model: str | None) -> bool:
    """Whether the source carries code, or was given some: a bare state dict has none."""
    return model is not None or source.kind not in _BARE


def require_graph(source: Source, model: str | None) -> None:
    """Raises where the source has no graph that could become ONNX, and says what would give one."""
    if source.kind == "gguf":
        raise SourceError(f"{source.path}: a GGUF file holds no graph; give the model it came from")
    if not has_graph(source, model):
        raise UsageError(
            f"{source.path}: weights without code cannot become ONNX; give the code with"
            " --model package.module:callable"
        )


def prepare(
    source: Source,
    workdir: Path,
    *,
    data: str | None,
    inputs: Sequence[str],
    model: str | None,
    trust_pickle: bool,
    opset: int = 21,
    shapes: str | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Capture the source's graph, and fit the samples to it (or make some up).

    ``shapes``: other data (to train on), whose first sample tells shapes where ``data`` is None.
    """
    require_graph(source, model)
    if model is not None and source.kind == "onnx":
        raise UsageError(
            f"--model {model}: {source.path} is an ONNX graph, which needs no code; leave it out"
        )
    raw = load(data) if data is not None else None
    first = raw if raw is not None or shapes is None else load(shapes)
    try:
        captured = capture(
            source,
            workdir,
            model=model,
            trust_pickle=trust_pickle,
            inputs=parse_inputs(tuple(inputs)),
            example=example_of(first),
            bare=first is not None and first.bare,
            opset=opset,
            progress=progress,
        )
    except InputsError as error:
        # Found where the file's name is not known.
        text = str(error)
        if raw is None or not text.startswith("--data, "):
            raise
        raise InputsError(f"{raw.label}, {text.removeprefix('--data, ')}") from None
    hints = _hints(source, captured)
    if raw is None:
        # Two draws: what candidates are tried on must not be what they are judged by.
        sizes = _sizes(captured)
        trial = synthetic(captured.inputs, hints, count=MADE_UP, seed=1, sizes=sizes)
        proof = synthetic(
            captured.inputs, hints, count=MADE_UP, seed=0, sizes=sizes, batch=_batch(captured)
        )
        return Prepared(
            *(source, captured, None, tuple(trial), tuple(proof), proof.label),
            kinds=proof.kinds,
            trial_kinds=trial.kinds,
        )
    calibration, held_out = split(raw.fit(captured.inputs), hints=hints)
    return Prepared(
        source,
        captured,
        calibration,
        _bounded(calibration, 16),
        _bounded(held_out, _PROOF_FEEDS),
        held_out.label,
        held_out.made_up,
        kinds=held_out.kinds,
    )


#: Inputs that a decoder's cache goes by, and those that hold its tokens.
_CACHE = re.compile(r"past|cache|key_value", re.IGNORECASE)
_TOKENS = re.compile(r"input_ids|token|inputs_embeds|^ids$", re.IGNORECASE)


def single_steps(prepared: Prepared) -> tuple[str, ...]:
    """A note where a decoder with a cache was proven on one token at a time: errors add up over a
    text, in the cache, and none of that has been seen."""
    first = prepared.proof[0]
    if not any(_CACHE.search(name) and array.ndim > 2 for name, array in first.items()):
        return ()
    tokens = [n for n, a in first.items() if _TOKENS.search(n) and a.ndim >= 2]
    longest = max((f[n].shape[1] for f in prepared.proof for n in tokens if n in f), default=2)
    if longest > 1:
        return ()
    return (
        "a decoder with a cache, proven one token at a time: what errors in the cache add up to"
        " over a text was not measured; give --data with rows of several tokens, or compare texts",
    )


def narrowed(prepared: Prepared, inputs: Sequence[InputSpec], data: str | None) -> Prepared:
    """The same, with proof feeds of the sizes that a model with ``inputs`` insists on.

    Dimensions that the captured graph leaves free and ``inputs`` fixes, by name, take that size.
    """
    captured = prepared.captured
    fixed = {spec.name: spec.shape for spec in inputs}
    specs = tuple(_narrow(spec, fixed.get(spec.name, ())) for spec in captured.inputs)
    if specs == captured.inputs:
        return prepared
    hints = _hints(prepared.source, captured)
    if data is None:
        proof = synthetic(
            specs, hints, count=MADE_UP, seed=0, sizes=_sizes(captured), batch=_batch(captured)
        )
    else:
        _, proof = split(load(data).fit(specs), hints=hints)
    return replace(
        prepared, proof=_bounded(proof, _PROOF_FEEDS), label=proof.label, kinds=proof.kinds
    )


def _narrow(spec: InputSpec, shape: Sequence[int | str]) -> InputSpec:
    if len(shape) != len(spec.shape):
        return spec
    dims = tuple(
        there if isinstance(here, str) and isinstance(there, int) else here
        for here, there in zip(spec.shape, shape, strict=True)
    )
    return replace(spec, shape=dims)


def example_of(raw: Samples | None) -> dict[str, Array] | None:
    """The first sample as it was given: what tells a model's shapes that nothing else does."""
    return None if raw is None else raw.example() or None


def _hints(source: Source, captured: Captured) -> dict[str, Hint]:
    """What the graph and a folder's tokenizer tell of values, and the lone integers (a sample
    rate) that it ran on."""
    from edgeopt.graphs.hints import input_hints

    hints = input_hints(captured.model)
    ran = {
        name: int(captured.example[name].reshape(-1)[0])
        for name, hint in hints.items()
        if hint.values and name in captured.example
    }
    if source.kind == "hf-folder":
        hints = with_tokens(hints, captured.inputs, source.path)
    return pinned(hints, ran)


def _sizes(captured: Captured) -> dict[str, int]:
    """Sizes of the free dimensions in the feed that was exported, at batch 1: one request at a
    time is what a device sees."""
    shapes = {name: array.shape for name, array in captured.example.items()}
    sizes = sizes_of(captured.inputs, shapes)
    return {**sizes, **dict.fromkeys(batch_symbols(captured.inputs), 1)}


def batch_inputs(inputs: Sequence[InputSpec]) -> tuple[str, ...]:
    """The inputs whose first axis is the one batch that all of them share; none where a batch lies
    inside (a recurrent state's), so that rows cannot be stacked."""
    symbols, axes = batch_symbols(inputs), batch_axes(inputs)
    if len(symbols) != 1 or any(axis for axis in axes.values()):
        return ()
    return tuple(spec.name for spec in inputs if spec.shape and spec.shape[0] == symbols[0])


def _batch(captured: Captured) -> int | None:
    return OTHER_BATCH if captured.batches else None


def _bounded(samples: Samples, count: int) -> tuple[SampleFeed, ...]:
    feeds: list[SampleFeed] = []
    room = _PROOF_BYTES
    for feed in itertools.islice(samples, count):
        room -= sum(array.nbytes for array in feed.values())
        if feeds and room < 0:
            break
        feeds.append(feed)
    return tuple(feeds)
