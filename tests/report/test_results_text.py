"""Results in a terminal: 80 columns, headline first, nothing that a terminal would obey."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
from rich.console import Console
from tests.report import results_of

from edgeopt.core import Results
from edgeopt.numerics.derive import derive
from edgeopt.report.results_text import render_results

MAKERS = ("two", "three", "gguf", "weights", "failed", "single", "hostile")


def shown(results: Results, width: int = 80) -> str:
    out = io.StringIO()
    render_results(results, derive(results), Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("width", [60, 80, 140])
def test_fits_its_columns_in_plain_characters(maker: str, width: int) -> None:
    text = shown(getattr(results_of, maker)(), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.replace("\n", "").isprintable()


def test_headline_then_size_then_the_rest() -> None:
    text = shown(results_of.two(), 100)
    parts = ["3.9x smaller, 3.0x faster", "File size", "Latency", "Memory", "How close", "Warning"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places) and places[0] < 100
    assert "23,104,512 B" in text


def test_says_where_a_difference_is_not_significant() -> None:
    line = next(
        line
        for line in shown(results_of.three()).splitlines()
        if results_of.NAMES[2] in line and "4.10 ms" in line
    )
    assert line.rstrip().endswith("not significant")


def test_more_room_shows_more() -> None:
    assert "p95" not in shown(results_of.two(), 80)
    assert "p95" in shown(results_of.two(), 140)


def test_says_what_is_missing_failed_and_advised() -> None:
    results = results_of.failed()
    derived = derive(results)
    row = dataclasses.replace(derived.rows[0], advice=("close the browser",))
    derived = dataclasses.replace(derived, rows=(row, *derived.rows[1:]), warnings=("noisy",))
    out = io.StringIO()
    render_results(results, derived, Console(file=out, width=100, force_terminal=False))
    text = out.getvalue()
    assert "FAILED: minilm.int8.onnx: onnxruntime died of SIGSEGV" in text
    assert "Warning: noisy" in text
    assert "Advice: close the browser" in text
    assert "energy: unavailable, no powercap" in text


def test_few_samples_have_no_tail() -> None:
    text = shown(results_of.single(), 140)
    assert "p50" in text
    assert "p90" not in text and "p99" not in text


def test_only_those_that_took_turns_are_said_to_have() -> None:
    assert "side by side" in shown(results_of.two())
    assert "side by side" not in shown(results_of.single())
    two = results_of.two()
    merged = dataclasses.replace(
        two, settings={"documents": [{"subjects": [s.name]} for s in two.subjects]}
    )
    assert "side by side" not in shown(merged)


def test_what_is_not_known_of_the_weights_is_a_dash() -> None:
    two = results_of.two()
    unknown = dataclasses.replace(
        results_of.close(20.0, None, "weights, the worst: a"), cosine=math.nan, max_abs=math.nan
    )
    other = dataclasses.replace(unknown, sqnr_db=math.nan, top1=0.5, output="next token")
    text = shown(dataclasses.replace(two, fidelity={results_of.NAMES[1]: (unknown, other)}), 120)
    assert "not a number" not in text and "20.0 dB" in text
    broken = dataclasses.replace(other, finite=False)
    text = shown(dataclasses.replace(two, fidelity={results_of.NAMES[1]: (broken,)}), 120)
    assert "not finite" in text


def test_the_processes_of_the_figures_are_counted() -> None:
    assert "from 5 fresh processes" in shown(results_of.two()).replace("\n", " ")
    assert "from 1 to 5 fresh" in shown(only_one_process()).replace("\n", " ")


def only_one_process() -> Results:
    """Of the last artifact one process was measured before it failed."""
    two = results_of.two()
    last = two.subjects[-1].name
    return dataclasses.replace(
        two,
        measurements=tuple(
            dataclasses.replace(m, values=m.values[:1], blocks=m.blocks[:1])
            if m.subject == last
            else m
            for m in two.measurements
        ),
    )
