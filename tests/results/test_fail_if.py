"""--fail-if against documents: what breaches, what noise excuses, what was never measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgeopt.core import Fidelity, Quality, Results, Subject, Unavailable
from edgeopt.errors import GateFailed, UsageError
from edgeopt.numerics.derive import Contrast, Derived, Figure, Row
from edgeopt.results.gate import check, enforce, judge

ONE = {"device": "cpu", "threads": 1, "batch": 1, "seq": None, "workload": "inference"}
TWO = {**ONE, "threads": 2}


def figure(value: float, low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value, low, high, 100, 5, "")


def row(subject: str, metric: str, conditions: dict[str, Any] | None = None, **f: Figure) -> Row:
    return Row(subject, metric, conditions or {}, f)


def contrast(metric: str, statistic: str, ratio: Figure, conditions: Any = None) -> Contrast:
    return Contrast("int8", "fp32", metric, statistic, conditions or {}, ratio, "")


def derived(*parts: Row | Contrast) -> Derived:
    return Derived(
        tuple(p for p in parts if isinstance(p, Row)),
        tuple(p for p in parts if isinstance(p, Contrast)),
        (),
    )


def document(
    verb: str = "compare", names: Sequence[str] = ("fp32", "int8"), **more: Any
) -> Results:
    subjects = tuple(Subject(n, f"{n}.onnx", "onnx", "onnxruntime", (), "") for n in names)
    return Results(verb, "", names[0], subjects, (), {}, {}, **more)


FOUND = derived(
    row("fp32", "file", exact=figure(4_000_000)),
    row("int8", "file", exact=figure(1_000_000)),
    contrast("file", "exact", figure(0.25)),
    row("fp32", "latency", ONE, p50=figure(0.010, 0.0099, 0.0101), p99=figure(0.012, 0.011, 0.02)),
    row("int8", "latency", ONE, p50=figure(0.011, 0.0108, 0.0112), p99=figure(0.013, 0.012, 0.02)),
    row("fp32", "latency", TWO, p50=figure(0.006, 0.0059, 0.0061)),
    row("int8", "latency", TWO, p50=figure(0.0066, 0.006, 0.007), throughput=figure(150, 145, 155)),
    contrast("latency", "p50", figure(1.10, 1.07, 1.13), ONE),
    contrast("latency", "p99", figure(1.08, None, None), ONE),
    contrast("latency", "p50", figure(1.10, 0.98, 1.2), TWO),
    row("int8", "memory.peak", ONE, median=figure(50e6, 50e6, 51e6)),
)


def found(expression: str, results: Results | None = None, of: Derived = FOUND) -> list[str]:
    return [b.subject for b in check([expression], results or document(), of)]


@pytest.mark.parametrize(
    ("expression", "breached"),
    [
        # the ratio's interval is 1.07 to 1.13 at one thread, 0.98 to 1.2 at two
        ("latency.p50 > +5%", True),
        ("latency.p50 > +6.9%", True),
        ("latency.p50 > +8%", False),
        ("latency.p50@threads=2 > +5%", False),
        ("latency.p50@threads=1 > +5%", True),
        ("latency.p50 < -5%", False),
        # 10 ms times 0.07 to 0.13
        ("latency.p50 > +0.69ms", True),
        ("latency.p50 > +0.71ms", False),
        # the figure's own interval: 10.8 to 11.2 ms
        ("latency.p50@threads=1 > 10.7ms", True),
        ("latency.p50@threads=1 > 10.9ms", False),
        ("latency.p50@threads=1 < 11.3ms", True),
        ("latency.p50@threads=1 < 11.1ms", False),
        ("throughput@threads=2 < 156/s", True),
        ("throughput@threads=2 < 152/s", False),
        # exact
        ("file > 1MB", False),
        ("file >= 1MB", True),
        ("file < 1001 kB", True),
        ("file > -76%", True),
        ("file > -75%", False),
        ("file < -2.9MB", True),
        ("memory.peak > 49MB", True),
        # together
        ("file < 2MB and latency.p50 > +5%", True),
        ("file > 2MB and latency.p50 > +5%", False),
        ("file > 2MB or latency.p50 > +5%", True),
        ("file > 2MB or latency.p50 > +50%", False),
    ],
)
def test_what_breaches(expression: str, breached: bool) -> None:
    assert found(expression) == (["int8"] if breached else [])


def test_what_noise_may_explain_is_told_and_fails_nothing() -> None:
    (uncertain,) = judge(["latency.p50@threads=2 > +5%"], document(), FOUND)
    assert not uncertain.certain
    assert enforce(["latency.p50@threads=2 > +5%"], document(), FOUND) == [uncertain]
    assert "+10.00% (95% interval -2.00% to +20.00%)" in str(uncertain)
    assert judge(["latency.p50@threads=2 > +11%"], document(), FOUND) == []


def test_of_whom_an_absolute_limit_is_asked() -> None:
    assert found("file > 500kB") == ["int8"]  # a comparison spares its baseline
    assert found("file > 500kB", document("bench")) == ["fp32", "int8"]
    assert found("file[fp32] > 500kB") == ["fp32"]
    assert found("file[fp32] > 500kB and file[int8] > 500kB") == ["fp32"]
    alone = document("compare", ["fp32"])
    assert found("file > 500kB", alone) == ["fp32"]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("load.cold > 2s", r"load.cold of int8 was not measured; measured: file, latency, mem"),
        ("memory.gpu > 1MB", r"memory.gpu of int8 was not measured \(no NVIDIA driver\)"),
        ("latency.p50@threads=8 > 1ms", "was not measured so; it was with .*threads=1"),
        ("latency.p99 > +5%", r"too few samples to be compared"),
        ("latency.p95 > 5ms", "latency.p95 of int8 has too few samples.*or ask about p50, p99"),
        ("memory.peak > +5%", "memory.peak of fp32, the baseline, was not measured"),
        ("file[int4] > 5MB", "there is no 'int4'; measured: fp32, int8"),
        ("file[fp32] > +5%", "fp32 is the baseline that file is taken against"),
        ("fidelity.top1 < 99%", "fidelity of int8 was not measured"),
        ("quality.accuracy < 99%", "quality.accuracy of int8 was not measured"),
        ("file > 1MB and load.cold > 2s", "load.cold of int8 was not measured"),
        ("file > 1TB or load.cold > 2s", "load.cold of int8 was not measured"),
    ],
)
def test_what_was_not_measured_never_passes(expression: str, says: str) -> None:
    results = document(unavailable=(Unavailable("", "memory.gpu", "no NVIDIA driver"),))
    with pytest.raises(UsageError, match=says) as caught:
        check([expression], results, FOUND)
    assert "\n" not in str(caught.value)


def test_without_a_baseline_there_is_no_change() -> None:
    alone = document("bench", ["int8"])
    with pytest.raises(UsageError, match="taken against a baseline, and there is none"):
        check(["latency > +5%"], alone, FOUND)
    with pytest.raises(UsageError, match="there is none"):
        check(["fidelity.top1 < 99%"], alone, FOUND)


def test_why_a_failed_artifact_has_no_figures() -> None:
    results = document()
    crashed = dataclasses.replace(results.subjects[1], failure="the worker died from SIGSEGV")
    results = dataclasses.replace(results, subjects=(results.subjects[0], crashed))
    with pytest.raises(UsageError, match=r"first of int8 was not measured \(the worker died from"):
        check(["first > 1s"], results, FOUND)


def fidelity(output: str = "y", **changed: Any) -> Fidelity:
    values = {"sqnr_db": 33.0, "cosine": 0.999, "max_abs": 0.1, "top1": 0.985, "kl": 0.01}
    return Fidelity(
        output, **{**values, "finite": True, "constant": False, "samples": 8, **changed}
    )


def test_fidelity_is_that_of_the_worst_output() -> None:
    outputs = (fidelity(), fidelity("z", sqnr_db=20.0, top1=None))
    results = document(fidelity={"int8": outputs})
    assert found("fidelity.sqnr_db < 30", results) == ["int8"]
    assert found("fidelity.sqnr_db@output=y < 30", results) == []
    assert found("fidelity.top1 < 98%", results) == []
    assert found("fidelity.top1 < 99%", results) == ["int8"]
    with pytest.raises(UsageError, match="int8 has no top1: outputs are y, z"):
        check(["fidelity.top1@output=z < 99%"], results, FOUND)
    # class numbers that differ have no SQNR
    results = document(fidelity={"int8": (fidelity(sqnr_db=math.nan),)})
    with pytest.raises(UsageError, match="int8 has no sqnr_db"):
        check(["fidelity.sqnr_db < 10"], results, FOUND)


def test_nan_in_an_output_breaches_whatever_is_asked_of_fidelity() -> None:
    results = document(fidelity={"int8": (fidelity(), fidelity("z", finite=False))})
    for expression in ("fidelity.sqnr_db < 3", "fidelity.kl > 5"):
        (breach,) = check([expression], results, FOUND)
        assert "of z is NaN or Inf where the baseline's is finite" in str(breach)


def quality(subject: str, value: float, scores: Sequence[float] = ()) -> Quality:
    return Quality(subject, "accuracy", value, True, len(scores), "", tuple(scores))


def test_task_quality_without_scores_is_compared_as_it_stands() -> None:
    results = document(quality=(quality("fp32", 0.90), quality("int8", 0.89)))
    assert found("quality.accuracy < -0.005", results) == ["int8"]
    assert found("quality.accuracy < -0.02", results) == []
    assert found("quality.accuracy < -1%", results) == ["int8"]
    assert found("quality.accuracy < -2%", results) == []
    assert found("quality.accuracy < 90%", results) == ["int8"]


def test_task_quality_with_scores_is_compared_sample_by_sample() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.9).astype(float)
    few, many = base.copy(), base.copy()
    few[np.flatnonzero(base)[:2]] = 0  # half a point fewer, and perhaps 1.25: not to be excluded
    many[np.flatnonzero(base)[:40]] = 0
    for scores, expected in ((few, ["int8"]), (many, ["int8"])):
        results = document(
            quality=(quality("fp32", base.mean(), base), quality("int8", scores.mean(), scores))
        )
        assert found("quality.accuracy < -0.004", results) == expected
        assert len(judge(["quality.accuracy < -0.004"], results, FOUND)) == 1
        assert found("quality.accuracy < -0.2", results) == [], "the whole interval is within"
    same = document(
        quality=(quality("fp32", base.mean(), base), quality("int8", base.mean(), base))
    )
    assert found("quality.accuracy < -0.004", same) == []


def test_a_metric_that_is_no_number_is_no_pass() -> None:
    results = document(quality=(quality("fp32", 0.9), quality("int8", math.nan)))
    for expression in ("quality.accuracy < 90%", "quality.accuracy < -0.1"):
        with pytest.raises(UsageError, match=r"quality\.accuracy of int8 is nan"):
            check([expression], results, FOUND)
    zero = document(quality=(quality("fp32", 0.0), quality("int8", 0.0)))
    with pytest.raises(UsageError, match="of which there are no percents"):
        check(["quality.accuracy < -5%"], zero, FOUND)


def test_a_command_ends_with_the_first_breach() -> None:
    with pytest.raises(GateFailed, match=r"^int8: latency.p50 \(.*\+10.00%.*; and 1 more$") as it:
        enforce(["latency > +5%", "file < 2MB"], document(), FOUND)
    assert it.value.exit_code == 4
    assert enforce(["file > 2MB"], document(), FOUND) == []
    assert enforce([], document(), FOUND) == []


def test_a_command_ends_with_the_metric_that_could_not_be_taken() -> None:
    lost = Unavailable("int8", "quality.accuracy", "no labels")
    with pytest.raises(UsageError, match="--metric accuracy of int8: no labels"):
        enforce(["latency > +5%"], document(unavailable=(lost,)), FOUND)
