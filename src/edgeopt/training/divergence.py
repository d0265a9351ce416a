"""Whether a training has come off its course."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["DivergenceGuard"]


@dataclass
class DivergenceGuard:
    """Looks at the loss of every update.

    ``baseline`` is the highest of the first ``settling`` losses, and no lower than it begins: a
    student that starts as its teacher's equal has a loss of nothing. ``above`` counts updates in a
    row whose loss was more than ``factor`` times that.
    """

    factor: float
    patience: int
    settling: int = 10
    seen: int = 0
    baseline: float = 0.01
    above: int = 0

    def diverged(self, loss: float, norm: float | None = None) -> str:
        """Why the training must stop; empty where it need not.

        ``norm`` is the gradient's, None where a loss scaler deals with what overflows.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if norm is not None and not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        self.seen += 1
        if self.seen <= self.settling:
            self.baseline = max(self.baseline, loss)
            return ""
        self.above = self.above + 1 if loss > self.factor * self.baseline else 0
        if self.above < self.patience:
            return ""
        return (
            f"the loss was above {self.factor:g} times the first ones ({self.baseline:.3g}) for "
            f"{self.above} updates"
        )
