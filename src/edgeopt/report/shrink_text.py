"""What pruning and distilling add to a proof's text: counts, layers, training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from edgeopt.report.parts import line, paragraph, plain_table

__all__ = ["count_rows", "render_shrunk"]

#: Layers shown before the rest is only counted.
_MOST_LAYERS = 16

#: The share of zeros from which they are worth a row: any model has some.
_SPARSE = 0.01

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

#: What is counted, by the kind of a cut, and what it is a count of.
_KINDS: Mapping[str, str] = {
    "channels": "channels",
    "heads": "heads",
    "blocks": "blocks",
    "rows": "rows",
    "weights": "not zero",
}


#: How a training came to its end.
_ENDED: Mapping[str, str] = {
    "finished": "finished after",
    "early": "stopped early, after",
    "diverged": "diverged, and was stopped after",
    "interrupted": "was interrupted after",
}

#: The mark of a file in its label: for the document, not for reading.
_DIGEST = re.compile(r" \(SHA-256 [0-9a-f]+\)")

#: Characters of a layer's name at least, however wide the figures are beside it.
_LEAST = 16


def count_rows(coverage: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Rows of the table of changes: label, before, after, and what that comes to."""
    parameters, nonzero = coverage["parameters"], coverage["nonzero"]
    yield _row("Parameters", parameters)
    zero = 1 - nonzero[1] / parameters[1] if parameters[1] else 0.0
    if zero >= _SPARSE:
        label, before, after, _ = _row("Weights not zero", nonzero)
        yield label, before, after, f"{zero:.1%} are zero"
    if any(coverage["flops"]):
        yield _row("FLOPs, batch of one", coverage["flops"])
    for quality in coverage.get("quality", ()):
        before, after = quality["before"], quality["after"]
        yield (
            quality["metric"].capitalize(),
            f"{before:.4g}",
            f"{after:.4g}",
            _difference(after - before, quality["higher_is_better"]),
        )


def render_shrunk(coverage: Mapping[str, Any], console: Console) -> None:
    """The layers that were cut, those that were not and why, and the training that followed."""
    cuts = coverage.get("cuts", ())
    changed = [cut for cut in cuts if cut["before"] != cut["after"]]
    kept = [cut for cut in cuts if cut["before"] == cut["after"]]
    if changed:
        console.print()
        methods = ", ".join(method["method"] for method in coverage["methods"])
        line(console, Text(f"Cut, by {methods}", style="bold"))
        _layers(changed, coverage, console)
    for reason, layers in _by_reason(kept).items():
        named = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if layers[3:] else "")
        paragraph(console, f"Left alone: {named}: {reason}")
    for method in coverage.get("methods", ()):
        for note in method["notes"]:
            paragraph(console, f"Note: {note}")
    if "training" in coverage:
        _training(coverage["training"], console)


def _row(label: str, pair: Sequence[int]) -> tuple[str, str, str, str]:
    before, after = pair
    change = ""
    if before and after and before != after:
        times = before / after
        change = f"{times:.3g}x fewer" if times > 1 else f"{1 / times:.3g}x more"
    return label, _short(before), _short(after), change


def _short(number: float) -> str:
    for scale, unit in _UNITS:
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:,.0f}"


def _difference(change: float, higher_is_better: bool) -> str:
    if change == 0:
        return "the same"
    better = (change > 0) == higher_is_better
    return f"{change:+.4g}, {'better' if better else 'worse'}"


def _layers(
    cuts: Sequence[Mapping[str, Any]], coverage: Mapping[str, Any], console: Console
) -> None:
    counted = {row["layer"]: row for row in coverage.get("layers", ())}
    heaviest = sorted(cuts, key=lambda cut: -_saved(counted.get(cut["layer"])))[:_MOST_LAYERS]
    rows = []
    for cut in (cut for cut in cuts if cut in heaviest):
        row = counted.get(cut["layer"])
        figures = ("", "") if row is None else (_arrow(row["parameters"]), _arrow(row["flops"]))
        kind = _KINDS.get(cut["kind"], cut["kind"])
        rows.append((cut["layer"], _count(cut["before"]), _count(cut["after"]), kind, *figures))
    headings = ("layer", "before", "after", "", "parameters", "FLOPs")
    widths = [max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)]
    room = max(_LEAST, console.width - sum(widths[1:]) - 2)
    table = plain_table()
    for heading in headings:
        right = heading not in ("layer", "")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for name, *cells in rows:
        table.add_row(Text(_middle_out(name, room)), *cells)
    console.print(table)
    if len(cuts) > len(heaviest):
        line(console, Text(f"and {len(cuts) - len(heaviest)} more: see --json"))


def _count(number: int) -> str:
    return f"{number:,}" if number < 100_000 else _short(number)


def _middle_out(name: str, room: int) -> str:
    """A long name without its middle: where a layer is says its beginning, which, its end."""
    if len(name) <= room:
        return name
    tail = (room - 3) * 2 // 3
    return f"{name[: room - 3 - tail]}...{name[len(name) - tail :]}"


def _saved(row: Mapping[str, Any] | None) -> float:
    return 0.0 if row is None else float(row["parameters"][0] - row["parameters"][1])


def _arrow(pair: Sequence[int]) -> str:
    before, after = pair
    return _short(before) if before == after else f"{_short(before)} -> {_short(after)}"


def _by_reason(kept: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for cut in kept:
        found.setdefault(cut["reason"] or "nothing to cut", []).append(cut["layer"])
    return found


def _training(training: Mapping[str, Any], console: Console) -> None:
    console.print()
    text = Text("Training  ", style="bold")
    best = training.get("best_metric")
    metric = (
        "" if best is None else f", {training['metric']} {best:.4g} on {training['validation']}"
    )
    ended = _ENDED.get(training["stopped"], f"{training['stopped']} after")
    text.append(
        f"{ended} {_steps(training['steps'])} on {_DIGEST.sub('', training['samples'])}"
        f"; the weights of step {training['best_step']:,} are kept{metric}",
        style="default not bold",
    )
    paragraph(console, text)
    paragraph(console, f"Losses: {training['losses']}")
    for note in training.get("notes", ()):
        paragraph(console, f"Note: {note}")


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"
