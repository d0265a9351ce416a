"""Rows of data as tensors, where and as a model takes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgeopt.core import Array
from edgeopt.modules.model import TorchModel
from edgeopt.training.batches import MicroBatch

__all__ = ["to_tensors"]


def to_tensors(
    part: MicroBatch, model: TorchModel, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and targets on the device, inputs in the dtypes that the model takes."""
    dtypes = {spec.name: spec.dtype for spec in model.inputs}
    return (
        {n: _tensor(a, dtypes.get(n)).to(device) for n, a in part.inputs.items()},
        {n: _tensor(a, None).to(device) for n, a in part.targets.items()},
    )


def _tensor(array: Array, dtype: str | None) -> Tensor:
    """A tensor of its own, in the dtype that the model takes; targets of double precision halve."""
    wanted = getattr(torch, dtype) if dtype is not None else None
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch has these by name, and can hardly compute with them
    made = torch.from_numpy(np.array(array, order="C"))
    if wanted is None:
        return made.float() if made.dtype == torch.float64 else made
    return made.to(wanted)
