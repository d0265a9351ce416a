"""What a layer's inputs are like over samples: sums of squares, or Gram matrices. Streamed.

The layers of one block are watched together, the blocks one after the other: those that came
before have been pruned by then, and a layer is fitted to the inputs that it will really get, as
SparseGPT and Wanda do it. Every block runs the model anew, up to its last layer: only the running
sums are held, and the model may branch as it likes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.core import Array
from edgeopt.errors import InputsError
from edgeopt.modules.model import TorchModel
from edgeopt.modules.reasons import attempt, one_line
from edgeopt.pruning.collate import collate
from edgeopt.pruning.sparsity.matrices import WeightMatrix

__all__ = ["GRAM_BYTES", "Calls", "Seen", "gather", "gram_bytes", "stages", "watch"]

#: Gram matrices held at a time, in bytes, where more than one layer needs one.
GRAM_BYTES = 1 << 30

#: Rows that are run together, where the model takes them.
_ROWS = 32

#: The outermost member of a list: ``encoder.layer.3`` of ``encoder.layer.3.output.dense``.
_BLOCK = re.compile(r"^(.*?\.)??\d+(?=\.|$)")


class _EnoughError(Exception):
    """The last layer that is watched has been reached: the rest of the model need not run."""


@dataclass(frozen=True)
class Calls:
    """How a model calls its layers on one sample: places of the first call, and how many."""

    first: Mapping[str, int]
    count: Mapping[str, int]


@dataclass
class Seen:
    """Inputs of a layer: their number, and the sums over them, float64, by group.

    ``sums`` is ``[groups, columns]`` (of squares) or ``[groups, columns, columns]`` (of products).
    """

    positions: int = 0
    sums: Tensor | None = None


def gram_bytes(layer: WeightMatrix) -> int:
    """Bytes of a layer's Gram matrices."""
    return 8 * layer.groups * layer.shape[1] ** 2


def watch(model: TorchModel, layers: Sequence[WeightMatrix], feed: Mapping[str, Array]) -> Calls:
    """Run one sample, and see which layers are called, in which order."""
    order: list[str] = []

    def hook(layer: WeightMatrix) -> Any:
        return lambda *_: order.append(layer.name)

    with ExitStack() as stack:
        for layer in layers:
            for module in layer.modules:
                stack.callback(module.register_forward_pre_hook(hook(layer)).remove)
        _run(model, next(_checked(model, [feed])))
    first = {name: order.index(name) for name in dict.fromkeys(order)}
    return Calls(first, {name: order.count(name) for name in first})


def stages(layers: Sequence[WeightMatrix], calls: Calls, *, gram: bool) -> list[list[WeightMatrix]]:
    """The layers block by block, in the order that they are first called; those that the first
    sample did not reach come last. With ``gram``, a block whose matrices take more than
    :data:`GRAM_BYTES` is divided."""
    late = len(layers) + sum(calls.count.values())
    ordered = sorted(layers, key=lambda layer: calls.first.get(layer.name, late))
    blocks: dict[str, list[WeightMatrix]] = {}
    for layer in ordered:
        found = _BLOCK.match(layer.name)
        key = found.group() if found and layer.name in calls.first else ""
        blocks.setdefault(key or layer.name, []).append(layer)
    result: list[list[WeightMatrix]] = []
    for block in blocks.values():
        held = GRAM_BYTES + 1  # every block begins a stage
        for layer in block:
            need = gram_bytes(layer) if gram else 0
            if layer is block[0] or held + need > GRAM_BYTES:
                result.append([])
                held = 0
            result[-1].append(layer)
            held += need
    return result


def gather(
    model: TorchModel,
    layers: Sequence[WeightMatrix],
    feeds: Iterable[Mapping[str, Array]],
    calls: Calls,
    *,
    gram: bool,
) -> dict[str, Seen]:
    """Run the feeds, in evaluation mode, and sum up what ``layers`` are given.

    Positions that an ``attention_mask`` leaves out do not count. Raises InputsError for feeds that
    do not fit, are not finite, or lead to inputs that are not, and where there are none.
    """
    found = {layer.name: Seen() for layer in layers}
    wanted = sum(calls.count.get(layer.name, 0) for layer in layers)
    if any(layer.name not in calls.count for layer in layers):
        wanted = 0  # nobody knows when it comes: run to the end
    called = 0
    mask: Tensor | None = None

    def hook(layer: WeightMatrix) -> Any:
        def add(module: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal called
            given = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
            seen = found[layer.name]
            for rows in layer.rows(module, next(given), mask):
                _add(seen, rows, gram)
            called += 1
            if called == wanted:
                raise _EnoughError

        return add

    ran = False
    with ExitStack() as stack:
        for layer in layers:
            for module in layer.modules:
                handle = module.register_forward_pre_hook(hook(layer), with_kwargs=True)
                stack.callback(handle.remove)
        for batch in collate(model, _checked(model, feeds), _ROWS):
            mask = _mask(model, batch)
            called = 0
            _run(model, batch)
            ran = True
    if not ran:
        raise InputsError("no samples to see activations on; give some with --data")
    for name, seen in found.items():
        if seen.sums is not None and not bool(torch.isfinite(seen.sums).all()):
            raise InputsError(
                f"{name} is given values that are not finite on this data; see to the data, or "
                "leave the layer out with --ignore"
            )
    return found


def _add(seen: Seen, rows: Tensor, gram: bool) -> None:
    rows = rows if rows.dtype == torch.float64 else rows.float()
    one = rows.transpose(1, 2) @ rows if gram else rows.square().sum(1)
    seen.sums = one.double() if seen.sums is None else seen.sums.add_(one)
    seen.positions += rows.shape[1]


def _mask(model: TorchModel, feed: Mapping[str, Array]) -> Tensor | None:
    given = feed.get("attention_mask")
    if given is None or np.ndim(given) != 2:
        return None
    device = next((p.device for p in model.module.parameters()), torch.device("cpu"))
    return torch.from_numpy(np.asarray(given) != 0).to(device)


def _run(model: TorchModel, feed: Mapping[str, Array]) -> None:
    """One batch through the model, or as far as it is wanted."""

    def run() -> None:
        args, kwargs = model.arguments(model.tensors(feed))
        try:
            model.module(*args, **kwargs)
        except _EnoughError:
            return

    with torch.no_grad(), model.mode(training=False), _plain_attention():
        _, error = attempt(run)
    if error is not None:
        raise InputsError(f"the model does not run on the samples: {one_line(error)}")


def _checked(
    model: TorchModel, feeds: Iterable[Mapping[str, Array]]
) -> Iterator[Mapping[str, Array]]:
    for number, feed in enumerate(feeds, 1):
        for spec in model.inputs:
            if spec.name not in feed:
                raise InputsError(
                    f"sample {number} lacks input {spec.name}: it gives {', '.join(feed)}"
                )
            array = np.asarray(feed[spec.name])
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputsError(
                    f"sample {number}, input {spec.name}: holds NaN or infinity; no activations "
                    "can be weighed by it"
                )
        yield feed


@contextmanager
def _plain_attention() -> Iterator[None]:
    """torch's fused encoder layers compute without calling the layers that they are made of."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
