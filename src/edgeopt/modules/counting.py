"""How much there is in a model, and how much it computes: by layer and in total.

FLOPs are counted as ``torch.utils.flop_counter`` does: two for each multiply and add of the matrix
products, convolutions and attention that a forward pass makes, nothing for what is done element by
element. They are of a batch of one, at the lengths of the model's example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from edgeopt.core import Array
from edgeopt.errors import SourceError
from edgeopt.modules.export_choices import quiet
from edgeopt.modules.model import TorchModel
from edgeopt.modules.reasons import attempt, one_line

__all__ = ["Counts", "LayerCount", "count", "one_sample"]


@dataclass(frozen=True)
class LayerCount:
    """One layer: a module with parameters, buffers or arithmetic of its own.

    ``kind`` is its class. ``parameters`` are elements, ``nonzero`` those of them that are not zero;
    ``nbytes`` is of parameters and of buffers in the state dict. What several layers share counts
    for the first of them. ``flops`` are those of the layer itself, not of layers inside it.
    """

    name: str
    kind: str
    parameters: int
    nonzero: int
    nbytes: int
    flops: int


@dataclass(frozen=True)
class Counts:
    """The layers in the module's own order; the totals are their sums.

    ``batch`` is the number of samples that ``flops`` are of: 1, or the example's where its batch is
    fixed.
    """

    layers: tuple[LayerCount, ...]
    batch: int = 1

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def nonzero(self) -> int:
        return sum(layer.nonzero for layer in self.layers)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def flops(self) -> int:
        return sum(layer.flops for layer in self.layers)


def count(model: TorchModel) -> Counts:
    """Count the model as it is now; it is run once, in evaluation mode, and left as it was.

    Raises SourceError where it does not run on its example.
    """
    feed, batch = one_sample(model)
    flops, error = attempt(lambda: _flops(model, feed))
    if flops is None:
        assert error is not None
        raise SourceError(
            f"{type(model.module).__name__} does not run on its example: {one_line(error)}"
        )
    layers: list[LayerCount] = []
    seen: set[Any] = set()
    for name, module in model.module.named_modules():
        held = _held(module, seen)
        made = LayerCount(name, _kind(module), *held, flops.pop(name, 0))
        if any((made.parameters, made.nbytes, made.flops)):
            layers.append(made)
    # A program's arithmetic without weights has no module.
    layers += [LayerCount(name, "operator", 0, 0, 0, n) for name, n in flops.items() if n]
    return Counts(tuple(layers), batch)


def one_sample(model: TorchModel) -> tuple[dict[str, Array], int]:
    """The example with one sample in it, and how many are in it: more where the batch is fixed.

    The batch is a free dimension of that name, else the first dimension where that is free.
    """
    free = {d for spec in model.inputs for d in spec.shape if isinstance(d, str)}
    leading = [str(spec.shape[0]) for spec in model.inputs if spec.shape]
    batch = next((d for d in ("batch", "batch_size", "N", *leading) if d in free), None)
    feed: dict[str, Array] = {}
    size = 1
    for spec in model.inputs:
        array = np.asarray(model.example[spec.name])
        for axis, dim in enumerate(spec.shape):
            if dim == batch:
                array = array.take([0], axis=axis)
        feed[spec.name] = array
        if batch is None and array.ndim:
            size = max(size, array.shape[0])
    return feed, size


def _kind(module: nn.Module) -> str:
    return "program" if isinstance(module, fx.GraphModule) else type(module).__name__


def _held(module: nn.Module, seen: set[Any]) -> tuple[int, int, int]:
    """(parameters, of them not zero, bytes) of a module's own tensors, those seen before left
    out."""
    parameters = nonzero = nbytes = 0
    buffers = module._non_persistent_buffers_set
    own: list[tuple[Tensor, bool]] = [
        *((p, True) for p in module._parameters.values() if p is not None),
        *((b, False) for n, b in module._buffers.items() if b is not None and n not in buffers),
    ]
    for tensor, trained in own:
        key = (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else id(tensor)
        if key in seen:
            continue
        seen.add(key)
        nbytes += tensor.numel() * tensor.element_size()
        if trained:
            parameters += tensor.numel()
            nonzero += int(torch.count_nonzero(tensor.detach()))
    return parameters, nonzero, nbytes


# ------------------------------------------------------------------------------------------- FLOPs


def _flops(model: TorchModel, feed: Mapping[str, Array]) -> dict[str, int]:
    """FLOPs by module's name, each module's own; by operator's name for what is in no module."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    tensors = model.tensors(feed)
    meter = FlopCounterMode(display=False)
    with model.mode(False) as module, torch.no_grad(), quiet(), sdpa_kernel(SDPBackend.MATH):
        if isinstance(module, fx.GraphModule):
            args, kwargs = model.arguments(tensors)
            return _FlopCounter(module, meter).measured(*args, *kwargs.values())
        with _own(module, meter) as found, meter:
            model.outputs(tensors)
    return found


@contextmanager
def _own(module: nn.Module, meter: Any) -> Iterator[dict[str, int]]:
    """What the meter counts while each module runs, less what runs inside others within it."""
    names = {part: name for name, part in module.named_modules()}
    found: dict[str, int] = {}
    running: list[list[int]] = []

    def begin(part: nn.Module, args: Any) -> None:
        running.append([meter.get_total_flops(), 0])

    def end(part: nn.Module, args: Any, output: Any) -> None:
        before, inside = running.pop()
        whole = meter.get_total_flops() - before
        found[names[part]] = found.get(names[part], 0) + whole - inside
        if running:
            running[-1][1] += whole

    hooks = [h for part in names for h in _hooks(part, begin, end)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(part: nn.Module, begin: Any, end: Any) -> list[Any]:
    return [part.register_forward_pre_hook(begin), part.register_forward_hook(end)]


class _FlopCounter(fx.Interpreter):
    """Runs a program operator by operator: each counts for the layer whose weights it takes."""

    def __init__(self, module: fx.GraphModule, meter: Any) -> None:
        super().__init__(module)
        self.meter = meter
        self.found: dict[str, int] = {}

    def measured(self, *args: Any) -> dict[str, int]:
        with self.meter:
            self.run(*args, enable_io_processing=True)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        before = self.meter.get_total_flops()
        made = super().run_node(n)
        flops = self.meter.get_total_flops() - before
        if flops:
            name = next((_owner(arg) for arg in n.all_input_nodes if arg.op == "get_attr"), n.name)
            self.found[name] = self.found.get(name, 0) + flops
        return made


def _owner(node: fx.Node) -> str:
    return str(node.target).rpartition(".")[0]
