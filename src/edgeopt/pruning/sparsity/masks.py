"""Pruned weights that stay zero while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeopt.errors import SourceError
from edgeopt.pruning.result import Pruning
from edgeopt.pruning.sparsity.matrices import find_layers

__all__ = ["SparsityMask", "masks_of"]


def masks_of(module: nn.Module, pruning: Pruning | None = None) -> dict[str, Tensor]:
    """Masks by parameter name, true where a weight is not zero, of the weights that hold zeros.

    Matrices of linear layers and convolutions only: an embedding's row of zeros is no pruning.
    With ``pruning``, only layers in which it took weights.
    """
    layers, _ = find_layers(module)
    cut = None if pruning is None else {c.layer for c in pruning.cuts if c.after < c.before}
    wanted = {
        id(layer.weight)
        for layer in layers
        if (not layer.embedding if cut is None else layer.name in cut)
    }
    found = {}
    for name, parameter in module.named_parameters():
        if id(parameter) in wanted:
            mask = parameter.detach() != 0
            if not bool(mask.all()):
                found[name] = mask
    return found


class SparsityMask:
    """Keeps weights at zero. Their gradients are zero from here on, so that momentum, clipping and
    accumulation do not see them; called after an optimizer's step, it takes back what a step did
    all the same. A context manager, or until :meth:`remove`.

    Raises SourceError where the masks do not fit the module.
    """

    def __init__(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        parameters = dict(module.named_parameters())
        wrong = [
            n for n, m in masks.items() if n not in parameters or parameters[n].shape != m.shape
        ]
        if wrong:
            raise SourceError(
                f"the masks do not fit the model: {wrong[0]} is not there in that shape; take them "
                "from the model that is trained"
            )
        self._masks = [(parameters[name], mask) for name, mask in masks.items()]
        self._handles = [
            parameter.register_hook(_masked(mask))
            for parameter, mask in self._masks
            if parameter.requires_grad
        ]
        self()

    def __call__(self) -> None:
        """Set the pruned weights to zero; after every step of the optimizer."""
        with torch.no_grad():
            for parameter, mask in self._masks:
                # not multiplied: zero times infinity is not zero
                parameter.masked_fill_(~mask.to(parameter.device), 0)

    def remove(self) -> None:
        """Let gradients through again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> SparsityMask:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _masked(mask: Tensor) -> Any:
    def hook(gradient: Tensor) -> Tensor:
        return gradient.masked_fill(~mask.to(gradient.device), 0)

    return hook
