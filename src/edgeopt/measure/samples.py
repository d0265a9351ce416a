"""What the workers of one trial have given so far, made into measurements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgeopt.core import METRICS, Measurement, Unavailable
from edgeopt.numerics.steady import steady_start

__all__ = ["RawSamples"]

_MEMORY = ("baseline", "peak", "anonymous", "mapped", "other", "pss", "gpu")


class RawSamples:
    """Raw values by metric, one tuple a process."""

    def __init__(self, subject: str, conditions: Mapping[str, Any]) -> None:
        self._subject = subject
        self._conditions = dict(conditions)
        self._values: dict[str, list[tuple[float, ...]]] = {}
        self._how: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._turns: list[list[list[float]]] = []
        #: Joules and inferences of each process: counters move too slowly for one turn alone.
        self._joules: list[tuple[float, int]] = []
        self._unverified: dict[str, None] = {}

    def add(self, metric: str, *values: float) -> None:
        self._values.setdefault(metric, []).append(values)

    def missing(self, metric: str, reason: str) -> None:
        self._missing[metric] = reason

    def cold(self, seconds: float, verified: bool, reason: str) -> None:
        self.add("load.cold", seconds)
        if not verified:
            self._unverified[reason] = None

    def begin_turns(self) -> None:
        """A new process begins to take turns."""
        self._turns.append([])
        self._joules.append((0.0, 0))

    def turn(self, answer: Mapping[str, Any]) -> None:
        samples = [float(value) for value in answer["samples"]]
        self._turns[-1].append(samples)
        energy = answer.get("energy")
        if energy is None:
            return
        if energy["joules"] is None:
            self.missing("energy", energy["reason"])
        else:
            self._how["energy"] = energy["how"]
            joules, count = self._joules[-1]
            self._joules[-1] = (joules + energy["joules"], count + int(answer["runs"]))

    def memory(self, reading: Mapping[str, Any]) -> None:
        """A footprint: bytes by kind, None where the system does not say, and how it was read."""
        for kind in _MEMORY:
            metric = f"memory.{kind}"
            value = reading.get(kind)
            if value is None:
                self.missing(metric, reading.get(f"{kind}_how") or "the system does not say")
            else:
                self.add(metric, float(value))
                self._how[metric] = str(reading.get(f"{kind}_how", ""))
        self._how["memory.peak"] = str(reading.get("how", ""))

    def measurements(self) -> Iterable[Measurement]:
        for metric, values in self._values.items():
            yield self._measurement(metric, values)
        if any(turns for turns in self._turns):
            yield from self._steady()
        energy = [(joules / count,) for joules, count in self._joules if count]
        if energy:
            yield self._measurement("energy", energy)

    def _steady(self) -> Iterable[Measurement]:
        """Samples before the steady state are warm-up, the others latency, turn by turn."""
        before: list[tuple[float, ...]] = []
        values: list[tuple[float, ...]] = []
        blocks: list[tuple[int, ...]] = []
        for turns in self._turns:
            flat = [value for turn in turns for value in turn]
            start = steady_start(flat) or 0
            before.append(tuple(flat[:start]))
            values.append(tuple(flat[start:]))
            counts, left = [], start
            for turn in turns:
                dropped = min(left, len(turn))
                left -= dropped
                # A turn of warm-up alone stays as an empty block: turns keep their numbers.
                counts.append(len(turn) - dropped)
            blocks.append(tuple(counts))
        if any(before):
            yield self._measurement("warmup", before)
        never = self._never_steady()
        how = f"never steady in {never} of {len(self._turns)} processes" if never else ""
        yield self._measurement("latency", values, blocks, how)

    def _never_steady(self) -> int:
        return sum(
            steady_start([value for turn in turns for value in turn]) is None
            for turns in self._turns
        )

    def _measurement(
        self,
        metric: str,
        values: Iterable[tuple[float, ...]],
        blocks: Iterable[tuple[int, ...]] = (),
        how: str = "",
    ) -> Measurement:
        how = how or self._how.get(metric, "")
        if metric == "load.cold" and self._unverified:
            how = f"unverified: {next(iter(self._unverified))}"
        return Measurement(
            self._subject,
            metric,
            METRICS[metric].unit,
            self._conditions,
            tuple(values),
            tuple(blocks),
            how,
        )

    def unavailable(self) -> Iterable[Unavailable]:
        for metric, reason in self._missing.items():
            if metric not in self._values and not (metric == "energy" and self._has_energy()):
                yield Unavailable(self._subject, metric, reason)

    def _has_energy(self) -> bool:
        return any(count for _, count in self._joules)

    def warnings(self) -> Iterable[str]:
        """What the samples alone do not tell: whether they are steady is derived of them."""
        for reason in self._unverified:
            yield f"{self._subject}: cold load unverified: {reason}"
