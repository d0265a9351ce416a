"""ONNX sources: taken as they are, their opset raised where 4-bit types would need it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgeopt.core import Array, InputSpec
from edgeopt.errors import CaptureError, InputsError
from edgeopt.graphs.capture.axes import Axis, Inputs, axis_for, feed
from edgeopt.graphs.capture.check import file_io, run_onnx
from edgeopt.graphs.capture.declared import plain_file
from edgeopt.graphs.capture.opset import opset_of, raise_opset
from edgeopt.runtimes.reasons import attempt, one_line

__all__ = ["GIVEN", "take"]

GIVEN = "onnx as given"


def take(
    path: Path,
    workdir: Path,
    opset: int,
    inputs: Sequence[InputSpec],
    example: Mapping[str, Array] | None,
    tell: Callable[[str], None],
) -> tuple[Path, int, dict[str, Array], tuple[str, ...]]:
    """(file, opset, a feed that it ran on, notes). The source itself is never written to.

    ``inputs`` give sizes for dimensions that the file leaves free.
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
    _require_fit(specs, {name: array.shape for name, array in (example or {}).items()}, "--data")
    _require_fit(specs, {spec.name: spec.shape for spec in inputs}, "--input", known=True)
    sample = _sample(path, _sized(specs, inputs), example)
    reached = opset_of(path)
    if reached >= opset:
        return path, reached, sample, ()
    tell(f"converting to opset {opset}")
    target = workdir / "model.onnx"
    reached, notes = raise_opset(path, opset, [sample], target)
    return (target if target.exists() else path), reached, sample, notes


def _require_tensors(path: Path, values: Sequence[InputSpec]) -> None:
    """CaptureError for what is no tensor: a sequence, a map, an optional value."""
    for value in values:
        if "(" in value.dtype and not value.dtype.startswith("tensor("):
            raise CaptureError(
                f"{path}: {value.name} is {value.dtype}, not a tensor, and edgeopt compares tensors"
                " only; give a model without it (for a classifier of sklearn: zipmap=False)"
            )


def _require_fit(
    specs: Sequence[InputSpec],
    shapes: Mapping[str, Sequence[int | str]],
    origin: str,
    *,
    known: bool = False,
) -> None:
    """InputsError for a shape that an input does not take; for a stranger's name, if ``known``."""
    by_name = {spec.name: spec for spec in specs}
    for name, shape in shapes.items():
        spec = by_name.get(name)
        if spec is None:
            if known:
                takes = ", ".join(map(str, specs))
                raise InputsError(f"{origin} {name}: the model has no such input; it takes {takes}")
            continue
        fits = len(shape) == len(spec.shape) and all(
            isinstance(asked, str) or isinstance(dim, str) or dim <= 0 or asked == dim
            for asked, dim in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            shown = ", ".join(map(str, shape))
            raise InputsError(
                f"{origin}: input {name} has the shape [{shown}], the model takes {spec}"
            )


def _sized(specs: Sequence[InputSpec], inputs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The file's inputs, with the sizes that were asked for in place of free dimensions."""
    asked = {spec.name: spec.shape for spec in inputs}
    sized = []
    for spec in specs:
        shape = asked.get(spec.name, spec.shape)
        dims = tuple(
            size if isinstance(size, int) and (isinstance(dim, str) or dim <= 0) else dim
            for dim, size in zip(spec.shape, shape, strict=True)
        )
        sized.append(InputSpec(spec.name, spec.dtype, dims))
    return tuple(sized)


def _sample(
    path: Path, specs: tuple[InputSpec, ...], example: Mapping[str, Array] | None
) -> dict[str, Array]:
    """A feed that the file runs on: the example, else synthetic at the usual sizes."""
    complaint = ""
    for candidate in range(6):
        axes: dict[str, Axis] = {}
        named: list[InputSpec] = []
        for spec in specs:
            shape: list[int | str] = []
            for position, dim in enumerate(spec.shape):
                if isinstance(dim, str) or dim <= 0:
                    name = dim if isinstance(dim, str) and dim != "?" else f"axis{position}"
                    name = "batch" if position == 0 and dim == "?" else name
                    axes[name] = axis_for(name, candidate) or Axis(name, 2, 3)
                    shape.append(name)
                else:
                    shape.append(dim)
            named.append(InputSpec(spec.name, spec.dtype, tuple(shape)))
        given = {k: v for k, v in (example or {}).items() if k in {s.name for s in specs}}
        sample = {**feed(Inputs(tuple(named), axes, {}, {})), **given}
        _, error = attempt(functools.partial(run_onnx, path, [sample]))
        if error is None:
            return sample
        complaint = complaint or one_line(error)
    origin = "the samples given" if example else "synthetic inputs"
    raise CaptureError(
        f"{path}: onnxruntime does not run it on {origin}: {complaint.rstrip('.')}; give"
        " samples that it runs on with --data"
    )
