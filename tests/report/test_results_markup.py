"""Results as Markdown and as CSV, read back by their own rules."""

from __future__ import annotations

import csv
import io
import re

import pytest
from tests.report import results_of

from edgeopt.numerics.derive import derive
from edgeopt.report.results_csv import COLUMNS, results_csv
from edgeopt.report.results_markdown import results_markdown

MAKERS = ("two", "three", "gguf", "weights", "failed", "single", "hostile")


@pytest.mark.parametrize("maker", MAKERS)
def test_csv_has_every_figure_once(maker: str) -> None:
    results = getattr(results_of, maker)()
    derived = derive(results)
    text = results_csv(results, derived)
    assert text.count("\r\n") == text.count("\n") - text.replace("\r\n", "").count("\n")
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert tuple(lines[0]) == COLUMNS
    figures = [
        (row.subject, row.metric, statistic, figure)
        for row in derived.rows
        for statistic, figure in row.figures.items()
    ]
    for line, (subject, metric, statistic, figure) in zip(lines, figures, strict=False):
        assert line["subject"].lstrip("'") == subject
        assert (line["metric"], line["statistic"]) == (metric, statistic)
        assert float(line["value"]) == figure.value
        assert line["low"] == ("" if figure.low is None else repr(figure.low))
        assert (int(line["samples"]), line["unit"]) == (figure.samples, figure.unit)
    compared = [line for line in lines if line["verdict"]]
    assert len(compared) == len(derived.contrasts)
    assert [float(line["value"]) for line in compared] == [c.ratio.value for c in derived.contrasts]


def test_csv_carries_conditions_fidelity_and_quality() -> None:
    text = results_csv(results_of.three(), derive(results_of.three()))
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {line["threads"] for line in lines if line["metric"] == "latency"} == {"1", "2"}
    assert any(x["metric"] == "fidelity.top1" and x["value"] == "0.9961" for x in lines)
    assert any(x["metric"] == "quality.spearman" and x["value"] == "0.8189" for x in lines)


def test_a_spreadsheet_is_given_no_formula() -> None:
    results = results_of.renamed(results_of.two(), "=1+1", "@cmd")
    lines = list(csv.DictReader(io.StringIO(results_csv(results, derive(results)), newline="")))
    assert {line["subject"] for line in lines} == {"'=1+1", "'@cmd"}


@pytest.mark.parametrize("maker", MAKERS)
def test_markdown_tables_hold_together(maker: str) -> None:
    results = getattr(results_of, maker)()
    text = results_markdown(results, derive(results))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
        assert re.fullmatch(r"\|( -+:? \|)+", block.splitlines()[1])
    assert "\x1b" not in text
    assert not re.search(r"<\w", text)


def test_markdown_begins_with_the_headline() -> None:
    text = results_markdown(results_of.two(), derive(results_of.two()))
    assert text.startswith("**minilm.int8.onnx** against minilm.onnx: **3.9x smaller, 3.0x faster")
    assert "| 23.1 MB | 23,104,512 B | 3.9x smaller |" in text
    assert "### Environment" in text and "avx512\\_vnni" in text


def test_markdown_of_names_that_mean_something_to_it() -> None:
    text = results_markdown(results_of.hostile(), derive(results_of.hostile()))
    assert '&lt;script&gt;alert("x")&lt;/script&gt;' in text
    assert "\\|\\`\\*\\_=cmd()" in text
