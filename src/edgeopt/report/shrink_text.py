"""What pruning and distilling add to a proof's text: counts, layers, training."""

from __future__ import annotations

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
    "weights": "weights not zero",
}


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
    table = plain_table()
    table.add_column("layer", no_wrap=True)
    for name in ("before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for name in ("parameters", "FLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    heaviest = sorted(cuts, key=lambda cut: -_saved(counted.get(cut["layer"])))[:_MOST_LAYERS]
    for cut in (cut for cut in cuts if cut in heaviest):
        row = counted.get(cut["layer"])
        table.add_row(
            Text(cut["layer"]),
            f"{cut['before']:,}",
            f"{cut['after']:,}",
            _KINDS.get(cut["kind"], cut["kind"]),
            "" if row is None else _arrow(row["parameters"]),
            "" if row is None else _arrow(row["flops"]),
        )
    console.print(table)
    if len(cuts) > len(heaviest):
        line(console, Text(f"and {len(cuts) - len(heaviest)} more: see --json"))


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
    text.append(
        f"{training['stopped']} after {training['steps']:,} steps on {training['samples']}"
        f"; the weights of step {training['best_step']:,} are kept{metric}",
        style="default not bold",
    )
    paragraph(console, text)
    line(console, Text(f"Losses: {training['losses']}"))
    for note in training.get("notes", ()):
        paragraph(console, f"Note: {note}")
