"""Ranges of activations, from running the float model: one sample in memory at a time."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edgeopt.core import Array, Progress
from edgeopt.errors import InputsError, SourceError, UsageError
from edgeopt.numerics.ranges import CALIBRATORS

__all__ = ["METHODS", "calibrate"]

METHODS = tuple(CALIBRATORS)

#: Activations fetched in one run of a sample; what goes over takes another run.
GROUP_BYTES = 256 << 20
#: Counting costs some 10 ns an element: a picture's activations would take longer than its run.
OBSERVED = 1 << 16
_PROTO_LIMIT = (1 << 31) - (1 << 20)


def calibrate(
    model: Path | Any,
    tensors: Sequence[str],
    feeds: Iterable[Mapping[str, Array]],
    method: str = "mse",
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, tuple[float, float]]:
    """(low, high) of each of these float tensors over all feeds.

    ``model``: a path, or a ModelProto (not changed). ``method``: one of :data:`METHODS`. Each
    sample is run once, or once a group where its activations together are larger than
    ``GROUP_BYTES``; they are observed and let go. Of a tensor of more than ``OBSERVED`` elements,
    the extremes and that many others, evenly spaced, are counted. NaN and infinities are left
    out; a tensor that held nothing else (or no elements at all) gets (0, 0).

    Raises:
        UsageError: another method.
        InputsError: no feeds.
        SourceError: a model over protobuf's 2 GB.
    """
    if method not in CALIBRATORS:
        raise UsageError(f"calibrator {method!r}; use one of {', '.join(METHODS)}")
    session = _session(model, tensors, threads)
    given = {i.name for i in session.get_inputs()}
    computed = [name for name in tensors if name not in given]
    observers = {name: CALIBRATORS[method]() for name in tensors}
    seen: set[str] = set()

    def observe(name: str, values: Array) -> None:
        if not np.isfinite(values.sum(dtype=np.float64)):
            values = values[np.isfinite(values)]
        if values.size:
            observers[name].observe(_thinned(values))
            seen.add(name)

    groups = [computed[i : i + 16] for i in range(0, len(computed), 16)]
    done = 0
    total = operator.length_hint(feeds, 0)
    for feed in feeds:
        for name in given.intersection(tensors):
            observe(name, np.asarray(feed[name]))
        sizes: dict[str, int] = {}
        for group in groups:
            for name, values in zip(group, session.run(group, dict(feed)), strict=True):
                sizes[name] = values.nbytes
                observe(name, values)
        if not done:
            groups = _groups(computed, sizes)
        done += 1
        if progress is not None:
            progress("calibrate", done / total if total else None)
    if not done:
        raise InputsError("no samples to calibrate on; give at least one")
    return {name: observers[name].range() if name in seen else (0.0, 0.0) for name in tensors}


def _session(model: Path | Any, tensors: Sequence[str], threads: int) -> Any:
    proto = onnx.load(str(model)) if isinstance(model, Path) else model
    size = proto.ByteSize()
    if size > _PROTO_LIMIT:
        raise SourceError(
            f"the model takes {size / 1e9:.1f} GB, static INT8 takes up to 2 GB; leave out --data"
            " for weight-only or dynamic forms"
        )
    outputs = proto.graph.output
    given = len(outputs)
    present = {o.name for o in outputs}
    outputs.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in tensors
        if name not in present | {i.name for i in proto.graph.input}
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # the tensors have to be there as the graph names them
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # a second copy of the weights, laid out for speed, is not worth its memory here
    options.add_session_config_entry("session.disable_prepacking", "1")
    with tempfile.TemporaryDirectory() as folder:
        # through a file: as bytes, the model would be in memory once more
        path = Path(folder) / "tapped.onnx"
        try:
            onnx.save(proto, path)
        finally:
            del outputs[given:]
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _thinned(values: Array) -> Array:
    """About ``OBSERVED`` elements and the extremes, or all where there are no more."""
    if values.size <= OBSERVED:
        return values
    flat = values.reshape(-1)
    step = -(-flat.size // OBSERVED) | 1  # odd: it falls on every column of an even width
    return np.append(flat[::step], (flat.min(), flat.max()))


def _groups(names: Sequence[str], sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in order, cut so that no group is over the limit by more than one tensor's size."""
    groups: list[list[str]] = [[]]
    room = GROUP_BYTES
    for name in names:
        if groups[-1] and sizes[name] > room:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(name)
        room -= sizes[name]
    return groups if groups[0] else []
