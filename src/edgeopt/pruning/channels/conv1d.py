"""transformers' Conv1D (GPT-2's layers) as nn.Linear while channels are cut, and as it was after.

It is a linear layer whose weight is ``[in, out]``; only the first form is one that dependencies
are followed through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from edgeopt.pruning.sparsity.matrices import is_conv1d

__all__ = ["to_conv1d", "to_linear"]


def to_linear(module: nn.Module) -> Mapping[str, Any]:
    """Put a linear layer of the same weights for every Conv1D, in place; the originals by name."""
    found: dict[str, Any] = {
        name: part for name, part in module.named_modules() if name and is_conv1d(part)
    }
    for name, part in found.items():
        rows, columns = part.weight.shape
        layer = nn.Linear(rows, columns, device="meta").train(part.training)
        layer.weight = nn.Parameter(part.weight.detach().t().clone(), part.weight.requires_grad)
        layer.bias = nn.Parameter(part.bias.detach().clone(), part.bias.requires_grad)
        module.set_submodule(name, layer)
    return found


def to_conv1d(module: nn.Module, originals: Mapping[str, Any]) -> None:
    """The originals in their places again, with what is left of their weights."""
    for name, part in originals.items():
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if tuple(part.weight.shape) != (layer.in_features, layer.out_features):
            weight = layer.weight.detach().t().contiguous()
            part.weight = nn.Parameter(weight, layer.weight.requires_grad)
            part.bias = nn.Parameter(layer.bias.detach(), layer.bias.requires_grad)
            part.nx, part.nf = layer.in_features, layer.out_features
        module.set_submodule(name, part)
