"""What was asked of a quantization, checked: bits, and what to prefer where they can be had."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from edgeopt.core import Plan
from edgeopt.errors import UsageError
from edgeopt.numerics.methods import METHODS

__all__ = ["Asked"]


@dataclass(frozen=True)
class Asked:
    """What the user asked for, checked. Raises UsageError where it cannot be honoured."""

    bits: int
    prefer: str = "balanced"
    target: str = "here"
    block_size: int | None = None
    min_sqnr: float | None = None
    threads: int = 1
    #: One of :data:`edgeopt.numerics.methods.METHODS`; None: what the planner thinks best.
    method: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("--method", self.method, (None, *METHODS)),
            ("--bits", self.bits, (8, 4)),
            ("--prefer", self.prefer, ("balanced", "speed", "size", "memory")),
            ("--target", self.target, ("here", "portable")),
        ):
            if value not in known:
                raise UsageError(
                    f"{name} {value}: not one of {', '.join(str(k) for k in known if k)}"
                )
        if self.min_sqnr is not None and not math.isfinite(self.min_sqnr):
            raise UsageError(f"--min-sqnr {self.min_sqnr}: not a number of decibels, such as 20")
        size = self.block_size
        if size is not None and (size < 16 or size > 256 or size & (size - 1)):
            raise UsageError(
                f"--block-size {size} is not a power of two from 16 to 256; use 32, 64 or 128"
            )

    def replaying(self, plan: Plan) -> Asked:
        """The plan's own options; what is measured how stays the user's."""
        options = plan.options
        try:
            return dataclasses.replace(
                self,
                bits=int(options["bits"]),
                prefer=str(options["prefer"]),
                target=str(options["target"]),
                block_size=options["block_size"],
                method=options.get("method"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the plan's options are incomplete ({error}); make it anew"
            ) from error
        except UsageError as error:
            raise UsageError(f"the plan's options: {error}") from error

    def options(self) -> dict[str, Any]:
        """What goes into the plan and the artifact: what the bytes depend on, nothing else."""
        options = {
            "bits": self.bits,
            "prefer": self.prefer,
            "target": self.target,
            "block_size": self.block_size,
        }
        return options if self.method is None else {**options, "method": self.method}
