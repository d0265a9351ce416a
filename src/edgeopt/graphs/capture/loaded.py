"""A torch model ready to be exported: what to call, with what, and what comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from edgeopt.core import Array
from edgeopt.graphs.capture.axes import Inputs
from edgeopt.modules.outputs import flatten
from edgeopt.modules.reasons import attempt, one_line

__all__ = ["Loaded", "tensors"]


def tensors(inputs: Inputs, feed: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
    """A feed as torch tensors, in the order of the specs."""
    return tuple(torch.from_numpy(np.array(feed[s.name], order="C")) for s in inputs.specs)


@dataclass
class Loaded:
    """A model in memory.

    ``call`` takes positional tensors in the order of ``inputs`` and is what answers are compared
    with. ``module`` is what the exporters are given, ``program`` an ExportedProgram if it is one,
    ``scripted`` says that it is TorchScript. ``attention`` holds the parts whose attention can be
    switched to its plain form. ``recurrent`` marks LSTM and GRU layers.
    ``output_axes`` has, for each output's dimensions, the free one that it moves with, if any.
    """

    call: Callable[..., Any]
    inputs: Inputs
    module: Any = None
    program: Any = None
    scripted: bool = False
    recurrent: bool = False
    attention: tuple[Any, ...] = ()
    output_names: tuple[str, ...] = ()
    output_axes: tuple[tuple[str | None, ...], ...] = ()
    notes: list[str] = field(default_factory=list)

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """The model's outputs for a feed, flattened, in order."""
        with torch.no_grad():
            value = self.call(*tensors(self.inputs, feed))
        return [t.detach().cpu().numpy() for _, t in flatten(value)]

    @contextlib.contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Attention in its plain form for the time of an export."""
        before = [part.config._attn_implementation for part in self.attention]
        for part in self.attention:
            part.set_attn_implementation("eager")
        try:
            yield
        finally:
            for part, name in zip(self.attention, before, strict=True):
                part.set_attn_implementation(name)

    def complaint(self, feed: Mapping[str, Array]) -> str | None:
        """None if the model runs on the feed, else why not, in a line.

        The model is the user's code: whatever it raises means that it does not run.
        """
        _, error = attempt(lambda: self.run(feed))
        return None if error is None else one_line(error, 120)
