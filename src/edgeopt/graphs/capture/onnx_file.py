"""ONNX sources: taken as they are, their opset raised where 4-bit types would need it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from edgeopt.core import Array, InputSpec
from edgeopt.data.fitting import fit_feeds, fixed_batch, order_names
from edgeopt.data.settle import larger, settle
from edgeopt.errors import CaptureError, InputsError
from edgeopt.graphs.capture.check import file_io, open_session
from edgeopt.graphs.capture.declared import plain_file
from edgeopt.graphs.capture.opset import opset_of, raise_opset
from edgeopt.graphs.capture.repeat import repeated
from edgeopt.graphs.hints import input_hints
from edgeopt.modules.reasons import attempt, one_line

__all__ = ["GIVEN", "TracedFile", "take"]

GIVEN = "onnx as given"


@dataclass(frozen=True)
class TracedFile:
    """A file with its opset, a feed that it ran on, notes, and whether larger batches run too."""

    path: Path
    opset: int
    sample: dict[str, Array]
    notes: tuple[str, ...]
    batches: bool


def take(
    path: Path,
    workdir: Path,
    opset: int,
    inputs: Sequence[InputSpec],
    example: Mapping[str, Array] | None,
    tell: Callable[[str], None],
) -> TracedFile:
    """The file, and a feed that it ran on. The source itself is never written to.

    ``inputs`` give sizes for dimensions that the file leaves free. Raises CaptureError where the
    file runs on no inputs, or answers at random.
    """
    tell("opening in onnxruntime")
    io, error = attempt(lambda: file_io(path))
    if io is None:
        reason = one_line(error) if error is not None else "it has no inputs"
        raise CaptureError(
            f"{path}: onnxruntime cannot load it: {reason.rstrip('.')}; give a model that"
            " plain ONNX Runtime runs"
        )
    specs, outputs = io
    _require_tensors(path, (*specs, *outputs))
    path = plain_file(path, workdir)
    fixed = {spec.name: spec.shape for spec in inputs}
    _require_fit(specs, fixed)
    sized = _sized(specs, inputs)
    sample, more = _sample(path, sized, _fitted(example, sized))
    noise = repeated(path, sample)
    reached = opset_of(path)
    if reached >= opset:
        return TracedFile(path, reached, sample, noise, bool(more))
    tell(f"converting to opset {opset}")
    target = workdir / "model.onnx"
    reached, notes = raise_opset(path, opset, [sample, *more], target)
    kept = target if target.exists() else path
    return TracedFile(kept, reached, sample, (*noise, *notes), bool(more))


def _fitted(example: Mapping[str, Array] | None, specs: Sequence[InputSpec]) -> dict[str, Array]:
    """A first sample as a feed for the model, laid out as :mod:`edgeopt.data.fitting` does."""
    if not example:
        return {}
    by_name = {name: array for name, array in example.items() if not name.startswith("#")}
    if {spec.name for spec in specs} <= set(by_name):
        example = by_name  # a folder of files, each of which is an input
    elif len(by_name) < len(example):
        example = {name: array for name, array in example.items() if name.startswith("#")}
    names = order_names(tuple(example), specs, "--data")
    if fixed_batch(example, specs, names) > 1:
        return {}  # one sample makes no batch: the sizes are the model's own
    return next(fit_feeds(iter([dict(example)]), specs, names, 1, "--data"))


def _require_tensors(path: Path, values: Sequence[InputSpec]) -> None:
    """InputsError for an input or output that is no tensor: a sequence, a map, an optional."""
    for value in values:
        if "(" in value.dtype:
            raise InputsError(
                f"{path}: {value.name} is {value.dtype}, which no array holds; give the part of the"
                " model without it (a classifier of sklearn: convert it with zipmap=False)"
            )


def _require_fit(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int | str]]) -> None:
    """InputsError for an --input of another shape than the model's, or of no such name."""
    by_name = {spec.name: spec for spec in specs}
    for name, shape in shapes.items():
        spec = by_name.get(name)
        if spec is None:
            takes = ", ".join(map(str, specs))
            raise InputsError(f"--input {name}: the model has no such input; it takes {takes}")
        fits = len(shape) == len(spec.shape) and all(
            isinstance(asked, str) or isinstance(dim, str) or asked == dim
            for asked, dim in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            shown = ", ".join(map(str, shape))
            raise InputsError(
                f"--input: input {name} has the shape [{shown}], the model takes {spec}"
            )


def _sized(specs: Sequence[InputSpec], inputs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The file's inputs, with the sizes that were asked for in place of free dimensions."""
    asked = {spec.name: spec.shape for spec in inputs}
    sized = []
    for spec in specs:
        shape = asked.get(spec.name, spec.shape)
        dims = tuple(
            size if isinstance(size, int) and isinstance(dim, str) else dim
            for dim, size in zip(spec.shape, shape, strict=True)
        )
        sized.append(InputSpec(spec.name, spec.dtype, dims))
    return tuple(sized)


def _sample(
    path: Path, specs: tuple[InputSpec, ...], given: Mapping[str, Array]
) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """A feed that the file runs on (the one given, else one made up), and one in a larger batch
    where it runs on that too."""
    session = open_session(path)
    run = functools.partial(_complaint, session)
    if given:
        complaint = run(given)
        if complaint is None:
            return dict(given), []
        raise CaptureError(
            f"{path}: onnxruntime does not run it on the samples given: {complaint}; give"
            " samples that it runs on with --data"
        )
    found = settle(specs, input_hints(path), run)
    if found.feed is None:
        raise CaptureError(
            f"{path}: onnxruntime does not run it on synthetic inputs: {found.complaint}; give"
            " samples that it runs on with --data"
        )
    together = larger(specs, found)
    return found.feed, [together] if together is not None and run(together) is None else []


def _complaint(session: onnxruntime.InferenceSession, feed: Mapping[str, Array]) -> str | None:
    taken = {i.name for i in session.get_inputs()}
    _, error = attempt(lambda: session.run(None, {k: v for k, v in feed.items() if k in taken}))
    return None if error is None else one_line(error).rstrip(".")
