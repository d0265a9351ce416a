"""A torch model to be changed: its module, what it takes, and how its outputs are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.core import Array, InputSpec
from edgeopt.modules.outputs import flatten

__all__ = ["TorchModel"]


@dataclass(frozen=True)
class TorchModel:
    """A module in memory that pruning changes in place and training updates.

    ``module`` is the user's own, in float32, its hierarchy of names untouched. ``inputs`` are what
    it takes, by name, with names for free dimensions; ``example`` is a feed of them (batch of two
    or more where the batch is free). ``positional`` says that arguments are given in the order of
    ``inputs`` rather than by name; ``fixed`` are arguments of every call. ``folder`` is the Hugging
    Face folder that it came from, if it did.
    """

    module: nn.Module
    inputs: tuple[InputSpec, ...]
    example: Mapping[str, Array]
    positional: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    notes: tuple[str, ...] = ()

    def arguments(self, feed: Mapping[str, Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The feed as the module's own arguments, by position and by name."""
        names = [spec.name for spec in self.inputs]
        if self.positional:
            return tuple(feed[name] for name in names), dict(self.fixed)
        return (), {**{name: feed[name] for name in names}, **self.fixed}

    def outputs(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, flattened, with gradients where torch records them."""
        args, kwargs = self.arguments(feed)
        return dict(flatten(self.module(*args, **kwargs)))

    def tensors(self, feed: Mapping[str, Array] | None = None) -> dict[str, Tensor]:
        """A feed (the example) as tensors on the module's device."""
        given = self.example if feed is None else feed
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        return {
            spec.name: torch.from_numpy(np.array(given[spec.name], order="C")).to(device)
            for spec in self.inputs
        }

    @contextmanager
    def mode(self, training: bool) -> Iterator[nn.Module]:
        """The module in training or evaluation mode, every part back as it was afterwards."""
        before = {part: part.training for part in self.module.modules()}
        self.module.train(training)
        try:
            yield self.module
        finally:
            for part, was in before.items():
                part.training = was
