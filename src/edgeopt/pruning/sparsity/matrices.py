"""Weights that can be pruned one by one, as matrices ``[out, in]``, and the inputs that meet them.

A convolution is the product of its weights ``[out, in / groups * kernel]`` with the patches of its
input; transformers' Conv1D holds its matrix ``[in, out]``. A weight that several modules share is
one matrix, met by the inputs of all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgeopt.pruning.result import Cut

__all__ = ["CONVOLUTIONS", "WeightMatrix", "find_layers", "kept_cut"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: Elements of patches that are laid out at a time: 64 MB in float32.
_PATCHES = 16 << 20


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """One weight. ``modules`` are called with its inputs: none where nobody is (``unseen`` says
    why). ``embedding`` is a table of rows; those are looked up, not multiplied."""

    name: str
    weight: nn.Parameter
    modules: tuple[nn.Module, ...]
    groups: int = 1
    turned: bool = False
    embedding: bool = False
    unseen: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix; groups stand one below the other."""
        out, size = (self.weight.shape[1 if self.turned else 0], self.weight.numel())
        return int(out), int(size // max(out, 1))

    def matrix(self) -> NDArray[Any]:
        """A copy, float32 (float64 where the weight is)."""
        w = self.weight.detach()
        w = w.double() if w.dtype == torch.float64 else w.float()
        w = w.T if self.turned else w
        copied: NDArray[Any] = np.array(w.cpu().numpy(), order="C").reshape(self.shape)
        return copied

    def store(self, matrix: NDArray[Any]) -> None:
        """Write the matrix into the weight, in place."""
        given = torch.from_numpy(np.ascontiguousarray(matrix.T if self.turned else matrix))
        with torch.no_grad():
            self.weight.copy_(given.reshape(self.weight.shape))

    def rows(self, module: nn.Module, x: Tensor, mask: Tensor | None) -> Iterator[Tensor]:
        """What the columns meet: ``[groups, positions, columns]``, a part of the batch at a time.

        ``mask`` ``[batch, sequence]`` is true where a position counts; it is for inputs that have
        both axes, or the two as one, before the features.
        """
        if isinstance(module, CONVOLUTIONS):
            yield from _patches(module, x)
            return
        flat = x.reshape(-1, x.shape[-1])
        if mask is not None and x.shape[:-1] in (mask.shape, (mask.numel(),)):
            flat = flat[mask.reshape(-1)]
        yield flat[None]


def find_layers(model: nn.Module) -> tuple[list[WeightMatrix], list[Cut]]:
    """The weights that can be pruned, in the order of the module's names, and a Cut with its
    reason for every other tensor of two or more axes."""
    owners: dict[int, list[tuple[str, nn.Module, str, nn.Parameter]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2:
                owners.setdefault(id(parameter), []).append((name, module, key, parameter))
    layers: list[WeightMatrix] = []
    kept: list[Cut] = []
    for places in owners.values():
        name, module, key, weight = places[0]
        shown = _shown(name, module, key)
        reason = next((r for _, m, k, _ in places if (r := _reason(m, k))), "")
        tables = [n for n, m, _, _ in places if isinstance(m, nn.Embedding)]
        if tables and len(tables) < len(places):
            reason = f"tied to the embedding {tables[0]}"
            shown = next(_shown(n, m, k) for n, m, k, _ in places if n not in tables)
        if reason:
            kept.append(kept_cut(shown, weight, reason))
            continue
        layers.append(
            WeightMatrix(
                shown,
                weight,
                tuple(m for _, m, _, _ in places),
                getattr(module, "groups", 1) if isinstance(module, CONVOLUTIONS) else 1,
                turned=is_conv1d(module),
                embedding=bool(tables),
                unseen=next((u for _, m, _, _ in places if (u := _unseen(m))), ""),
            )
        )
    return layers, kept


def kept_cut(name: str, weight: Tensor, reason: str) -> Cut:
    """A Cut for a weight that was left alone."""
    found = int(torch.count_nonzero(weight))
    return Cut(name, "weights", found, found, reason)


def _shown(name: str, module: nn.Module, key: str) -> str:
    if key == "weight":
        return name or type(module).__name__
    return f"{name}.{key}" if name else key


def is_conv1d(module: nn.Module) -> bool:
    """transformers' Conv1D; nobody has one who has not imported where it is."""
    home = sys.modules.get("transformers.pytorch_utils")
    return home is not None and isinstance(module, home.Conv1D)


def _reason(module: nn.Module, key: str) -> str:
    """Why a parameter is no matrix of a layer that is pruned; empty where it is one."""
    if isinstance(module, nn.MultiheadAttention) and key.endswith("_weight"):
        return ""
    if isinstance(module, parametrize.ParametrizationList):
        return "computed from other tensors (a parametrization)"
    if type(module) is nn.Module:
        return "a tensor of an exported program, whose layers are gone; prune the code it came from"
    if key != "weight":
        return f"not the weight of a layer, but {key} of a {type(module).__name__}"
    if isinstance(module, (nn.Linear, nn.Embedding, *CONVOLUTIONS)) or is_conv1d(module):
        return ""
    return f"a {type(module).__name__}: only linear layers and convolutions are pruned by weights"


def _unseen(module: nn.Module) -> str:
    if isinstance(
        module, (nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear)
    ):
        return "multiplied inside MultiheadAttention, where its inputs are not seen"
    if isinstance(module, nn.Embedding):
        return "an embedding is looked up: it has no inputs to weigh its columns by"
    return ""


def _patches(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """``[groups, positions, in / groups * kernel]`` of a convolution's input ``[N, C, ...]``."""
    spatial = len(module.kernel_size)
    if x.ndim == spatial + 1:  # without a batch
        x = x[None]
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    sides: list[tuple[int, int]]
    if module.padding == "valid":
        sides = [(0, 0)] * spatial
    elif module.padding == "same":
        wide = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [(w // 2, w - w // 2) for w in wide]
    else:
        sides = [(p, p) for p in module.padding]
    if any(before or after for before, after in sides):
        # the last axis comes first
        flat = [n for pair in reversed(sides) for n in pair]
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, flat, mode=mode)
    windows = x
    for axis in range(spatial):
        wide_one = dilation[axis] * (kernel[axis] - 1) + 1
        windows = windows.unfold(2 + axis, wide_one, stride[axis])[..., :: dilation[axis]]
    # [N, C, positions..., kernel...]: nothing is copied so far
    groups, channels = module.groups, x.shape[1] // module.groups
    columns = channels * int(np.prod(kernel))
    positions = int(np.prod(windows.shape[2 : 2 + spatial]))
    at_a_time = max(_PATCHES // max(positions * columns * groups, 1), 1)
    for part in windows.split(at_a_time):
        split = part.unflatten(1, (groups, channels))
        order = (1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial))
        yield split.permute(order).reshape(groups, -1, columns)
