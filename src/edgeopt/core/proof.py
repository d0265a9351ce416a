"""What it was worth: measured, judged, and ready to be written as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core.plan import Change, Plan

__all__ = [
    "PROOF_VERSION",
    "Basis",
    "Check",
    "Fidelity",
    "Measurement",
    "OfKind",
    "Proof",
    "TensorFidelity",
    "Verdict",
    "json_ready",
]


@dataclass(frozen=True)
class OfKind:
    """How close one output is over the samples of one kind, of those that were made up.

    ``sqnr_db`` is against the output's own power on that kind, which counts as no less than a
    hundredth of its power over all kinds (of n numbers, a share of one in n). ``same_side``: the
    share of elements on the same side of one half, for a probability what is decided.
    """

    kind: str
    sqnr_db: float
    max_abs: float
    same_side: float


@dataclass(frozen=True)
class Fidelity:
    """How close the artifact's output is to the source's, over all samples, for one output.

    ``sqnr_db``: 10 log10(sum(ref**2) / sum((ref-got)**2)), inf when identical. ``cosine``: mean
    over samples. ``top1``: share of positions (all but the last axis) with the same argmax, None
    where the last axis is no class axis. ``kl``: mean KL(softmax(ref) || softmax(got)) in nats,
    None likewise. ``finite``: no NaN or Inf appeared that the source did not have. ``constant``:
    the source's output did not change from sample to sample, nor within one. ``rows``: positions
    that ``top1`` is a share of. ``lowest_db`` and ``highest_db``: SQNR of the sample that is
    furthest off, and of the one that is closest; None where a sample has none. ``kinds``: the same
    by kind of sample, where samples are of several. ``probability``: the output lies between 0
    and 1 whatever goes in.
    """

    output: str
    sqnr_db: float
    cosine: float
    max_abs: float
    top1: float | None
    kl: float | None
    finite: bool
    constant: bool
    samples: int
    rows: int = 0
    lowest_db: float | None = None
    highest_db: float | None = None
    kinds: tuple[OfKind, ...] = ()
    probability: bool = False


@dataclass(frozen=True)
class TensorFidelity:
    """How close a stored tensor is to the source's: its own signal to noise, by the definition of
    :class:`Fidelity`, and whether it is finite where the source is.
    """

    tensor: str
    sqnr_db: float
    finite: bool

    def to_json(self) -> dict[str, Any]:
        """In the form of an output's, of which nothing else is known."""
        return dataclasses.asdict(
            Fidelity(
                output=self.tensor,
                sqnr_db=self.sqnr_db,
                cosine=math.nan,
                max_abs=math.nan,
                top1=None,
                kl=None,
                finite=self.finite,
                constant=False,
                samples=1,
            )
        )


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one metric of one subject. Statistics are derived, never stored.

    ``values`` holds one tuple per worker process. ``blocks`` says how many of a process's samples
    were taken in each of its turns, where subjects took turns; empty where they did not. Turn i
    of every subject in one process round ran side by side. ``how`` names the counter or the way
    it was taken, where that is not always the same.
    """

    subject: str
    metric: str
    unit: str
    conditions: Mapping[str, Any]
    values: tuple[tuple[float, ...], ...]
    blocks: tuple[tuple[int, ...], ...] = ()
    how: str = ""


@dataclass(frozen=True)
class Check:
    """One line of the verdict: what was asked, what was found, and whether it holds."""

    name: str
    passed: bool
    found: str
    limit: str
    advice: str = ""


@dataclass(frozen=True)
class Basis:
    """What a verdict stands on; as text, in the words of a headline.

    ``kind``: ``samples`` (the user's, held out), ``made-up`` (inputs that nobody gave),
    ``weights`` (every tensor; nothing was run on inputs), ``text`` (a user's). ``count`` is how
    many of them.
    """

    kind: str
    count: int

    def __str__(self) -> str:
        return {
            "samples": f"on your samples ({self.count} held out)",
            "made-up": "on made-up inputs: give --data to know",
            "weights": f"on the weights ({self.count} tensors)",
            "text": f"on the weights and your text ({self.count} tokens)",
        }[self.kind]


@dataclass(frozen=True)
class Verdict:
    """Proven when there were checks, and every one passed. ``unproven`` names what could not be
    checked, and why; ``basis`` is what the verdict stands on.
    """

    checks: tuple[Check, ...]
    unproven: tuple[str, ...] = ()
    basis: Basis | None = None

    @property
    def proven(self) -> bool:
        return bool(self.checks) and not self.failed

    @property
    def failed(self) -> bool:
        """Whether a check did not pass; nothing has failed where nothing was checked."""
        return not all(c.passed for c in self.checks)


PROOF_VERSION = 1


@dataclass(frozen=True)
class Proof:
    """What a verb returns and a report renders; ``to_json`` is the versioned document.

    ``fidelity`` is of outputs, ``tensors`` of stored tensors, the worst first, where those are what
    was compared. One place makes proofs, :func:`edgeopt.targets.proof.proof_of`.
    """

    verb: str
    source: Mapping[str, Any]
    artifact: Mapping[str, Any]
    plan: Plan | None
    changes: tuple[Change, ...]
    coverage: Mapping[str, Any]
    fidelity: tuple[Fidelity, ...]
    samples: str
    measurements: tuple[Measurement, ...]
    environment: Mapping[str, Any]
    verdict: Verdict
    usage: str = ""
    notes: tuple[str, ...] = ()
    tensors: tuple[TensorFidelity, ...] = ()

    @property
    def proven(self) -> bool:
        return self.verdict.proven

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready document; infinities become the strings "inf" and "-inf", NaN "nan"."""
        document = {
            "edgeopt_proof": PROOF_VERSION,
            "verb": self.verb,
            "verdict": {"proven": self.proven, **dataclasses.asdict(self.verdict)},
            "source": dict(self.source),
            "artifact": dict(self.artifact),
            "coverage": dict(self.coverage),
            "samples": self.samples,
            "fidelity": [
                *(dataclasses.asdict(f) for f in self.fidelity),
                *(t.to_json() for t in self.tensors),
            ],
            "measurements": [dataclasses.asdict(m) for m in self.measurements],
            "changes": [
                {
                    **c.decision.to_json(),
                    "before": c.before,
                    "after": c.after,
                    "sqnr_db": c.sqnr_db,
                }
                for c in self.changes
            ],
            "plan": self.plan.to_json() if self.plan else None,
            "environment": dict(self.environment),
            "usage": self.usage,
            "notes": list(self.notes),
        }
        cleaned: dict[str, Any] = json_ready(document)
        return cleaned


def json_ready(value: Any) -> Any:
    """``value`` as JSON can hold it: infinities as "inf" and "-inf", NaN as "nan"."""
    if isinstance(value, Mapping):
        return {str(k): json_ready(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(v) for v in value]
    if isinstance(value, np.generic):
        return json_ready(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Path):
        return str(value)
    return value
