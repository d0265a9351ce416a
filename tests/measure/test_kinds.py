"""The worst kind of samples counts, and a probability next to nought is judged by its errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeopt.core import Fidelity
from edgeopt.measure.fidelity import FidelityMeter
from edgeopt.measure.kinds import worst_kind

RNG = np.random.default_rng(0)


def measured(
    rows: dict[str, tuple[np.ndarray, np.ndarray]], *, probability: bool = False
) -> Fidelity:
    meter = FidelityMeter("y", probability=probability)
    for kind, (reference, got) in rows.items():
        assert meter.add(reference, got, kind) is None
    return meter.result()


def decibels(reference: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(reference**2) / np.sum((reference - got) ** 2)))


def test_kinds_are_measured_apart():
    rows = {}
    for kind, error in (("loud", 0.01), ("soft", 0.1)):
        reference = RNG.normal(size=(1, 50))
        rows[kind] = (reference, reference + error * RNG.normal(size=(1, 50)))
    found = measured(rows)
    assert [k.kind for k in found.kinds] == ["loud", "soft"]
    for each in found.kinds:
        assert each.sqnr_db == pytest.approx(decibels(*rows[each.kind]))
    worst = worst_kind(found, None)
    assert (worst.kind, worst.db) == ("soft", found.kinds[1].sqnr_db)
    assert worst.db < found.sqnr_db  # which the loud ones had made up for


def test_next_to_nothing_is_held_against_a_hundredth_of_the_power():
    reference, small = np.full((1, 100), 1.0), np.full((1, 100), 1e-6)
    found = measured({"loud": (reference, reference * 1.001), "still": (small, small + 0.01)})
    power = (1 + 1e-12) / 2
    assert found.kinds[1].sqnr_db == pytest.approx(10 * math.log10(0.01 * power / 1e-4))


def test_no_kinds_no_change():
    reference = RNG.normal(size=(1, 20))
    found = measured({"": (reference, reference + 0.1)})
    assert found.kinds == ()
    assert worst_kind(found, 0.1).db == found.sqnr_db


def chance(low: float, error: float) -> tuple[np.ndarray, np.ndarray]:
    reference = np.full((1, 200), low)
    return reference, reference + error


def test_a_probability_near_nought_is_judged_by_its_errors():
    rows = {"voice": chance(0.9, 0.01), "silence": chance(0.001, 0.02)}
    found = measured(rows, probability=True)
    worst = worst_kind(found, 0.1, floor=20)
    assert worst.near == ("silence",)
    assert worst.largest == pytest.approx(0.02)
    assert worst.db == pytest.approx(decibels(*rows["voice"]))
    assert worst_kind(found, None, floor=20).near == ()  # a floor was named: decibels it is
    assert worst_kind(measured(rows), 0.1, floor=20).near == ()  # no probability


@pytest.mark.parametrize("second", [chance(0.001, 0.2), chance(0.48, 0.04)])
def test_a_large_error_or_another_decision_is_not_let_pass(second):
    found = measured({"voice": chance(0.9, 0.01), "noise": second}, probability=True)
    assert worst_kind(found, 0.1, floor=30).kind == "noise"


def test_what_nothing_moved_keeps_its_decibels():
    found = measured({"a": chance(0.001, 0.003), "b": chance(0.002, 0.003)}, probability=True)
    assert worst_kind(found, 0.1, floor=20).db == found.sqnr_db < 0


def test_values_beyond_one_are_no_probabilities():
    assert not measured(
        {"a": (np.full((1, 2), 1.5), np.full((1, 2), 1.4))}, probability=True
    ).probability


def test_a_single_number_is_held_against_what_it_is_elsewhere():
    one = np.ones((1, 1))
    found = measured({"a": (one, one), "b": (one * 1e-3, one * 1e-3 + 0.05)})
    assert found.kinds[1].sqnr_db == pytest.approx(10 * math.log10(0.5 / 0.05**2), abs=0.01)
