"""Channels of an activation that dwarf the others, taken out of integer products.

Trained transformers carry a few channels whose values are ten times everyone else's ("massive
activations"). A product that quantizes its input with one scale then spends its 8 bits on them. As
in LLM.int8() (Dettmers et al., 2022), those channels get a small float product of their own::

    y = (x * mask) W  +  x[:, outliers] W[outliers, :]
         integer           float, a few columns wide

The identity of the channels is a property of the weights: a handful of made-up inputs finds the
same ones as real text does. Whatever the inputs, the sum stays exact up to the quantization of
what is left and the float16 that the taken rows are stored in; wrong channels only gain less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graphs.fold import constant_array, set_constant
from edgeopt.graphs.sites import Site, find_sites
from edgeopt.runtimes.onnxruntime import OnnxSession

__all__ = ["WITH_OUTLIERS", "Outliers", "find_outliers", "split_outliers"]

#: What the names of additions that join the float part end in.
WITH_OUTLIERS = "/with_outliers"

#: How many channels may be taken out; the fewest that give most of the gain are.
_COUNTS = (1, 2, 4, 8)
_MOST_OF_IT = 0.75

#: Without a gain of this much in range (20 log10: 8 dB), four more nodes are not worth it.
_WORTH = 2.5

#: A product narrower than this has no channel to spare.
_MIN_CHANNELS = 64


@dataclass(frozen=True)
class Outliers:
    """``channels`` of the activation that feeds ``tensors``; ``benefit`` ranks: the quantization
    noise that goes away, as a share of the products' output power, a product."""

    activation: str
    tensors: tuple[str, ...]
    channels: tuple[int, ...]
    benefit: float


def _groups(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """Products by the activation that they share; only those that a split can serve."""
    groups: dict[str, list[Site]] = {}
    for site in sites:
        if site.kind != "product" or len(site.uses) != 1 or site.dtype != "float32":
            continue
        node = site.uses[0].node
        x = node.inputs[0]
        if x is None or x.name is None or x.is_initializer():
            continue
        if site.matrix_shape[1] < _MIN_CHANNELS:
            continue
        if node.op_type == "Gemm" and (_float(node, "alpha") != 1 or site.uses[0].transposed):
            continue
        if site.uses[0].transposed or node.graph is not site.value.graph:
            continue
        groups.setdefault(x.name, []).append(site)
    return groups


def _float(node: ir.Node, name: str) -> float:
    attr = node.attributes.get(name)
    return float(attr.as_float()) if attr is not None else 1.0


def find_outliers(
    base: Path, feeds: Sequence[Mapping[str, NDArray[Any]]], workdir: Path, *, threads: int = 1
) -> tuple[Outliers, ...]:
    """Groups of products worth splitting, the greatest benefit first.

    ``base`` is a folded float model; ``feeds`` run through it once, keeping one number a channel.
    """
    model = ir.load(base)
    groups = _groups(find_sites(model.graph)[0])
    if not groups:
        return ()
    peaks, powers = _watch(model, base, groups, feeds, workdir, threads)
    found = []
    for name, sites in groups.items():
        peak = peaks.get(name)
        if peak is None or not np.isfinite(peak).all():
            continue
        order = np.argsort(-peak, kind="stable")
        channels = _count(peak[order], len(peak) // 16)
        if channels == 0:
            continue
        before, after = float(peak[order[0]]), float(peak[order[channels]])
        benefit = 0.0
        for site in sites:
            energy = float(np.square(site.matrix(), dtype=np.float64).sum()) / site.matrix_shape[0]
            noise = (before**2 - after**2) * 4 / 255**2 / 12 * energy
            benefit = max(benefit, noise / max(powers[_output(site)], 1e-30))
        found.append(
            Outliers(
                name,
                tuple(site.name for site in sites),
                tuple(sorted(int(i) for i in order[:channels])),
                # Every product of a group costs two nodes: gain for cost decides who comes first.
                benefit / len(sites),
            )
        )
    return tuple(sorted(found, key=lambda o: (-o.benefit, o.activation)))


def _count(peaks: NDArray[np.floating[Any]], limit: int) -> int:
    """How many of the highest channels to take: few, for most of the gain; 0 for none."""
    counts = [n for n in _COUNTS if n <= min(limit, len(peaks) - 1)]
    if not counts:
        return 0
    gains = {n: float(peaks[0] / max(peaks[n], 1e-30)) for n in counts}
    best = max(gains.values())
    if best < _WORTH:
        return 0
    return next(n for n in counts if gains[n] >= _MOST_OF_IT * best)


def _output(site: Site) -> str:
    return site.uses[0].node.outputs[0].name or ""


def _watch(
    model: ir.Model,
    base: Path,
    groups: Mapping[str, Sequence[Site]],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    workdir: Path,
    threads: int,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """(peak of every channel by activation, mean square by product output), one feed at a time."""
    inputs = {v.name for v in model.graph.inputs}
    outputs = {v.name for v in model.graph.outputs}
    products = [_output(site) for sites in groups.values() for site in sites]
    watched = [name for name in (*groups, *products) if name not in inputs | outputs]
    by_name = {v.name: v for node in model.graph for v in node.outputs}
    for name in dict.fromkeys(watched):
        model.graph.outputs.append(by_name[name])
    path = workdir / "watched.onnx"
    # The weights stay where the base model has them.
    assert path.parent == base.parent
    ir.save(model, path)
    session = OnnxSession.open(path, threads=threads)
    peaks: dict[str, NDArray[np.float64]] = {}
    squares: dict[str, list[float]] = {name: [] for name in products}
    for feed in feeds:
        values: dict[str, NDArray[Any]] = {**feed, **session.run(feed)}
        for name in groups:
            flat = np.abs(values[name].reshape(-1, values[name].shape[-1]))
            if flat.shape[0]:
                peak = flat.max(axis=0).astype(np.float64)
                peaks[name] = np.maximum(peaks.get(name, 0.0), peak)
        for name in products:
            if values[name].size:
                squares[name].append(float(np.mean(np.square(values[name], dtype=np.float64))))
    path.unlink()
    del session
    return peaks, {name: float(np.mean(found)) for name, found in squares.items() if found}


def split_outliers(graph: ir.Graph, splits: Mapping[str, Sequence[int]]) -> None:
    """Take channels out in place: ``splits`` maps an activation to its channels.

    Every product on that activation must be one that :func:`find_outliers` would consider.
    """
    for name, sites in _groups(find_sites(graph)[0]).items():
        channels = splits.get(name)
        if channels:
            _split(graph, name, sites, np.asarray(channels, np.int64))


def _split(graph: ir.Graph, name: str, sites: Sequence[Site], channels: NDArray[np.int64]) -> None:
    anchor = _first_of(graph, [site.uses[0].node for site in sites])
    x = anchor.inputs[0]
    assert x is not None
    width = sites[0].matrix_shape[1]
    mask = np.ones(width, np.float32)
    mask[channels] = 0
    masked = _insert(
        graph, anchor, "Mul", [x, set_constant(graph, f"{name}.bulk_mask", mask)], f"{name}.bulk"
    )
    index = set_constant(graph, f"{name}.outlier_channels", channels)
    taken = _insert(graph, anchor, "Gather", [x, index], f"{name}.outliers", {"axis": -1})
    for site in sites:
        node = site.uses[0].node
        weights = site.matrix().copy()  # a mapped tensor that needs no turning comes as it is
        own = _half_weights(graph, f"{site.name}.outliers", weights[:, channels].T)
        weights[:, channels] = 0
        stored = np.ascontiguousarray(weights.T if site.by_column else weights)
        tensor = ir.tensor(stored.reshape(site.shape), name=site.name)
        site.value.const_value = tensor
        site.value.meta["outlier_channels"] = tuple(channels.tolist())
        node.replace_input_with(0, masked)
        label = node.outputs[0].name or site.name
        part = _insert(graph, node, "MatMul", [taken, own], f"{label}.of_outliers")
        _add_behind(graph, _biased(node), part)


def _biased(node: ir.Node) -> ir.Node:
    """The node whose result the float part joins: the addition of a bias, if one follows.

    The runtime fuses a product and its bias; an addition between them would undo that.
    """
    users = list(node.outputs[0].uses())
    if len(users) != 1 or node.outputs[0].is_graph_output():
        return node
    user, slot = users[0]
    if user.op_type != "Add" or user.domain not in ("", "ai.onnx") or user.graph is not node.graph:
        return node
    bias = constant_array(user.inputs[1 - slot])
    return user if bias is not None and bias.ndim == 1 else node


def _add_behind(graph: ir.Graph, node: ir.Node, part: ir.Value) -> None:
    y = node.outputs[0]
    label = y.name or "product"
    total = ir.node("Add", [y, part], name=f"{label}{WITH_OUTLIERS}")
    out = total.outputs[0]
    out.shape, out.type = y.shape, y.type
    graph.insert_after(node, total)
    for user, slot in list(y.uses()):
        if user is not total:
            user.replace_input_with(slot, out)
    for i, value in enumerate(graph.outputs):
        if value is y:
            graph.outputs[i] = out
    y.name, out.name = f"{label}.of_bulk", label


def _half_weights(graph: ir.Graph, name: str, weights: NDArray[np.float32]) -> ir.Value:
    """Stored in float16 and cast at load, where that is precise; a float product either way."""
    limits = np.finfo(np.float16)
    size = np.abs(weights)
    if size.max(initial=0) > limits.max or (size.max(initial=0) < 64 * limits.tiny):
        return set_constant(graph, name, np.ascontiguousarray(weights))
    stored = set_constant(graph, name, np.ascontiguousarray(weights, np.float16))
    return _insert(
        graph,
        next(iter(graph)),
        "Cast",
        [stored],
        f"{name}.float",
        {"to": ir.DataType.FLOAT},
    )


def _first_of(graph: ir.Graph, nodes: Sequence[ir.Node]) -> ir.Node:
    wanted = {id(node) for node in nodes}
    return next(node for node in graph if id(node) in wanted)


def _insert(
    graph: ir.Graph,
    anchor: ir.Node,
    op: str,
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Value:
    node = ir.node(op, list(inputs), dict(attributes or {}), name=f"{name}/{op}")
    node.outputs[0].name = name
    graph.insert_before(anchor, node)
    return node.outputs[0]
