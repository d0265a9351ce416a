"""The headline claims what was measured, and no more."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from tests.report import results_of

from edgeopt.core import Fidelity, Results
from edgeopt.numerics.derive import Contrast, Derived, Figure, derive
from edgeopt.report.document import Document
from edgeopt.report.headline import headlines
from edgeopt.report.numbers import plain

BASE, OTHER = results_of.NAMES[:2]


def contrast(
    metric: str, ratio: float, verdict: str, statistic: str = "p50", **conditions: Any
) -> Contrast:
    figure = Figure(ratio, ratio * 0.98, ratio * 1.02, 640, 5, "ratio")
    where = results_of.conditions(**conditions)
    return Contrast(OTHER, BASE, metric, statistic, where, figure, verdict)


SMALLER = contrast("file", 0.254, "better", "exact")


def said(*contrasts: Contrast, results: Results | None = None, **changed: Any) -> str:
    """The one headline of two artifacts that compare as given."""
    kept = results or dataclasses.replace(results_of.two(), fidelity={}, quality=(), **changed)
    rows = derive(kept).rows
    more = [
        dataclasses.replace(row, conditions=c.conditions)
        for c in contrasts
        for row in rows
        if row.metric == c.metric == "latency"
    ]
    (headline,) = headlines(Document(kept, Derived((*more, *rows), contrasts)))
    assert (headline.subject, headline.baseline) == (OTHER, BASE)
    return plain(headline.phrase)


def test_the_issues_own_words() -> None:
    (headline,) = headlines(Document(results_of.two(), derive(results_of.two())))
    words = plain(headline.phrase)
    assert words.startswith("3.9x smaller, 3.0x faster, answers 99.6% the same")
    assert [claim.tone for claim in headline.claims] == ["good", "good", "even", "even"]
    assert headline.claims[-1].aside


@pytest.mark.parametrize(
    ("ratio", "verdict", "words"),
    [
        (0.38, "better", "2.6x faster"),
        (0.96, "better", "1.04x faster"),
        (1.3, "worse", "1.3x slower"),
        (0.9, "not significant", "no significant difference in speed"),
        (1.0, "same", "no significant difference in speed"),
        (0.5, "unknown", "speed undecided: too few samples"),
    ],
)
def test_only_significant_differences_are_claimed(ratio: float, verdict: str, words: str) -> None:
    assert said(SMALLER, contrast("latency", ratio, verdict)) == f"3.9x smaller, {words}"


def test_several_settings_that_agree_are_a_range() -> None:
    found = said(contrast("latency", 0.5, "better"), contrast("latency", 0.25, "better", threads=2))
    assert found == "2.0x to 4.0x faster"


def test_several_settings_that_differ_are_counted() -> None:
    mixed = [
        contrast("latency", 0.5, "better"),
        contrast("latency", 2.0, "worse", threads=2),
        contrast("latency", 1.0, "not significant", threads=4),
    ]
    assert said(*mixed) == (
        "2.0x faster in one of three settings and 2.0x slower in one of three settings"
    )


def test_the_same_size_and_a_larger_file_are_said() -> None:
    assert said(contrast("file", 1.0, "same", "exact")).startswith("the same size")
    assert said(contrast("file", 1.5, "worse", "exact")).startswith("1.5x larger")


def close(**changed: Any) -> Fidelity:
    return dataclasses.replace(results_of.close(31.24, None), **changed)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([close(top1=0.999), close(top1=0.9996)], "answers 99.9% the same"),
        ([close(top1=1.0)], "answers 100% the same"),
        ([close(sqnr_db=40.0), close(sqnr_db=20.0)], "answers within 10% of the baseline's"),
        ([close(sqnr_db=math.inf)], "answers identical"),
        ([close(sqnr_db=-math.inf)], "answers lost: no signal left"),
        ([close(sqnr_db=math.nan)], ""),
        (
            [close(sqnr_db=20.0, output="weights, the worst: blk.0.attn_q.weight")],
            "weights within 10% of the baseline's",
        ),
        ([close(finite=False)], "answers with NaN or infinity where the baseline does not"),
    ],
)
def test_the_worst_output_speaks_for_the_answers(outputs: list[Fidelity], words: str) -> None:
    kept = dataclasses.replace(results_of.two(), quality=(), fidelity={OTHER: tuple(outputs)})
    assert said(SMALLER, results=kept) == ", ".join(filter(None, ["3.9x smaller", words]))


def test_a_failure_is_said_and_nothing_after_it() -> None:
    results = results_of.failed()
    (headline,) = headlines(Document(results, derive(results)))
    assert plain(headline.phrase) == (
        "3.9x smaller, not measured, onnxruntime died of SIGSEGV while loading"
    )


def test_prompt_and_generation_are_told_apart() -> None:
    results = results_of.gguf()
    (headline,) = headlines(Document(results, derive(results)))
    words = plain(headline.phrase)
    assert "1.3x faster with the prompt, 2.2x faster at generating" in words


def test_weights_that_only_load() -> None:
    results = results_of.weights()
    (headline,) = headlines(Document(results, derive(results)))
    assert plain(headline.phrase) == "4.0x smaller, 3.1x faster to load"


def test_one_alone_is_described() -> None:
    results = results_of.single()
    (headline,) = headlines(Document(results, derive(results)))
    assert headline.baseline == ""
    assert plain(headline.phrase) == "812 B, 83.2 µs an inference"


def test_another_baseline_than_the_documents() -> None:
    results = results_of.three()
    derived = derive(results, results_of.NAMES[2])
    document = Document(results, derived)
    assert {h.baseline for h in headlines(document)} == {results_of.NAMES[2]}
    assert plain(headlines(document)[0].phrase).startswith("7.2x larger")
