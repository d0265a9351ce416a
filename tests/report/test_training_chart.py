"""The course of a training, drawn: every series is there, and what cannot be drawn is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from edgeopt.errors import UsageError
from edgeopt.report.training_chart import check_plot, specification, write_training_chart


def training(metric: bool) -> dict[str, Any]:
    return {
        "metric": "accuracy",
        "validation": "24 held out",
        "best_step": 10,
        "history": [
            {
                "step": step,
                "parts": {"soft": 2.0 / (step + 1), "hard": None if step == 0 else 1.0},
                "lr": 1e-3,
                "metric": step / 20 if metric and step % 10 == 0 else None,
            }
            for step in range(0, 21, 5)
        ],
    }


@pytest.mark.parametrize("metric", [True, False])
def test_every_series_has_a_panel(metric: bool) -> None:
    spec = specification(training(metric))
    series = [
        {row["series"] for row in panel["layer"][-1]["data"]["values"]} for panel in spec["vconcat"]
    ]
    expected = [{"soft", "hard"}, *([{"accuracy"}] if metric else []), {"learning rate"}]
    assert series == expected
    losses = spec["vconcat"][0]["layer"][-1]["data"]["values"]
    assert len([row for row in losses if row["series"] == "hard"]) == 4  # none at step 0


def test_svg_and_png_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("vl_convert", reason="charts are drawn with vl-convert-python")
    for suffix in (".svg", ".png"):
        write_training_chart(training(True), tmp_path / f"course{suffix}")
    texts = " ".join(ElementTree.parse(tmp_path / "course.svg").getroot().itertext())
    for word in ("soft", "hard", "Accuracy on 24 held out", "Learning rate"):
        assert word in texts
    assert (tmp_path / "course.png").read_bytes().startswith(b"\x89PNG")


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        check_plot(tmp_path / "course.pdf")
