"""A student and the losses it is trained on, as one module: outputs in, one number out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from edgeopt.errors import UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.training.hidden_states import captured
from edgeopt.training.losses.base import Batch, Loss, precise

__all__ = ["Answers", "Objective", "layers_of"]

#: Outputs, and the outputs of inner layers.
Answers = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


def layers_of(losses: Sequence[Loss], side: str) -> tuple[str, ...]:
    """Inner layers that the losses look at, of the ``student`` or the ``teacher``."""
    found = [name for loss in losses for name in getattr(loss, f"{side}_layers")]
    return tuple(dict.fromkeys(found))


class Objective(nn.Module):
    """The weighted sum of the losses, with the student inside.

    One module, so that what wraps a module (data parallelism, autocast) covers the student and
    the losses' own parameters alike.
    """

    def __init__(self, student: TorchModel, losses: Sequence[Loss]) -> None:
        super().__init__()
        self.module = student.module
        self.losses = nn.ModuleList(losses)
        self.student = student
        self.hidden: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What the losses are called, each its own name."""
        found: list[str] = []
        for loss in self.losses:
            same = sum(name.split(" ")[0] == loss.name for name in found)
            found.append(f"{loss.name} {same + 1}" if same else loss.name)
        return tuple(found)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The inner layers that losses look at are captured while this lasts."""
        with ExitStack() as stack:
            names = layers_of(self.losses, "student")
            self.hidden = stack.enter_context(captured(self.module, names))
            yield

    def batch(
        self, feed: Mapping[str, Tensor], targets: Mapping[str, Tensor], teacher: Answers
    ) -> Batch:
        """Run the student, and show the losses all they may look at."""
        outputs = {name: precise(tensor) for name, tensor in self.student.outputs(feed).items()}
        return Batch(outputs, teacher[0], targets, feed, dict(self.hidden), teacher[1])

    def forward(
        self, feed: Mapping[str, Tensor], targets: Mapping[str, Tensor], teacher: Answers
    ) -> tuple[Tensor, Tensor]:
        """(what is to be made small, every loss by itself without its weight and gradient)."""
        batch = self.batch(feed, targets, teacher)
        values = [loss(batch) for loss in self.losses]
        total = torch.stack(
            [loss.weight * value for loss, value in zip(self.losses, values, strict=True)]
        ).sum()
        return total, torch.stack([value.detach().float() for value in values])

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Parameters to decay, and the others: biases and the scales of norms are left alone."""
        learning = [p for p in self.parameters() if p.requires_grad]
        if not learning:
            raise UsageError("the student has no parameters that require gradients; unfreeze some")
        decayed = [p for p in learning if p.ndim > 1]
        other = [p for p in learning if p.ndim <= 1]
        groups: list[dict[str, object]] = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": other, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]
