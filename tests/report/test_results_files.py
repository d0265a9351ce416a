"""A report is written as its name asks for, whole, or not at all."""

from __future__ import annotations

import base64
import builtins
import csv
import dataclasses
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.report import results_of

from edgeopt.core import Results
from edgeopt.errors import MissingExtraError, OutputError, UsageError
from edgeopt.numerics.derive import derive
from edgeopt.report.page import render
from edgeopt.report.page.render import results_page
from edgeopt.report.results_files import SUFFIXES, report_suffix, write_report


def test_json_reads_back(tmp_path: Path) -> None:
    results = results_of.hostile()
    path = write_report(results, tmp_path / "r.json")
    assert Results.load(path).to_json() == results.to_json()
    derived = json.loads(path.read_text(encoding="utf-8"))["derived"]
    assert derived == json.loads(json.dumps(derive(results).to_json()))


def test_every_form_begins_as_it_should(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    begins = {
        ".html": "<!doctype html>",
        ".md": "**weights.int8.safetensors**",
        ".csv": "subject,baseline,metric",
        ".json": "{",
        ".txt": "weights.int8.safetensors against",
    }
    assert set(begins) == set(SUFFIXES)
    for suffix, beginning in begins.items():
        path = write_report(results_of.weights(), tmp_path / f"r{suffix.upper()}")
        assert path.read_bytes().decode().startswith(beginning)
    with (tmp_path / "r.CSV").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) > 5


@pytest.mark.parametrize("name", ["r.pdf", "r", "html"])
def test_another_suffix_is_refused_before_anything_is_done(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"ends with \.html, \.md, \.csv, \.json, \.txt, not"):
        report_suffix(tmp_path / name)
    with pytest.raises(UsageError):
        write_report(results_of.single(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_report(results_of.single(), tmp_path / "nowhere" / "r.md")


def test_only_the_page_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name in ("vl_convert", "altair"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    for suffix in set(SUFFIXES) - {".html"}:
        write_report(results_of.single(), tmp_path / f"r{suffix}")
    with pytest.raises(MissingExtraError, match="vl-convert-python"):
        write_report(results_of.single(), tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_page_that_would_grow_too_large_is_thinned_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vl_convert")
    results = results_of.single()
    many = tuple(
        results_of.latency("tiny.onnx", 83e-6, 1, 4000) if m.metric == "latency" else m
        for m in results.measurements
    )
    results = dataclasses.replace(results, measurements=many)
    whole = results_page(results, derive(results))
    assert "thinned" not in whole
    limit = len(whole.encode()) - 40_000
    monkeypatch.setattr(render, "PAGE_LIMIT", limit)
    page = results_page(results, derive(results))
    assert len(page.encode()) < limit
    assert "The samples in this copy are thinned" in page
    packed = re.search(r'base64,([^"]+)" data-step="(\d+)"', page)
    assert packed is not None
    document = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    thinned = Results.from_json(document)
    (kept,) = thinned.of("tiny.onnx", "latency")
    (every,) = results.of("tiny.onnx", "latency")
    assert kept.values[0] == every.values[0][:: int(packed[2])]
    assert "thinned: one of" in thinned.warnings[-1]
    assert document["derived"] == json.loads(json.dumps(derive(results).to_json()))
