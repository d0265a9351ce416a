"""Where the teacher's answers come from while a student is trained: run, or read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from edgeopt.modules.model import TorchModel
from edgeopt.training.batches import MicroBatch
from edgeopt.training.hidden_states import captured
from edgeopt.training.losses.base import precise
from edgeopt.training.objective import Answers

__all__ = ["Autocast", "LiveTeacher", "NoTeacher", "Teacher"]


#: Gives a context in which arithmetic has the precision that was asked for.
Autocast: TypeAlias = Callable[[], AbstractContextManager[Any]]


class Teacher(Protocol):
    """Answers to the rows of a part, whose feed is on the device already."""

    def answers(self, part: MicroBatch, feed: Mapping[str, Tensor]) -> Answers: ...


class NoTeacher:
    """What losses see that compare with labels alone."""

    def answers(self, part: MicroBatch, feed: Mapping[str, Tensor]) -> Answers:
        return {}, {}


@dataclass(frozen=True, eq=False)
class LiveTeacher:
    """Runs the model in evaluation mode, without gradients; ``hidden`` is filled by its hooks."""

    model: TorchModel
    hidden: dict[str, Tensor]
    autocast: Autocast

    def answers(self, part: MicroBatch, feed: Mapping[str, Tensor]) -> Answers:
        with torch.no_grad(), self.autocast():
            outputs = {name: precise(value) for name, value in self.model.outputs(feed).items()}
            return outputs, {name: precise(value) for name, value in self.hidden.items()}

    @classmethod
    @contextmanager
    def opened(
        cls, model: TorchModel, layers: Sequence[str], autocast: Autocast
    ) -> Iterator[LiveTeacher]:
        """The teacher in evaluation mode, its layers captured, while this lasts."""
        with model.mode(False), captured(model.module, layers) as hidden:
            yield cls(model, hidden, autocast)
