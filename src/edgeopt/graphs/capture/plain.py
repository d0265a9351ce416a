"""Inputs of a plain module: given, taken from an example, or told by its first layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from edgeopt.core import Array, InputSpec
from edgeopt.errors import InputsError
from edgeopt.graphs.capture.axes import Axis, Inputs, axis_for, feed, names_of
from edgeopt.modules.loading import argument_names

__all__ = ["derive", "vocabulary"]

Works = Callable[[Inputs, Mapping[str, Array]], "str | None"]

#: Image sides that are tried on a net whose first layer is a convolution. A size is taken only
#: when it is the one of them that the net accepts.
_SIDES = (8, 16, 28, 32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 384, 512)

_EXAMPLE_LINES: Mapping[str, str] = {
    "Conv1d": "float32[1,{0},16000]",
    "Conv2d": "float32[1,{0},224,224]",
    "Conv3d": "float32[1,{0},16,112,112]",
}


def vocabulary(module: nn.Module) -> int:
    """The smallest embedding table's rows: the limit under which every token id is valid."""
    rows = [
        int(m.weight.shape[0])
        for m in module.modules()
        if _kind(m) in ("Embedding", "EmbeddingBag") and hasattr(m, "weight")
    ]
    return min(rows, default=2)


def derive(
    module: Any,
    specs: Sequence[InputSpec],
    example: Mapping[str, Array] | None,
    works: Works,
    *,
    bare: bool = False,
) -> tuple[Inputs, tuple[str, ...]]:
    """The module's inputs and notes on how they were found.

    In order: ``specs`` as given, shapes of ``example``, the first layer. Arrays of the example are
    by name, or by position (``#0``), and where they are ``bare`` an axis for a batch is put before
    them if the module takes that. ``works`` runs the module on a feed. Raises InputsError with the
    line to add where none of them tells.
    """
    required, optional = argument_names(module)
    given = _named(example or {}, required, optional, [s.name for s in specs])
    if bare and given and not specs:
        batched = {name: array[None] for name, array in given.items()}
        with contextlib.suppress(InputsError):
            return derive(module, specs, batched, works)
    known = {*required, *optional}
    if known and set(required) <= set(given):
        # What the data holds besides is for others: labels, the second of a pair.
        given = {name: array for name, array in given.items() if name in known}
    for name in (*(s.name for s in specs), *given):
        if known and name not in known:
            raise InputsError(
                f"the model has no input {name!r}; its forward() takes {', '.join(required)}"
                + (f" and optionally {', '.join(optional)}" if optional else "")
            )
    if not specs and given:
        specs = tuple(InputSpec(n, _dtype(a), a.shape) for n, a in given.items())
    if specs:
        missing = [n for n in required if n not in {s.name for s in specs}]
        if missing:
            raise InputsError(
                f"the model also takes {', '.join(missing)}; add --input "
                f"{missing[0]}:float32[...] with its shape"
            )
        order = [*required, *optional]
        ordered = sorted(specs, key=lambda s: order.index(s.name)) if known else list(specs)
        return _free(ordered, given, vocabulary(module), works), ()
    return _guess(module, required, works)


def _named(
    example: Mapping[str, Array],
    required: Sequence[str],
    optional: Sequence[str],
    asked: Sequence[str],
) -> dict[str, Array]:
    """Arrays by the names of arguments: their own, else in the order that they come in.

    Of those by position one may be left at the end: the target that loaders give beside inputs.
    """
    named = {name: a for name, a in example.items() if not name.startswith("#")}
    placed = [a for name, a in example.items() if name.startswith("#")]
    if not placed or (named and set(required) <= set(named)):
        return named
    known = [*required, *optional]
    names = list(asked) or (known[: len(placed)] if known else _unnamed(len(placed)))
    if not asked and required and len(placed) == len(required) + 1:
        names = list(required)
    if len(placed) not in (len(names), len(names) + 1) or len(names) < len(required):
        raise InputsError(
            f"the data gives {len(placed)} arrays by position, the model's forward() takes"
            f" {', '.join(required or names)}; give one an argument, or name them"
        )
    return dict(zip(names, placed, strict=False))


def _unnamed(count: int) -> list[str]:
    """Names for the inputs of a forward that names none of its arguments."""
    return ["input"] if count == 1 else [f"input_{i}" for i in range(count)]


def _dtype(array: Array) -> str:
    # numpy makes float64 and torch models take float32: no model is fed double by intent. Weights
    # of 16 bits are captured as float32, and take nothing narrower.
    return "float32" if array.dtype in (np.float64, np.float16) else str(array.dtype)


def _free(
    specs: Sequence[InputSpec], given: Mapping[str, Array], limit: int, works: Works
) -> Inputs:
    """Sizes for the named dimensions, and the first axis freed where only numbers were given."""
    names = names_of(specs)
    axes: dict[str, Axis] = {}
    known = _sizes_in(specs, given)
    if names:
        specs = tuple(specs)
    else:
        leading = {s.shape[0] for s in specs if s.shape}
        if len(leading) == 1:
            size = int(next(iter(leading)))
            specs = tuple(
                replace(s, shape=("batch", *s.shape[1:])) if s.shape else s for s in specs
            )
            axes["batch"] = Axis("batch", max(2, size), max(2, size) + 1, True, fixed=size)
    high = {s.name: limit for s in specs if np.dtype(s.dtype).kind in "iu"}
    complaint: str | None = "no size of the free dimensions was accepted"
    for candidate in range(8):
        trial = dict(axes)
        for name in names:
            axis = _known_axis(name, known[name]) if name in known else axis_for(name, candidate)
            if axis is None:
                axis = axis_for(name)
            assert axis is not None
            # Dimensions of equal size could be taken for one another without anyone noticing.
            while any(axis.second == a.second for a in trial.values()):
                axis = replace(axis, second=axis.second + 8)
            trial[name] = axis
        inputs = Inputs(tuple(specs), trial, high, given)
        found = works(inputs, feed(inputs))
        if found is None:
            return inputs
        if candidate == 0:
            complaint = found
        if not names:
            break
    if "batch" in axes and not names:
        # Perhaps the first axis is none that may vary: the sizes as they were given decide.
        pinned = Inputs(tuple(specs), axes, high, given).without(["batch"])
        found = works(pinned, feed(pinned))
        if found is None:
            return pinned
        complaint = found
    described = ", ".join(str(s) for s in specs)
    half = next((s for s in specs if s.dtype in ("float16", "bfloat16")), None)
    if half is not None:
        complaint = (
            f"all weights are captured as float32, and take no {half.dtype};"
            f" give {half.name}:float32[...]"
        )
    raise InputsError(f"the model does not take {described}: {complaint}")


def _sizes_in(specs: Sequence[InputSpec], given: Mapping[str, Array]) -> dict[str, int]:
    found: dict[str, int] = {}
    for spec in specs:
        array = given.get(spec.name)
        if array is None:
            continue
        if array.ndim != len(spec.shape):
            raise InputsError(
                f"the data for {spec.name} has {array.ndim} dimensions {list(array.shape)}, "
                f"--input says {len(spec.shape)} ({spec})"
            )
        for dim, size in zip(spec.shape, array.shape, strict=True):
            if isinstance(dim, str):
                found.setdefault(dim, int(size))
            elif dim != size:
                raise InputsError(
                    f"the data for {spec.name} has shape {list(array.shape)}, --input says {spec}"
                )
    return found


def _known_axis(name: str, size: int) -> Axis:
    usual = axis_for(name)
    batch = usual is not None and (usual.first, usual.second) == (2, 3)
    first = max(2, size)
    return Axis(name, first, first + 1 if batch else first + max(1, first // 2), fixed=size)


# ---------------------------------------------------------------------------------------------
# the first layer


def _kind(module: Any) -> str:
    return str(getattr(module, "original_name", type(module).__name__))


def _first_layer(module: Any) -> Any:
    """The first registered layer that has weights of its own, free parameters passed over."""
    for layer in module.modules():
        weighted = any(True for _ in layer.parameters(recurse=False))
        if weighted and (_kind(layer) == "MultiheadAttention" or not any(layer.children())):
            return layer
    return None


def _guess(module: Any, required: Sequence[str], works: Works) -> tuple[Inputs, tuple[str, ...]]:
    layer = _first_layer(module)
    kind = _kind(layer) if layer is not None else "nothing"
    if len(required) != 1 or layer is None:
        raise InputsError(_ask(required, kind, layer))
    name = required[0]
    limit = vocabulary(module)
    tried: list[Inputs] = []
    for spec in _shapes_for(kind, layer, name):
        axes = {n: axis_for(n) for n in names_of([spec])}
        high = {name: limit}
        tried.append(Inputs((spec,), {n: a for n, a in axes.items() if a}, high, {}))
    for inputs in tried:
        if works(inputs, feed(inputs)) is None:
            return inputs, (f"inputs told by the first layer ({kind}): {inputs.specs[0]}",)
    if kind == "Conv2d" and not tried:
        found = _sides(layer, name, works)
        if found is not None:
            return found, (f"inputs told by trying image sizes, one fits: {found.specs[0]}",)
    raise InputsError(_ask(required, kind, layer))


def _shapes_for(kind: str, layer: Any, name: str) -> list[InputSpec]:
    """What the first layer determines, likeliest first."""
    if kind in ("Linear", "NonDynamicallyQuantizableLinear"):
        width = int(layer.weight.shape[1])
        return [
            InputSpec(name, "float32", ("batch", width)),
            InputSpec(name, "float32", ("batch", "sequence", width)),
        ]
    if kind in ("Embedding", "EmbeddingBag"):
        return [InputSpec(name, "int64", ("batch", "sequence"))]
    if kind in ("LSTM", "GRU", "RNN"):
        width = int(layer.weight_ih_l0.shape[1])
        order = (
            ("batch", "sequence")
            if getattr(layer, "batch_first", False)
            else (
                "sequence",
                "batch",
            )
        )
        return [InputSpec(name, "float32", (*order, width))]
    if kind == "MultiheadAttention" and getattr(layer, "in_proj_weight", None) is not None:
        width = int(layer.in_proj_weight.shape[1])
        order = (
            ("batch", "sequence")
            if getattr(layer, "batch_first", False)
            else (
                "sequence",
                "batch",
            )
        )
        return [InputSpec(name, "float32", (*order, width))]
    if kind in ("LayerNorm", "BatchNorm1d"):
        return [InputSpec(name, "float32", ("batch", int(layer.weight.shape[-1])))]
    return []


def _sides(layer: Any, name: str, works: Works) -> Inputs | None:
    """The one square image size that the net accepts, None when several do, or none does."""
    channels = int(layer.weight.shape[1]) * int(getattr(layer, "groups", 1))
    batch = axis_for("batch")
    assert batch is not None
    fits: list[Inputs] = []
    for side in _SIDES:
        spec = InputSpec(name, "float32", ("batch", channels, side, side))
        inputs = Inputs((spec,), {"batch": batch}, {}, {})
        if works(inputs, feed(inputs)) is None:
            fits.append(inputs)
            if len(fits) > 1:
                return None
    return fits[0] if fits else None


def _ask(required: Sequence[str], kind: str, layer: Any) -> str:
    """The line to add, with the forward's own argument names."""
    if not required:
        return (
            "the model's forward() names no arguments; give --data with a feed, or wrap the model "
            "in a module whose forward names its inputs"
        )
    shape = _EXAMPLE_LINES.get(kind)
    if shape is not None:
        channels = int(layer.weight.shape[1]) * int(getattr(layer, "groups", 1))
        first = shape.format(channels)
    else:
        first = "float32[1,...]"
    lines = " ".join(
        f"--input {n}:{first if i == 0 else 'float32[1,...]'}" for i, n in enumerate(required)
    )
    return f"nothing tells the shape of the model's inputs; give it, for example: {lines}"
