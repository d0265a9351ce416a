"""``torch.export`` of a model that was changed: its own names, its free dimensions, no code."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeopt.core import Array, InputSpec
from edgeopt.errors import SourceError
from edgeopt.modules.export_choices import plain_attention, quiet
from edgeopt.modules.model import TorchModel
from edgeopt.modules.outputs import flatten
from edgeopt.modules.reasons import attempt, one_line

__all__ = ["export"]


def export(model: TorchModel) -> tuple[Any, tuple[InputSpec, ...], tuple[str, ...]]:
    """The module as an ExportedProgram on the CPU, in evaluation mode.

    Its inputs have the names in ``model.inputs``, its parameters those in the module, its outputs
    those that :func:`edgeopt.modules.outputs.flatten` gives; arguments in ``model.fixed``
    are part of it. A dimension that torch cannot keep free is fixed at the example's size, with a
    note. Returns the program, its inputs as they came out, and the notes.

    Raises SourceError where torch cannot export the module.
    """
    inputs = tuple(
        replace(spec, name=name) for spec, name in zip(model.inputs, _names(model), strict=True)
    )
    refused = _refused(model)
    reason = "torch's export needs that size"
    for free in _attempts(inputs, frozenset(refused)):
        program, error = attempt(partial(_export, model, inputs, free))
        if program is not None:
            taken, lost = _fixed(inputs, program)
            notes = tuple(
                f"{name} is fixed at {size} in the program: {refused.get(name, reason)}"
                for name, size in sorted(lost.items())
            )
            return program, taken, notes
        assert error is not None
        reason = one_line(error, 160)
    raise SourceError(f"torch.export cannot take {type(model.module).__name__}: {reason}")


def _names(model: TorchModel) -> tuple[str, ...]:
    """The inputs' names, where they can be those of arguments."""
    return tuple(
        spec.name
        if spec.name.isidentifier() and not keyword.iskeyword(spec.name) and spec.name != "self"
        else f"input_{i}"
        for i, spec in enumerate(model.inputs)
    )


def _refused(model: TorchModel) -> dict[str, str]:
    """Free dimensions that the module itself takes at no other size, and what it says.

    An export can keep those free all the same, and fail when it is run.
    """
    found: dict[str, str] = {}
    sizes = {
        dim: np.shape(model.example[spec.name])[axis]
        for spec in model.inputs
        for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str)
    }
    for name, size in sizes.items():
        # Of a size of one nothing follows: it goes with every other.
        for step in (1, -1) if size > 2 else (1,):
            feed = {
                spec.name: _resized(np.asarray(model.example[spec.name]), spec, name, step)
                for spec in model.inputs
            }
            with model.mode(False), torch.no_grad():
                _, error = attempt(partial(model.outputs, model.tensors(feed)))
            if error is None:
                found.pop(name, None)
                break
            found.setdefault(name, f"the model takes no other size: {one_line(error, 120)}")
    return found


def _resized(array: Array, spec: InputSpec, name: str, step: int) -> Array:
    """The array one larger (or smaller) along the dimensions of that name."""
    for axis, dim in enumerate(spec.shape):
        if dim == name:
            before = array.shape[axis]
            array = np.take(array, np.arange(before + step) % before, axis=axis)
    return array


def _attempts(inputs: Sequence[InputSpec], refused: frozenset[str]) -> list[frozenset[str]]:
    """Which dimensions to ask for: all that the module lets vary, the leading ones, none."""
    named = frozenset(d for spec in inputs for d in spec.shape if isinstance(d, str)) - refused
    leading = named & {spec.shape[0] for spec in inputs if spec.shape}
    return list(dict.fromkeys([named, leading, frozenset()]))


def _export(model: TorchModel, inputs: Sequence[InputSpec], free: frozenset[str]) -> Any:
    auto = torch.export.Dim.AUTO
    shapes = tuple({i: auto for i, dim in enumerate(s.shape) if dim in free} for s in inputs)
    module = model.module
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module.cpu()
    try:
        with (
            model.mode(False),
            quiet(),
            plain_attention(module),
            _called_by_name(model, [spec.name for spec in inputs]),
            torch.fx.experimental._config.patch(backed_size_oblivious=True),
            torch.no_grad(),
        ):
            return torch.export.export(
                module, tuple(model.tensors().values()), dynamic_shapes=shapes, strict=False
            )
    finally:
        module.to(device)


@contextmanager
def _called_by_name(model: TorchModel, names: Sequence[str]) -> Iterator[None]:
    """The module with a ``forward`` of these arguments that gives tensors alone.

    The exporter calls inputs as ``forward`` does, and keeps the module's own names of parameters,
    which a module around it would change.
    """
    module: Any = model.module
    own = module.forward
    before = module.__dict__.get("forward")
    given = [spec.name for spec in model.inputs]

    def forward(*tensors: Tensor) -> Any:
        if model.positional:
            value = own(*tensors, **model.fixed)
        else:
            value = own(**dict(zip(given, tensors, strict=True)), **model.fixed)
        return _shaped(value)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    module.forward = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


def _shaped(value: Any) -> Any:
    """The outputs' tensors: one alone, or by name."""
    pairs = flatten(value)
    if not pairs:
        raise SourceError("the model's forward() returns no tensor")
    return pairs[0][1] if [name for name, _ in pairs] == ["output"] else dict(pairs)


def _fixed(
    inputs: Sequence[InputSpec], program: Any
) -> tuple[tuple[InputSpec, ...], dict[str, int]]:
    """The inputs with the sizes that came out fixed, and those by name."""
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    names = [str(name) for name in program.graph_signature.user_inputs]
    taken: list[InputSpec] = []
    lost: dict[str, int] = {}
    for spec, name in zip(inputs, names, strict=True):
        shape: list[int | str] = []
        for dim, size in zip(spec.shape, values[name].shape, strict=True):
            # A symbol that came to stand for one size is still a symbol here.
            fixed = size if isinstance(size, int) else size.node.maybe_as_int()
            if fixed is not None and isinstance(dim, str):
                lost[dim] = fixed
            shape.append(dim if fixed is None else fixed)
        taken.append(InputSpec(name, spec.dtype, tuple(shape)))
    return tuple(taken), lost
