"""Which channels depend on one another: torch-pruning's dependency graph, read as groups.

The graph (Fang et al. 2023, "DepGraph") is traced through autograd, so it sees what ran and not
what was written. What it cannot follow (a reshape that mixes channels, a tensor that is no
parameter) is blocked here where that shows, and by running the model otherwise (``surgery``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.core.packages import is_installed
from edgeopt.errors import MissingExtraError, SourceError
from edgeopt.train.model import TorchModel
from edgeopt.train.structure import (
    FAILURES,
    LAYERS,
    Group,
    Part,
    Side,
    Trace,
    trainable,
    units_of,
    width,
    with_ties,
)

__all__ = ["trace"]

#: Products of two activations: what passes through one is attention.
_PRODUCTS = ("Bmm", "Baddbmm", "ScaledDotProduct")

#: No layer that an output flows into is more times as wide.
_WIDEST = 4096


def trace(model: TorchModel) -> Trace:
    """Follow every channel through one run of the example, in evaluation mode.

    Raises MissingExtraError without torch-pruning, SourceError where the model cannot be followed.
    """
    if not is_installed("torch_pruning"):
        raise MissingExtraError("torch-pruning", "train", "structured pruning")
    module = model.module
    with warnings.catch_warnings(), model.mode(False), trainable(module), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = _graph(model)
            return _read(graph, module)
        except FAILURES as problem:
            line = str(problem).strip().split("\n")[0]
            raise SourceError(
                f"the model's channels cannot be followed ({type(problem).__name__}: {line});"
                " prune its weights instead (--method magnitude)"
            ) from problem


def _graph(model: TorchModel) -> Any:
    import torch_pruning

    def run(_: nn.Module, feed: Mapping[str, Tensor]) -> list[Tensor]:
        # Multiplied by one, so that a layer that makes an output is never mistaken for its end.
        found = [value * 1 for value in model.outputs(feed).values() if value.grad_fn is not None]
        if not found:
            raise ValueError("none of its outputs depends on a parameter")
        return found

    return torch_pruning.DependencyGraph().build_dependency(
        model.module, model.tensors(), forward_fn=run, verbose=False
    )


def _read(graph: Any, module: nn.Module) -> Trace:
    names: dict[Any, str] = {layer: name for name, layer in module.named_modules()}
    names.update({p: name for name, p in module.named_parameters()})
    groups: list[Group] = []
    used: set[str] = set()
    readers: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    nodes = [layer for layer in graph.module2node if isinstance(layer, LAYERS)]
    # In the module's own order, whatever the order that autograd met them in.
    order = {layer: index for index, layer in enumerate(module.modules())}
    for layer in sorted(nodes, key=order.__getitem__):
        name = names[layer]
        used.add(name)
        if isinstance(layer, nn.Linear) or name not in seen:
            group = _group(graph, layer, names)
            readers[name] = tuple(p.name for p in group.parts if p.side == "in")
            if name not in seen:
                seen.update(group.producers)
                groups.append(group)
    return Trace(tuple(with_ties(groups, module)), frozenset(used), readers)


def _group(graph: Any, layer: nn.Module, names: Mapping[Any, str]) -> Group:
    size = width(layer)
    parts: list[Part] = []
    reason = ""
    for node, handler, channels in _flow(graph, layer, size):
        target, kind = node.module, node.type.name
        if kind == "OUTPUT":
            reason = "its channels are the model's output"
        elif kind == "ELEMENTWISE":
            operator = str(getattr(target, "_grad_fn", ""))
            if not reason and operator.startswith(_PRODUCTS):
                reason = "attention whose heads are not known by their names"
        elif target in names:
            sides = (
                graph.is_out_channel_pruning_fn(handler),
                graph.is_in_channel_pruning_fn(handler),
            )
            side: Side = "through" if all(sides) else "out" if sides[0] else "in"
            indices, roots = torch.tensor(sorted(channels.items())).T
            part = Part(names[target], target, side, indices, roots)
            parts.append(part)
            reason = reason or _unfit(graph, part)
    units, conflict = units_of(tuple(parts), size)
    return Group(names[layer], tuple(parts), units, "channels", reason or conflict)


def _flow(graph: Any, layer: nn.Module, size: int) -> Iterator[tuple[Any, Any, dict[int, int]]]:
    """Every node that the layer's outputs reach, the pruning function that they call for there,
    and the node's channel -> the layer's.

    As torch-pruning's own search goes, but remembering channels instead of lists of them: its own
    does not end where a rotary embedding shifts channels round and round. What is out of all range
    is dropped; where two of the layer's channels meet, the first stays (and the run will tell).
    """
    from torch_pruning._helpers import _HybridIndex

    start = graph.get_pruner_of_module(layer).prune_out_channels
    root = graph.module2node[layer]
    found: dict[tuple[Any, Any], dict[int, int]] = {(root, start): {c: c for c in range(size)}}
    waiting = [(root, start, [_HybridIndex(idx=c, root_idx=c) for c in range(size)])]
    limit = max(_WIDEST, size * _WIDEST)
    while waiting:
        node, function, channels = waiting.pop()
        for dependency in node.dependencies:
            if not dependency.is_triggered_by(function):
                continue
            mapped = channels
            for mapping in dependency.index_mapping:
                mapped = mapped if mapping is None else mapping(mapped)
            seen = found.setdefault((dependency.target, dependency.handler), {})
            fresh = []
            for channel in mapped:
                if 0 <= channel.idx < limit and channel.idx not in seen:
                    # Shared keys and values: which of the layer's channels, is not said.
                    seen[channel.idx] = -1 if channel.root_idx is None else channel.root_idx
                    fresh.append(channel)
            if fresh:
                waiting.append((dependency.target, dependency.handler, fresh))
    return ((node, function, seen) for (node, function), seen in found.items() if seen)


def _unfit(graph: Any, part: Part) -> str:
    """Why this layer cannot shrink on that side, or nothing."""
    layer = part.layer
    count = graph.get_in_channels if part.side == "in" else graph.get_out_channels
    size = count(layer)
    if int(part.root.min()) < 0:
        return f"{part.name} shares its channels among several of its readers"
    if size is None or int(part.target.max()) >= size or int(part.target.min()) < 0:
        return f"{part.name} has {size} channels where {int(part.target.max()) + 1} are expected"
    if isinstance(layer, nn.MultiheadAttention):
        return f"{part.name} keeps its width at heads times head size"
    if isinstance(layer, nn.LSTM) and layer.num_layers > 1:
        return f"{part.name} is an LSTM of {layer.num_layers} layers"
    if isinstance(layer, nn.Module) and hasattr(layer, "parametrizations"):
        return f"the weight of {part.name} is computed from others"
    return ""
