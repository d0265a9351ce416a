"""The course of a training as a picture: losses, the metric that chooses, the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import UsageError
from edgeopt.files.atomic import writing
from edgeopt.report.plots.chart import INKS, vl_convert

__all__ = ["FORMATS", "check_plot", "specification", "write_training_chart"]

_WIDTH, _HEIGHT, _SMALL = 560, 200, 90
_HUES = tuple(INKS[name][0] for name in ("s1", "s2", "s3", "s4", "s5", "s6"))


def _svg(spec: dict[str, Any]) -> bytes:
    drawn: str = vl_convert().vegalite_to_svg(spec)
    return drawn.encode()


def _png(spec: dict[str, Any]) -> bytes:
    drawn: bytes = vl_convert().vegalite_to_png(spec, scale=2.0)
    return drawn


FORMATS: Mapping[str, Callable[[dict[str, Any]], bytes]] = {".svg": _svg, ".png": _png}


def check_plot(path: str | Path) -> None:
    """Before minutes of training: raises UsageError for a suffix that is not drawn, and
    MissingExtraError without the extra ``report``."""
    if Path(path).suffix not in FORMATS:
        raise UsageError(f"--plot {path}: give a name that ends in {' or '.join(FORMATS)}")
    vl_convert()


def write_training_chart(training: Mapping[str, Any], path: str | Path) -> None:
    """Draw ``coverage["training"]`` of a proof to an SVG or PNG file.

    Raises what :func:`check_plot` does, and OutputError where the file cannot be written.
    """
    check_plot(path)
    drawn = FORMATS[Path(path).suffix](specification(training))
    with writing(path) as temporary:
        temporary.write_bytes(drawn)


def specification(training: Mapping[str, Any]) -> dict[str, Any]:
    """The chart in Vega-Lite: a panel for the losses, one for the metric, one for the rate."""
    history: Sequence[Mapping[str, Any]] = training["history"]
    losses = [
        {"step": row["step"], "value": value, "series": name}
        for row in history
        for name, value in row["parts"].items()
        if value is not None
    ]
    judged = [
        {"step": row["step"], "value": row["metric"], "series": training["metric"]}
        for row in history
        if row["metric"] is not None
    ]
    rates = [
        {"step": row["step"], "value": row["lr"], "series": "learning rate"}
        for row in history
        if row["step"] > 0
    ]
    best = [{"step": training["best_step"]}]
    panels = [_panel("Losses, each without its weight", losses, _HEIGHT, best, points=False)]
    if judged:
        named = str(training["metric"]).capitalize()
        title = f"{named} on {training['validation']}, by which the weights are chosen"
        panels.append(_panel(title, judged, _HEIGHT, best, points=True))
    panels.append(_panel("Learning rate", rates, _SMALL, best, points=False))
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": INKS["paper"][0],
        "padding": 16,
        "vconcat": panels,
        "resolve": {"scale": {"color": "independent"}},
        "config": {
            "font": "sans-serif",
            "title": {"anchor": "start", "fontSize": 13, "color": INKS["ink"][0]},
            "axis": {
                "labelColor": INKS["muted"][0],
                "titleColor": INKS["muted"][0],
                "gridColor": INKS["rule"][0],
                "domainColor": INKS["rule"][0],
                "tickColor": INKS["rule"][0],
            },
            "view": {"stroke": None},
            "range": {"category": list(_HUES)},
        },
    }


def _panel(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    height: int,
    best: Sequence[Mapping[str, Any]],
    *,
    points: bool,
) -> dict[str, Any]:
    """A line for each series, and a dashed one where the weights that were kept are from."""
    several = len({row["series"] for row in rows}) > 1
    last = max((row["step"] for row in rows), default=0)
    late = any(2 * mark["step"] > last for mark in best)
    color: dict[str, Any] = {"field": "series", "type": "nominal", "title": None}
    if not several:
        color["legend"] = None
    return {
        "title": title,
        "width": _WIDTH,
        "height": height,
        "layer": [
            {
                "data": {"values": list(best)},
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": INKS["muted"][0]},
                "encoding": {"x": {"field": "step", "type": "quantitative"}},
            },
            {
                "data": {"values": list(best)},
                "mark": {
                    "type": "text",
                    "align": "right" if late else "left",  # on the side where there is room
                    "dx": -4 if late else 4,
                    "dy": 8,
                    "baseline": "top",
                },
                "encoding": {
                    "x": {"field": "step", "type": "quantitative"},
                    "y": {"value": 0},
                    "text": {"value": "kept"},
                    "color": {"value": INKS["muted"][0]},
                },
            },
            {
                "data": {"values": list(rows)},
                "mark": {"type": "line", "point": points, "strokeWidth": 1.75},
                "encoding": {
                    "x": {"field": "step", "type": "quantitative", "title": "step"},
                    "y": {
                        "field": "value",
                        "type": "quantitative",
                        "title": None,
                        "scale": {"zero": not points},
                        "axis": {"format": "~g", "tickCount": height // 40},
                    },
                    "color": color,
                },
            },
        ],
    }
