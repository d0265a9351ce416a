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
from edgeopt.core.typed import WrongPart, read

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
        """Raises ValueError on another version, and for a part that is missing or of the wrong
        kind; it names the part's place."""
        version = data.get("edgeopt_plan") if isinstance(data, Mapping) else None
        if version != PLAN_VERSION:
            raise ValueError(f"plan version {version!r}, this edgeopt reads {PLAN_VERSION}")
        try:
            written = read(_PlanFile, data)
            return cls(
                source_sha256=written.source_sha256,
                options=written.options,
                decisions=tuple(_decision(d, i) for i, d in enumerate(written.decisions)),
                choices=written.choices,
                calibration=written.calibration,
            )
        except WrongPart as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class _WrittenDecision:
    """A decision as it stands in a file."""

    tensor: str
    op: str
    method: str
    form: str
    scheme: Mapping[str, Any] | None
    reason: str
    nbytes: int
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class _PlanFile:
    """A plan as it stands in a file."""

    edgeopt_plan: int
    source_sha256: str
    options: Mapping[str, Any]
    decisions: tuple[_WrittenDecision, ...]
    choices: tuple[Choice, ...]
    digest: str = ""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    artifact: Mapping[str, Any] = field(default_factory=dict)


def _decision(written: _WrittenDecision, index: int) -> Decision:
    values = {f.name: getattr(written, f.name) for f in dataclasses.fields(written)}
    if written.scheme is None:
        return Decision(**values)
    place = f"decisions[{index}].scheme"
    body = {key: value for key, value in written.scheme.items() if key != "type"}
    if written.scheme.get("type") == "ggml":
        name = read(str, body.get("name"), f"{place}.name")
        return Decision(**{**values, "scheme": Ggml.from_json({"name": name})})
    return Decision(**{**values, "scheme": read(Affine, body, place)})


@dataclass(frozen=True)
class Change:
    """What did happen to one tensor. "Kept" always carries its reason in the decision.

    ``sqnr_db`` is the tensor's own signal to quantization noise, None where nothing was changed.
    """

    decision: Decision
    before: int
    after: int
    sqnr_db: float | None = None
