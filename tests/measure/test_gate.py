"""The gate: each reason to fail, alone, and what is left unproven."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from edgeopt.core import Affine, Change, Decision, Fidelity, Measurement, OfKind, Verdict
from edgeopt.errors import UsageError
from edgeopt.measure.gate import FLOORS, ROW_MARGIN_DB, judge
from edgeopt.measure.pair import Mates, PairResult

GOOD = Fidelity("y", 35.0, 0.999, 0.1, 0.99, 0.001, True, False, 8)


def pair(*outputs: Fidelity, ratio: float = 0.5, **more: Any) -> PairResult:
    def latency(subject: Any, value: float) -> Measurement:
        return Measurement(subject, "latency", "s", {}, ((value,) * 8,) * 2)

    return PairResult(
        fidelity=outputs or (GOOD,),
        measurements=(latency("source", 1.0), latency("artifact", ratio)),
        **more,
    )


def verdict(result: PairResult | None = None, **changes: Any) -> Verdict:
    asked: dict[str, Any] = {
        "bits": 8,
        "min_sqnr": None,
        "prefer": "balanced",
        "coverage": {"share": 0.98},
        "sizes": (100, 30),
        "quantized": True,
    }
    return judge(result or pair(), **{**asked, **changes})


def failed(result: Verdict) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


def only(**changes: float | bool | str | None) -> PairResult:
    return pair(dataclasses.replace(GOOD, **changes))  # type: ignore[arg-type]


def test_a_good_one_is_proven() -> None:
    found = verdict()
    assert found.proven
    assert found.unproven == ()
    assert all(check.found and check.limit for check in found.checks)


@pytest.mark.parametrize(
    ("result", "changes", "name"),
    [
        (None, {"coverage": {"share": 0.0}}, "something quantized"),
        (None, {"coverage": {}}, "something quantized"),
        (None, {"sizes": (100, 100)}, "file smaller"),
        (None, {"sizes": (100, 120), "bits": 4}, "file smaller"),
        (only(sqnr_db=19.9), {}, "fidelity"),
        (only(sqnr_db=7.9), {"bits": 4}, "fidelity"),
        (only(sqnr_db=29.9), {"bits": None}, "fidelity"),
        (only(sqnr_db=35.0), {"min_sqnr": 40.0}, "fidelity"),
        (only(sqnr_db=-math.inf), {"bits": 4}, "fidelity"),
        (only(sqnr_db=math.nan, top1=0.89), {}, "same integers"),
        (only(finite=False), {}, "output finite"),
        (only(constant=True), {}, "source output varies"),
        (pair(ratio=1.3), {}, "not slower"),
        (PairResult(failure="a.onnx: cannot load it"), {}, "loads and runs"),
    ],
)
def test_each_reason_to_fail(result: PairResult | None, changes: dict[str, Any], name: str) -> None:
    found = verdict(result, **changes)
    assert failed(found) == [name]
    assert not found.proven
    (check,) = (c for c in found.checks if c.name == name)
    assert check.advice
    assert "\n" not in check.found


def test_the_floors() -> None:
    assert (FLOORS[8], FLOORS[4]) == (20.0, 8.0)
    assert verdict(only(sqnr_db=20.0)).proven
    assert verdict(only(sqnr_db=8.0), bits=4).proven
    assert verdict(only(sqnr_db=12.0), min_sqnr=10.0).proven
    assert verdict(only(sqnr_db=math.inf)).proven


def test_the_worst_output_counts() -> None:
    bad = dataclasses.replace(GOOD, output="bad", sqnr_db=3.0)
    found = verdict(pair(GOOD, bad))
    assert failed(found) == ["fidelity"]
    assert any("3.0 dB (bad)" in check.found for check in found.checks)


def test_one_constant_output_among_others_is_unproven_not_failed() -> None:
    still = dataclasses.replace(GOOD, output="still", constant=True, sqnr_db=-math.inf)
    found = verdict(pair(GOOD, still))
    assert found.proven
    assert found.unproven == ("output still: constant in the source",)


@pytest.mark.parametrize("prefer", ["size", "memory"])
def test_speed_is_not_asked_for_where_something_else_is(prefer: str) -> None:
    found = verdict(pair(ratio=1.3), prefer=prefer)
    assert found.proven
    assert any("not asked" in check.limit for check in found.checks)


def test_an_export_need_be_neither_smaller_nor_quantized() -> None:
    found = verdict(bits=None, sizes=(100, 120), coverage={}, quantized=False)
    assert found.proven
    assert "file smaller" not in [check.name for check in found.checks]


def test_what_was_not_measured_is_unproven() -> None:
    found = verdict(PairResult(fidelity=(GOOD,), unproven=("memory: not said",)))
    assert found.proven
    assert found.unproven == ("memory: not said", "speed: no latency was measured")
    broken = verdict(PairResult(failure="no"))
    assert "does not run" in broken.unproven[-1]


def test_nothing_compared_proves_nothing() -> None:
    found = verdict(dataclasses.replace(pair(), fidelity=()))
    assert failed(found) == ["source output varies"]


@pytest.mark.parametrize("floor", [math.nan, math.inf, -math.inf])
def test_a_floor_must_be_a_number(floor: float) -> None:
    with pytest.raises(UsageError, match="not a number of decibels"):
        verdict(min_sqnr=floor)


def changed(bits: int, db: float | None, name: str = "w") -> Change:
    scheme = Affine(bits, 32)
    return Change(Decision(name, "MatMul", "mse", "folded", scheme, "", 64, (8, 8)), 256, 64, db)


@pytest.mark.parametrize(("bits", "floor"), [(8, 20.0), (4, 6.0), (2, 1.0)])
def test_each_tensor_has_a_floor_of_its_own(bits: int, floor: float) -> None:
    """However close the outputs are: a tensor that says other numbers fails, the worst is named."""
    good, bad = changed(bits, floor), changed(bits, floor - 0.1, "bad")
    assert verdict(changes=[good, changed(bits, None), changed(bits, math.inf)]).proven
    found = verdict(changes=[good, bad])
    assert failed(found) == ["each tensor"]
    assert any("(bad, " in c.found for c in found.checks if not c.passed)


def test_another_floor_for_outputs_leaves_the_tensors_theirs() -> None:
    assert failed(verdict(changes=[changed(8, 0.0)], min_sqnr=1.0)) == ["each tensor"]


def test_a_file_that_holds_something_else_is_a_failed_proof() -> None:
    found = verdict(changes=[changed(8, 30.0)], misplaced=["w: 64 in 8 bits", "v"])
    assert failed(found) == ["file as planned"]
    assert any(c.found.endswith("and 1 more") for c in found.checks if not c.passed)


def test_answers_count_beside_decibels() -> None:
    """14% of the answers of a classifier changed, and 13.9 dB are over the floor at 4 bits."""
    worse = only(sqnr_db=13.9, top1=0.86, rows=2000)
    assert failed(verdict(worse, bits=4, given=True)) == ["same answers"]
    assert verdict(only(sqnr_db=13.9, top1=0.9, rows=2000), bits=4, given=True).proven
    # on inputs that nobody gave there are no answers
    assert verdict(worse, bits=4).proven
    # a floor of decibels is one of decibels: answers have a floor, and an option, of their own
    assert failed(verdict(worse, bits=4, given=True, min_sqnr=8.0)) == ["same answers"]
    assert verdict(worse, bits=4, given=True, min_same=0.8).proven
    assert failed(verdict(worse, bits=4, min_same=0.9)) == ["same answers"]
    assert failed(verdict(only(top1=0.999, rows=2000), given=True, min_same=1)) == ["same answers"]


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan, 90])
def test_a_share_of_answers_is_from_nought_to_one(share: float) -> None:
    with pytest.raises(UsageError, match=r"--min-same .*share from 0 to 1"):
        verdict(min_same=share)


@pytest.mark.parametrize(
    "output",
    [
        {"output": "sentence_embedding"},
        {"output": "last_hidden_state"},
        {"top1": None},
        {"rows": 4, "top1": 0.75},  # one answer of four
    ],
)
def test_what_is_no_classification_or_a_single_answer(output: dict[str, Any]) -> None:
    changes = {"rows": 2000, "top1": 0.5, **output}
    assert verdict(only(**changes), given=True).proven


def mates(alone: float, beside: float) -> PairResult:
    return dataclasses.replace(pair(), mates=Mates(8, "y", alone, beside, alone - beside))


def test_a_row_that_others_take_down_fails() -> None:
    assert failed(verdict(mates(38.0, 3.0))) == ["rows in a batch"]
    assert failed(verdict(mates(38.0, 19.0 - ROW_MARGIN_DB))) == ["rows in a batch"]
    assert verdict(mates(38.0, 20.0 - ROW_MARGIN_DB)).proven
    # a row that is no better alone does not accuse its neighbours
    assert verdict(mates(12.0, 3.0)).proven


FAILING = {
    "fidelity": only(sqnr_db=-5.0),
    "same integers": only(sqnr_db=math.nan, top1=0.1),
    "output finite": only(finite=False),
    "source output varies": only(constant=True),
    "not slower": pair(ratio=1.3),
    "same answers": only(sqnr_db=50.0, top1=0.1, rows=100),
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bits", [16, 8, 4, None])
@pytest.mark.parametrize("name", list(FAILING))
def test_advice_is_never_what_was_given(name: str, bits: int | None, given: bool) -> None:
    found = verdict(FAILING[name], bits=bits, given=given)
    advice = " ".join(check.advice for check in found.checks if not check.passed)
    assert not (given and "--data" in advice), advice
    assert not (bits == 8 and "--bits 8" in advice), advice
    assert not (bits == 4 and "--bits 4" in advice), advice
    assert not (bits != 16 and "leave out --half" in advice), advice


def of_kinds(**db: float) -> Fidelity:
    kinds = tuple(OfKind(kind, value, 0.05, 1.0) for kind, value in db.items())
    return dataclasses.replace(GOOD, sqnr_db=33.0, kinds=kinds, probability=True)


def test_the_worst_kind_of_inputs_counts() -> None:
    found = verdict(pair(dataclasses.replace(of_kinds(voice=40.0, tone=12.0), probability=False)))
    (check,) = [check for check in found.checks if check.name == "fidelity"]
    assert not check.passed
    assert "12.0 dB" in check.found
    assert "worst on tone" in check.found


def test_a_probability_near_nought_is_said_to_be_judged_by_its_errors() -> None:
    found = verdict(pair(of_kinds(voice=40.0, silence=-4.0)))
    (check,) = [check for check in found.checks if check.name == "near nought"]
    assert check.passed
    assert "0.05" in check.found
    assert "silence" in check.found
    assert found.proven
    asked = verdict(pair(of_kinds(voice=40.0, silence=-4.0)), min_sqnr=15.0)
    assert [check.name for check in asked.checks if not check.passed] == ["fidelity"]
