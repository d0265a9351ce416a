"""Charts: valid Vega-Lite by its own schema, drawn as files, and right in what they claim."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tests.report import results_of

from edgeopt.errors import MissingExtraError, OutputError, UsageError
from edgeopt.numerics.derive import derive
from edgeopt.report.charts import charts, write_charts
from edgeopt.report.document import Document
from edgeopt.report.numbers import plain
from edgeopt.report.pareto import points
from edgeopt.report.plots.chart import INKS, NARROW, WIDE, Marks, subject_inks
from edgeopt.report.plots.distribution import distributions

MAKERS = ("two", "three", "gguf", "weights", "failed", "single", "hostile")


def document(maker: str) -> Document:
    results = getattr(results_of, maker)()
    return Document(results, derive(results))


@pytest.fixture(scope="module")
def schema() -> Any:
    """Vega-Lite's own schema, which Altair carries."""
    altair = pytest.importorskip("altair")
    jsonschema = pytest.importorskip("jsonschema")
    path = Path(altair.__file__).parent / "vegalite" / "v6" / "schema" / "vega-lite-schema.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    return jsonschema.Draft7Validator(whole)


@pytest.mark.parametrize("maker", ["three", "single"])
def test_specifications_are_vega_lite(maker: str, schema: Any) -> None:
    for chart in charts(document(maker)):
        specification = json.loads(json.dumps(chart.draw(WIDE, Marks())))
        # data is ours and long: the schema has nothing to say about it
        for part in specification["layer"]:
            part["data"]["values"] = part["data"]["values"][:2]
        assert not [error.message for error in schema.iter_errors(specification)], chart.name


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_bars_begin_at_zero_and_marks_carry_their_numbers(maker: str, width: int) -> None:
    for chart in charts(document(maker)):
        marks = Marks()
        specification = chart.draw(width, marks)
        padding = specification["padding"]
        assert specification["width"] + padding["left"] + padding["right"] == width
        assert chart.alternative and chart.title
        for part in specification["layer"]:
            for value in part["data"]["values"]:
                if "start" in value:
                    number = marks.known[int(value["mark"][1:])].number
                    assert number is not None
                    assert value["end"] - value["start"] == pytest.approx(number.value)
                    assert part["encoding"]["x"]["scale"]["domain"][0] == 0


def test_what_there_is_nothing_of_is_not_drawn() -> None:
    assert [chart.name for chart in charts(document("weights"))] == ["size", "loading"]
    names = [chart.name for chart in charts(document("single"))]
    assert names == ["size", "latency", "distribution-1", "loading"]


def test_a_tail_far_out_leaves_room_for_the_bars() -> None:
    results = results_of.two()
    slow = [
        m if m.metric != "latency" else results_of.with_tail(m, share=0.02, times=30.0)
        for m in results.measurements
    ]
    results = dataclasses.replace(results, measurements=tuple(slow))
    found = {c.name: c for c in charts(Document(results, derive(results)))}
    specification = found["latency"].draw(WIDE, Marks())
    longest = max(row["end"] for row in specification["layer"][0]["data"]["values"])
    x = specification["layer"][0]["encoding"]["x"]
    assert x["scale"]["domain"][1] < 3 * longest
    assert "only in the table" in found["latency"].caption
    spread = found["distribution-1"].draw(WIDE, Marks())["layer"][0]["encoding"]["y"]
    assert spread["scale"]["type"] == "log"


def test_percentiles_end_where_samples_do_not_support_them() -> None:
    (chart,) = distributions(document("two"))
    layers = chart.draw(WIDE, Marks())["layer"]
    process, whole = (max(v["place"] for v in part["data"]["values"]) for part in layers[:2])
    assert process == pytest.approx(-math.log10(6.4 / 640), abs=1e-3)
    assert whole == pytest.approx(-math.log10(6.4 / 3200), abs=1e-3)
    ends = {v["time"] for v in layers[1]["data"]["values"] if v["place"] == 0}
    fastest = {
        min(min(values) for values in m.values)
        for m in results_of.two().measurements
        if m.metric == "latency"
    }
    assert sorted(ends) == pytest.approx(sorted(fastest), rel=1e-4)


# ---------------------------------------------------------------------------------------------
# the Pareto front


def front(maker: str, **changed: Any) -> dict[str, bool]:
    results = dataclasses.replace(getattr(results_of, maker)(), **changed)
    return {p.name: p.front for p in points(Document(results, derive(results)))}


def test_closeness_keeps_the_baseline_on_the_front() -> None:
    assert front("three") == dict.fromkeys(results_of.NAMES, True)


def test_without_closeness_the_smaller_and_faster_wins() -> None:
    a, b, c = results_of.NAMES
    # c is smaller than b but slower; a is larger than c and, within the noise, as fast
    assert front("three", fidelity={}) == {a: False, b: True, c: True}


def test_points_say_how_well_the_task_is_done() -> None:
    said = {p.name: plain(p.task) for p in points(document("three"))}
    scores = ("spearman 0.8203", "spearman 0.8189", "spearman 0.8011")
    assert said == dict(zip(results_of.NAMES, scores, strict=True))
    # of one that was not scored nothing can be said beside the others
    some = dataclasses.replace(results_of.three(), quality=results_of.three().quality[:2])
    assert not any(p.task for p in points(Document(some, derive(some))))


def test_one_without_latency_is_left_out() -> None:
    assert front("failed") == {results_of.NAMES[0]: True}
    assert front("weights") == {}


# ---------------------------------------------------------------------------------------------
# files


def test_charts_are_files_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    results = results_of.hostile()
    written = write_charts(results, derive(results), tmp_path / "charts")
    assert [path.name for path in written][:2] == ["size.svg", "latency.svg"]
    for path in written:
        root = ElementTree.parse(path).getroot()
        assert root.get("role") == "img" and len(root.get("aria-label", "")) > 40
        assert root[0].tag.endswith("title") and root[0].text
        assert "var(--" not in path.read_text(encoding="utf-8")
        assert not root.findall(".//{*}script")
    assert sorted(p.name for p in (tmp_path / "charts").iterdir()) == sorted(
        p.name for p in written
    )


def test_charts_as_pictures(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    results = results_of.weights()
    for path in write_charts(results, derive(results), tmp_path, "png"):
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width >= 2 * WIDE and height > 200


def test_another_format_is_refused(tmp_path: Path) -> None:
    results = results_of.single()
    with pytest.raises(UsageError, match=r"charts as pdf; use svg or png"):
        write_charts(results, derive(results), tmp_path, "pdf")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    (tmp_path / "taken").write_text("")
    results = results_of.single()
    with pytest.raises(OutputError, match="taken"):
        write_charts(results, derive(results), tmp_path / "taken" / "charts")


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "vl_convert":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    results = results_of.single()
    with pytest.raises(MissingExtraError, match=r"pip install '.*\[report\]'"):
        write_charts(results, derive(results), tmp_path)


# ---------------------------------------------------------------------------------------------
# colours


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_inks_stand_out_from_paper(scheme: int) -> None:
    shown: Mapping[str, str] = {name: pair[scheme] for name, pair in INKS.items()}
    paper = luminance(shown["paper"])
    least = {"ink": 4.5, "muted": 4.5, "good": 4.5, "bad": 4.5, "rule": 1.0, "paper": 1.0}
    for name, colour in shown.items():
        low, high = sorted((paper, luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= least.get(name, 3.0), name


def test_inks_can_be_told_from_one_another() -> None:
    lights = [pair[0] for pair in INKS.values()]
    assert len(set(lights)) == len(lights)
    inks = subject_inks(["a", "b", "c"], "b")
    assert inks["b"] == "base" and len(set(inks.values())) == 3
