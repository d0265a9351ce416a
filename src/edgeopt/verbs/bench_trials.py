"""From the artifacts that somebody names to what is measured: runtime, inputs, conditions."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import InputSpec, Source, format_bytes
from edgeopt.data.fitting import join_rows, plain_dtype
from edgeopt.data.inputspec import parse_inputs
from edgeopt.data.samples import SampleFeed, Samples, load
from edgeopt.data.sizes import batch_axes, batch_symbols, candidates
from edgeopt.data.synthetic import concrete_shape, pinned, synthetic
from edgeopt.errors import InputsError, UsageError
from edgeopt.measure.sizes import try_sizes
from edgeopt.measure.sysfiles import kilobytes
from edgeopt.measure.trial import Trial
from edgeopt.options.table import BenchRequest
from edgeopt.runtimes.engine import Case

__all__ = [
    "RUNTIMES",
    "BenchRequest",
    "fitting_sizes",
    "hints_of",
    "names_of",
    "runtime_of",
    "specs_of",
    "trials_of",
]

#: ``--runtime``'s words, and the runtime that each names.
RUNTIMES: Mapping[str, str] = {
    "onnxruntime": "onnxruntime",
    "torch": "torch",
    "llama": "llama.cpp",
    "weights": "weights",
}

#: The runtime that opens each kind of file; a bare state dict is only weights without --model.
_BY_KIND: Mapping[str, str] = {
    "onnx": "onnxruntime",
    "gguf": "llama.cpp",
    "safetensors": "weights",
    "torch-state-dict": "weights",
    "torch-checkpoint": "weights",
    "torch-module": "torch",
    "torchscript": "torch",
    "torch-exported": "torch",
    "hf-folder": "torch",
}

#: Runtimes that can open a kind, where there is more than one.
_ALSO: Mapping[str, frozenset[str]] = {
    "gguf": frozenset({"weights"}),
    "torch-state-dict": frozenset({"torch"}),
    "torch-checkpoint": frozenset({"torch"}),
    "torch-module": frozenset({"weights"}),
    "safetensors": frozenset({"torch"}),
}

_SEQUENCE = re.compile(r"seq|token|length|len|time|steps|^(t|s|l)$", re.IGNORECASE)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short unique names: stems, file names where stems are shared, else the shortest end of the
    path that tells them apart."""
    for length in range(max(len(path.parts) for path in paths) + 1):
        names = [
            path.stem if length == 0 else "/".join(path.parts[-length:]) or str(path)
            for path in paths
        ]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def runtime_of(source: Source, asked: BenchRequest) -> str:
    """The runtime that opens ``source``. Raises UsageError where the one asked for cannot."""
    usual = _BY_KIND[source.kind]
    if usual == "weights" and asked.model is not None:
        usual = "torch"
    if asked.runtime is None:
        return usual
    wanted = RUNTIMES[asked.runtime]
    if wanted != usual and wanted not in _ALSO.get(source.kind, frozenset()):
        raise UsageError(
            f"--runtime {asked.runtime}: {source.path} is {source.kind}, which {usual} opens; "
            "leave --runtime out"
        )
    return wanted


def trials_of(
    name: str, source: Source, asked: BenchRequest, device: str, described: Source | None = None
) -> list[Trial]:
    """Every set of conditions that ``source`` is measured under.

    ``described`` is another artifact, whose inputs it gets where it does not say what it takes.
    """
    runtime = runtime_of(source, asked)
    case = Case(
        # Not resolved: beside a link's target its external data need not lie (as in caches).
        path=source.path.absolute(),
        files=tuple(file.absolute() for file in source.files),
        runtime=runtime,
        device=device,
        options={"kind": source.kind, "model": asked.model, "trust_pickle": asked.trust_pickle},
    )
    if runtime == "weights":
        return [
            _trial(name, replace(case, workload=workload), None, None)
            for workload in ("open", "read")
        ]
    if runtime == "llama.cpp":
        return [
            _trial(name, replace(case, threads=threads, workload=workload, tokens=tokens), 1, None)
            for threads in asked.threads
            for workload, tokens in (("pp", asked.prompt), ("tg", asked.generate))
            if tokens
        ]
    feeds = _feeds(source, asked, described)
    return [
        _trial(name, replace(case, threads=threads), batch, asked.seq, feed)
        for threads in asked.threads
        for batch, feed in feeds
    ]


def _trial(
    name: str, case: Case, batch: int | None, seq: int | None, feed: SampleFeed | None = None
) -> Trial:
    workload = f"{case.workload}{case.tokens}" if case.tokens else case.workload
    conditions: dict[str, Any] = {
        "runtime": case.runtime,
        "device": case.device,
        "threads": case.threads,
        "batch": batch,
        "seq": seq,
        "workload": workload,
    }
    if case.tokens:
        # A sample is one whole prompt, or one generated token.
        conditions["tokens"] = case.tokens if case.workload == "pp" else 1
    shared = {key: value for key, value in conditions.items() if key != "runtime"}
    return Trial(name, case, conditions, feed or {}, group=repr(sorted(shared.items())))


# ---------------------------------------------------------------------------------------------
# inputs


def _feeds(
    source: Source, asked: BenchRequest, described: Source | None
) -> list[tuple[int | None, SampleFeed]]:
    """(batch, feed) of every batch size; samples of --data, or made up from the signature."""
    if described is not None and not source.inputs and not asked.inputs and asked.data is None:
        source = described
    specs = specs_of(source, asked)
    samples = load(asked.data).fit(specs) if asked.data is not None else None
    return [
        (batch, _feed(source, specs, batch, asked.seq, samples))
        for batch in asked.batch or (_own_batch(specs),)
    ]


def specs_of(source: Source, asked: BenchRequest) -> tuple[InputSpec, ...]:
    given = parse_inputs(tuple(asked.inputs))
    if source.inputs:
        by_name = {spec.name: spec for spec in given}
        for spec in given:
            _check_given(source, spec)
        return tuple(by_name.get(spec.name, spec) for spec in source.inputs)
    if given:
        return given
    if asked.data is not None:
        first = next(iter(load(asked.data)), {})
        return tuple(
            InputSpec(name, value.dtype.name, ("batch", *value.shape[1:]))
            for name, value in first.items()
        )
    raise InputsError(
        f"{source.path}: does not say what it takes; give --input name:float32[1,3,224,224] or "
        "--data"
    )


def _check_given(source: Source, given: InputSpec) -> None:
    """An --input is one of the model's own, and no other size where the model's is fixed."""
    own = next((spec for spec in source.inputs if spec.name == given.name), None)
    if own is None:
        takes = "; ".join(map(str, source.inputs))
        raise InputsError(f"--input {given}: {source.path} has no such input; it takes {takes}")
    if len(given.shape) != len(own.shape) or any(
        isinstance(a, int) and isinstance(b, int) and a != b
        for a, b in zip(given.shape, own.shape, strict=True)
    ):
        raise InputsError(f"--input {given}: {source.path} takes {own}")


def _own_batch(specs: Sequence[InputSpec]) -> int | None:
    """1 where the batch is free, else what the model insists on."""
    if batch_symbols(specs):
        return 1
    axes = batch_axes(specs)
    for spec in specs:
        axis = axes[spec.name]
        if axis is not None and isinstance(size := spec.shape[axis], int):
            return size
    return None


def _feed(
    source: Source,
    specs: Sequence[InputSpec],
    batch: int | None,
    seq: int | None,
    samples: Samples | None,
) -> SampleFeed:
    asked = {} if seq is None else _sequence_sizes(source, specs, seq)
    if samples is not None:
        return _gathered(source, samples, specs, batch)
    if batch is not None:
        _require_batch(source, specs, batch)
        asked |= dict.fromkeys(batch_symbols(specs), batch)
    hints = hints_of(source)
    sizes, values = fitting_sizes(source, specs, hints, asked)
    for spec in specs:
        _check_room(spec, sizes)
    return next(iter(synthetic(specs, pinned(hints, values), count=1, seed=0, sizes=sizes)))


def _require_batch(source: Source, specs: Sequence[InputSpec], batch: int) -> None:
    """UsageError where the model insists on batches of another size."""
    own = _own_batch(specs)
    if batch_symbols(specs) or own is None or own == batch:
        return
    axes = batch_axes(specs)
    spec = next(s for s in specs if axes[s.name] is not None)
    raise UsageError(
        f"--batch {batch}: {source.path} takes batches of {own} only ({spec}); use --batch "
        f"{own}, or export it with a free batch axis"
    )


def fitting_sizes(
    source: Source,
    specs: Sequence[InputSpec],
    hints: Mapping[str, Any],
    asked: Mapping[str, int],
) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes of free dimensions and values of lone integers that an ONNX model really runs on.

    A worker tries them, so that a crash of the runtime ends no more than that. Typical ones where
    nothing is left to try, for other kinds of file, and where none is accepted: what measures the
    model says why.
    """
    first = next(candidates(specs, hints, asked))
    free = {d for s in specs for d in s.shape if isinstance(d, str)} - set(asked)
    undecided = bool(free - set(batch_symbols(specs))) or bool(first[1])
    if source.kind != "onnx" or not undecided:
        return first
    found = try_sizes(source.path, specs, hints, asked)
    return first if found is None else found


def _check_room(spec: InputSpec, sizes: Mapping[str, int]) -> None:
    """Inputs are drawn here and read by a worker: what leaves no room for it is refused."""
    dtype = plain_dtype(spec.dtype)
    available = kilobytes(Path("/proc/meminfo")).get("MemAvailable")
    if dtype is None or available is None:
        return
    shape = concrete_shape(spec, sizes)
    needed = dtype.itemsize * math.prod(shape)
    if 2 * needed > available:
        raise InputsError(
            f"input {spec.name}: {dtype.name}{list(shape)} takes {format_bytes(needed)}, more than "
            f"half of the memory there is ({format_bytes(available)}); use a smaller --batch, "
            "--seq or --input"
        )


def hints_of(source: Source) -> Mapping[str, Any]:
    if source.kind != "onnx":
        return {}
    from edgeopt.graphs.hints import input_hints

    return input_hints(source.path)


def _sequence_sizes(source: Source, specs: Sequence[InputSpec], seq: int) -> dict[str, int]:
    free = {dim for spec in specs for dim in spec.shape[1:] if isinstance(dim, str)}
    named = {dim for dim in free if _SEQUENCE.search(dim)} or free
    if not named:
        raise UsageError(
            f"--seq {seq}: {source.path} has no free sequence axis "
            f"({'; '.join(map(str, specs))}); leave it out"
        )
    return dict.fromkeys(named, seq)


def _gathered(
    source: Source, samples: Samples, specs: Sequence[InputSpec], batch: int | None
) -> SampleFeed:
    """The first samples, joined along the leading axis until the batch is full."""
    feeds: list[SampleFeed] = []
    rows, axes = 0, batch_axes(specs)
    for feed in samples:
        feeds.append(feed)
        rows += _rows(feed, axes)
        if batch is None or rows >= batch:
            break
    if not feeds:
        raise InputsError(f"{samples.label}: no samples")
    if batch is None or rows == batch:
        pass
    elif rows > batch:
        raise UsageError(
            f"--batch {batch}: the samples of {samples.label} come in batches of {rows}; "
            f"use --batch {rows}"
        )
    elif rows == 0:
        raise InputsError(f"{samples.label}: samples without rows")
    else:  # over again from the first
        for feed in itertools.cycle(tuple(feeds)):
            feeds.append(feed)
            rows += _rows(feed, axes)
            if rows >= batch:
                break
    if len(feeds) == 1:
        return {spec.name: feeds[0][spec.name] for spec in specs}
    _require_batch(source, specs, batch or rows)
    for spec in specs:
        axis = axes[spec.name]
        alone = {
            tuple(size for i, size in enumerate(feed[spec.name].shape) if i != axis)
            for feed in feeds
        }
        if len(alone) > 1:
            raise InputsError(
                f"--batch {batch}: samples of {samples.label} differ in shape for {spec.name}; "
                "use --batch 1"
            )
    joined = join_rows(feeds, specs, f"--batch {batch}, {samples.label}")
    # No more than the batch: what is measured is told apart by it, and throughput counts it.
    return {
        spec.name: joined[spec.name]
        if (axis := axes[spec.name]) is None
        else np.take(joined[spec.name], range(batch or rows), axis=axis)
        for spec in specs
    }


def _rows(feed: SampleFeed, axes: Mapping[str, int | None]) -> int:
    """Samples in a feed, by the first input that has an axis for them."""
    return next(
        (value.shape[axis] for name, value in feed.items() if (axis := axes[name]) is not None), 1
    )
