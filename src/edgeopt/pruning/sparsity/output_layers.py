"""Which weights make a model's outputs: its last layers, whose every row is an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.modules.model import TorchModel

__all__ = ["output_weights"]

#: Steps between a last layer and the output: shape, scale and normalisation to probabilities.
_PASSED = (
    "Add", "Alias", "Cat", "Clone", "Copy", "Div", "Expand", "LogSoftmax", "Mul", "Permute",
    "Reshape", "Select", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Stack", "Sub", "T",
    "Tanh", "ToCopy", "Transpose", "Unbind", "UnsafeView", "Unsqueeze", "UnsqueezeN", "View",
    "ViewAs",
)  # fmt: skip


def output_weights(model: TorchModel) -> set[int]:
    """``id`` of the parameters that the model's outputs are products of.

    Read from the gradient's graph of one run on the example: from each output back through steps
    that only change shape or scale, to the first that multiplies with a parameter. Where that is
    no parameter of two axes (a normalisation), the model has no output layer.
    """
    parameters = [p for p in model.module.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad(), model.mode(training=False):
            outputs = model.outputs(model.tensors())
        return {id(p) for output in outputs.values() for p in _behind(output) if p.ndim >= 2}
    finally:
        for parameter, was in zip(parameters, before, strict=True):
            parameter.requires_grad_(was)


def _behind(output: Tensor) -> Iterator[nn.Parameter]:
    queue, seen = [output.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        following = [following for following, _ in node.next_functions]
        if _stem(node) in _PASSED:
            queue += following
        else:
            yield from (p for f in following for p in _parameter(f))


def _parameter(node: Any) -> Iterator[nn.Parameter]:
    """The parameter that a node gives as it is, or turned."""
    while node is not None:
        if hasattr(node, "variable"):  # AccumulateGrad
            yield node.variable
            return
        if _stem(node) not in ("Permute", "Reshape", "T", "Transpose", "UnsafeView", "View"):
            return
        node = next((following for following, _ in node.next_functions), None)


def _stem(node: Any) -> str:
    """``ViewBackward0`` -> ``View``."""
    return str(node.name()).rpartition("Backward")[0]
