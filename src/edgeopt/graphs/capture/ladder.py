"""The ladder of exporters: the first rung whose file agrees with torch, at two sizes, holds.

1. ``dynamo, eager attention``, for models that have the choice: ``torch.export`` and its ONNX
   exporter with attention in its plain form. T5 and Swin export in no other way, and the graph is
   a quarter smaller: 225 nodes against 297 for a six-layer BERT, 6% faster once it is INT8.
2. ``dynamo``: the same with attention as the model has it.
3. ``torchscript exporter``: tracing, or TorchScript as it is (which the first two cannot take).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgeopt.core import Array
from edgeopt.errors import CaptureError
from edgeopt.graphs.capture import tidy
from edgeopt.graphs.capture.axes import Inputs, alone, feed
from edgeopt.graphs.capture.check import FLOOR_DB, agreement_db, run_onnx
from edgeopt.graphs.capture.loaded import Loaded, tensors
from edgeopt.graphs.capture.opset import convert_opset, raise_opset
from edgeopt.modules.reasons import attempt, is_data_dependent, one_line

__all__ = ["CapturedRung", "climb"]

DYNAMO = "dynamo"
EAGER = "dynamo, eager attention"
TORCHSCRIPT = "torchscript exporter"

#: The newest opset that the TorchScript-based exporter writes.
_TORCHSCRIPT_OPSET = 20


@dataclass(frozen=True)
class CapturedRung:
    """The rung that held: its file, the axes it kept free, how well it agrees with torch.

    ``example`` is a feed that it was checked on, a batch of one where the model takes that.
    """

    path: Path
    rung: str
    inputs: Inputs
    opset: int
    agreement_db: float
    example: dict[str, Array]
    lost: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Rung:
    name: str
    export: Callable[[Loaded, Inputs, Path, int], tuple[str, ...]]
    eager: bool = False
    drop_optional: bool = False


def climb(
    loaded: Loaded, workdir: Path, opset: int, tell: Callable[[str], None]
) -> tuple[CapturedRung, tuple[str, ...]]:
    """Try rung after rung. Returns the one that held, and why the ones before it fell.

    A rung that holds with fewer free axes than were asked for is kept in hand while a later one
    might keep them all. Raises CaptureError with torch's reason when none holds.
    """
    notes: list[str] = []
    best: CapturedRung | None = None
    untraceable = ""
    for number, rung in enumerate(_rungs(loaded)):
        if rung.name == TORCHSCRIPT and untraceable:
            notes.append(f"{TORCHSCRIPT}: not tried, tracing would bake one branch in")
            continue
        optional = [n for n, a in loaded.inputs.axes.items() if a.optional]
        if rung.drop_optional and not optional:
            continue
        inputs = loaded.inputs.without(optional) if rung.drop_optional else loaded.inputs
        label = rung.name + (f" with {', '.join(optional)} fixed" if rung.drop_optional else "")
        tell(f"exporting ({label})")
        path = workdir / f"rung{number}" / "model.onnx"
        path.parent.mkdir()
        held, error = attempt(functools.partial(_try, loaded, rung, inputs, path, opset))
        if held is None:
            assert error is not None
            if rung.name != TORCHSCRIPT and is_data_dependent(error):
                untraceable = one_line(error)
            notes.append(f"{label}: {one_line(error)}")
            continue
        required = [n for n in held.lost if not loaded.inputs.axes[n].optional]
        if required:
            notes.append(f"{label}: {', '.join(required)} came out fixed")
        if best is None or len(held.inputs.axes) > len(best.inputs.axes):
            best = held
        if not required:
            break
    if best is None:
        # The newer exporter's reason is the one that its documentation explains.
        newer = [note for note in notes if note.startswith(DYNAMO)]
        reason = untraceable or (newer or notes)[0]
        raise CaptureError(f"torch could not export the model to ONNX: {reason}")
    lost = [n for n in loaded.inputs.axes if n not in best.inputs.axes]
    if lost:
        sizes = ", ".join(f"{n} is fixed at {loaded.inputs.axes[n].pinned}" for n in lost)
        notes.append(f"free axes that could not be had: {sizes}")
    return best, (*notes, *best.notes)


def _rungs(loaded: Loaded) -> Iterator[_Rung]:
    eager = bool(loaded.attention)
    traced = (
        _Rung(TORCHSCRIPT, _torchscript, eager),
        _Rung(TORCHSCRIPT, _torchscript, eager, drop_optional=True),
    )
    if loaded.scripted:
        yield from traced
        return
    # torch.export unrolls recurrent layers over the time steps of the example; and attention over
    # windows or patches of an image of free size takes it minutes of symbolic arithmetic, for a
    # graph no faster than the traced one (20 s against 0.7 s on a Swin of four small blocks).
    patches = eager and any(a.optional for a in loaded.inputs.axes.values())
    first = (loaded.recurrent or patches) and loaded.program is None
    if first:
        yield from traced[:1]
    plain = _Rung(EAGER, _dynamo, eager=True) if loaded.attention else _Rung(DYNAMO, _dynamo)
    yield plain
    if loaded.attention:
        yield _Rung(DYNAMO, _dynamo)
    if loaded.program is None:
        yield replace(plain, drop_optional=True)
    yield from traced[1:] if first else traced


def _try(loaded: Loaded, rung: _Rung, inputs: Inputs, path: Path, opset: int) -> CapturedRung:
    """Export, tidy and check one rung. Raises whatever the exporter raises, or CaptureError."""
    with loaded.eager_attention() if rung.eager else contextlib.nullcontext():
        symbols = rung.export(loaded, inputs, path, opset)
    free = tuple(n for n in inputs.axes if n in symbols)
    lost = tuple(n for n in loaded.inputs.axes if n not in free)
    kept = inputs.without([n for n in inputs.axes if n not in free])
    feeds = [feed(kept), feed(kept, True, seed=1), feed(alone(kept), seed=2)]
    if loaded.complaint(feeds[2]) is not None:
        del feeds[2]  # a model that cannot take one sample alone
    reference = [loaded.run(f) for f in feeds]
    reached, converted = raise_opset(path, opset, feeds)
    if reached > opset:  # torch's newer exporter knows none under 18; the older one does
        reason = convert_opset(path, opset, feeds, path)
        if reason is not None:
            raise CaptureError(f"gives opset {reached}, not to be had at {opset}: {reason}")
        reached = opset
    got = run_onnx(path, feeds)
    agreement = [agreement_db(r, g) for r, g in zip(reference, got, strict=True)]
    if not min(agreement) >= FLOOR_DB:
        figure = min(agreement)
        where = ("the example", "another size", "a batch of one")[agreement.index(figure)]
        what = "gives other shapes than" if figure == -math.inf else f"is {figure:.0f} dB from"
        raise CaptureError(f"the exported file {what} torch on {where}")
    return CapturedRung(path, rung.name, kept, reached, agreement[1], feeds[-1], lost, converted)


def _dynamo(loaded: Loaded, inputs: Inputs, path: Path, opset: int) -> tuple[str, ...]:
    """torch.export, then its ONNX exporter; gives the names of the axes that came out free."""
    program = loaded.program
    if program is None:
        auto = torch.export.Dim.AUTO
        shapes: tuple[dict[int, Any], ...] = tuple(
            {i: auto for i, d in enumerate(s.shape) if isinstance(d, str)} for s in inputs.specs
        )
        example = tensors(inputs, feed(inputs))
        with torch.fx.experimental._config.patch(backed_size_oblivious=True), torch.no_grad():
            program = torch.export.export(
                loaded.module, example, dynamic_shapes=(shapes,), strict=False
            )
    result = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=[s.name for s in inputs.specs],
        output_names=list(loaded.output_names) or None,
        verbose=False,
        optimize=True,
    )
    if result is None:
        raise CaptureError("torch's exporter gave no program")
    return tidy.save(result.model, path, inputs.specs, _parameters(loaded), loaded.output_axes)


def _torchscript(loaded: Loaded, inputs: Inputs, path: Path, opset: int) -> tuple[str, ...]:
    """The TorchScript-based exporter; gives the names of the axes that came out free."""
    raw = path.with_name("raw.onnx")
    dynamic = {
        s.name: {i: d for i, d in enumerate(s.shape) if isinstance(d, str)} for s in inputs.specs
    }
    with torch.no_grad():
        torch.onnx.export(
            loaded.module,
            tensors(inputs, feed(inputs)),
            str(raw),
            dynamo=False,
            opset_version=min(opset, _TORCHSCRIPT_OPSET),
            input_names=[s.name for s in inputs.specs],
            output_names=list(loaded.output_names) or None,
            dynamic_axes={name: axes for name, axes in dynamic.items() if axes} or None,
            do_constant_folding=True,
        )
    free = tidy.save(tidy.load(raw), path, inputs.specs, _parameters(loaded), loaded.output_axes)
    raw.unlink()
    return free


def _parameters(loaded: Loaded) -> dict[str, Array]:
    """The model's two-dimensional parameters by torch's name, as arrays that share their memory."""
    named = (
        loaded.module.named_parameters(remove_duplicate=False)
        if loaded.program is None
        else loaded.program.state_dict.items()
    )
    return {
        name.removeprefix("inner."): parameter.detach().numpy()
        for name, parameter in named
        if parameter.dim() == 2 and parameter.dtype == torch.float32
    }
