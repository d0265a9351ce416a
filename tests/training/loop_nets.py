"""Small students, teachers, losses and data that the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.core import InputSpec
from edgeopt.modules.model import TorchModel
from edgeopt.training.batches import ArrayData
from edgeopt.training.losses.base import Batch, Loss

SPECS = (InputSpec("x", "float32", ("batch", 6)),)


class Net(nn.Module):
    """x [N, 6] -> logits [N, 3]; with a norm, and dropout where asked."""

    def __init__(self, width: int = 8, dropout: float = 0.0, norm: type[nn.Module] = nn.LayerNorm):
        super().__init__()
        self.inner = nn.Linear(6, width)
        self.norm = norm(width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.drop(torch.relu(self.norm(self.inner(x)))))}


class Hard(Loss):
    """Cross-entropy with the labels."""

    kind = "hard"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight, needs_teacher=False, needs_targets=True)

    def forward(self, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(batch.student["logits"], batch.targets["y"])


class Soft(Loss):
    """Squared distance to the teacher's logits."""

    kind = "soft"

    def forward(self, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(batch.student["logits"], batch.teacher["logits"])


class Hint(Loss):
    """Squared distance of inner layers, through a learned projection."""

    kind = "hint"

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__(weight)
        self.student_layers = ("inner",)
        self.teacher_layers = ("inner",)

    def prepare(self, batch: Batch) -> None:
        ours, theirs = batch.student_hidden["inner"], batch.teacher_hidden["inner"]
        self.project = nn.Linear(ours.shape[-1], theirs.shape[-1])

    def forward(self, batch: Batch) -> Tensor:
        ours = self.project(batch.student_hidden["inner"])
        return nn.functional.mse_loss(ours, batch.teacher_hidden["inner"])


def model(seed: int = 0, **more: Any) -> TorchModel:
    torch.manual_seed(seed)
    return TorchModel(Net(**more), SPECS, {"x": np.zeros((2, 6), np.float32)}, positional=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order, and nothing that a fork would miss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data(rows: int = 50, seed: int = 0) -> ArrayData:
    """Three separable classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows)
    x = rng.normal(size=(rows, 6)).astype(np.float32)
    x[:, :3] += 2 * np.eye(3, dtype=np.float32)[y]
    return ArrayData({"x": x}, {"y": y.astype(np.int64)}, classes={"y": 3})


def accuracy(outputs: Any, targets: Any) -> float:
    return float((outputs["logits"].argmax(-1) == targets["y"]).mean())


def weights(model: TorchModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
