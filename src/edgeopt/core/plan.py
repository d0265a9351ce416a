"""What will happen to every tensor, before it happens; and what did."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeopt.core.ggml import Ggml
from edgeopt.core.schemes import Affine

__all__ = ["PLAN_VERSION", "Change", "Choice", "Decision", "Plan"]


@dataclass(frozen=True)
class Decision:
    """What will happen to one tensor. ``scheme`` None means not quantized, and ``reason`` why.

    A tensor that is not quantized is kept as it is, unless ``method`` is ``cast``: then it is
    stored in fewer bits of float (form ``half``: float16). ``op`` is the operator (or, for a bare
    state dict, the kind of tensor) that uses it, ``form`` how the stored codes reach the
    arithmetic (``matmul-integer``, ``matmul-nbits``, ``folded``, ``gather``, ``qdq``, ``packed``,
    ``half``, ``keep``), ``nbytes`` what the stored form will take.
    """

    tensor: str
    op: str
    method: str
    form: str
    scheme: Affine | Ggml | None
    reason: str
    nbytes: int
    shape: tuple[int, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the tensor stays as it is: neither quantized nor cast."""
        return self.scheme is None and self.method != "cast"

    @property
    def affine(self) -> Affine | None:
        """The scheme, where it is an affine one: everywhere but in plans for GGUF."""
        return self.scheme if isinstance(self.scheme, Affine) else None

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        data["scheme"] = self.scheme.to_json() if self.scheme else None
        data["shape"] = list(self.shape)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        values = {f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data}
        scheme = values.get("scheme")
        stored = Ggml if scheme and scheme.get("type") == "ggml" else Affine
        values["scheme"] = stored.from_json(scheme) if scheme else None
        values["shape"] = tuple(values.get("shape", ()))
        return cls(**values)


@dataclass(frozen=True)
class Choice:
    """A graph-wide choice, with the timings (seconds, raw) of every candidate that was tried."""

    name: str
    value: str
    reason: str
    timings: Mapping[str, Sequence[float]] = field(default_factory=dict)


PLAN_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What will happen, before it happens: one decision a tensor, plus graph-wide choices.

    The same source and the same plan give the same bytes. ``digest`` leaves out timings and
    reasons: two plans that decide alike are the same plan.
    """

    source_sha256: str
    options: Mapping[str, Any]
    decisions: tuple[Decision, ...]
    choices: tuple[Choice, ...] = ()
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def choice(self, name: str, default: str = "") -> str:
        """The value of a graph-wide choice."""
        return next((c.value for c in self.choices if c.name == name), default)

    def digest(self) -> str:
        body = {
            "source": self.source_sha256,
            "options": dict(self.options),
            "choices": {c.name: c.value for c in self.choices},
            "decisions": [
                {k: v for k, v in d.to_json().items() if k != "reason"} for d in self.decisions
            ],
            "calibration": dict(self.calibration),
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "edgeopt_plan": PLAN_VERSION,
            "digest": self.digest(),
            "source_sha256": self.source_sha256,
            "options": dict(self.options),
            "choices": [
                {
                    "name": c.name,
                    "value": c.value,
                    "reason": c.reason,
                    "timings": {k: list(v) for k, v in c.timings.items()},
                }
                for c in self.choices
            ],
            "decisions": [d.to_json() for d in self.decisions],
            "calibration": dict(self.calibration),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Raises ValueError on another version, KeyError or TypeError on a malformed document."""
        if data.get("edgeopt_plan") != PLAN_VERSION:
            raise ValueError(
                f"plan version {data.get('edgeopt_plan')!r}, this edgeopt reads {PLAN_VERSION}"
            )
        return cls(
            source_sha256=data["source_sha256"],
            options=dict(data["options"]),
            decisions=tuple(Decision.from_json(d) for d in data["decisions"]),
            choices=tuple(
                Choice(c["name"], c["value"], c.get("reason", ""), c.get("timings", {}))
                for c in data["choices"]
            ),
            calibration=dict(data.get("calibration", {})),
        )


@dataclass(frozen=True)
class Change:
    """What did happen to one tensor. "Kept" always carries its reason in the decision.

    ``sqnr_db`` is the tensor's own signal to quantization noise, None where nothing was changed.
    """

    decision: Decision
    before: int
    after: int
    sqnr_db: float | None = None
