"""A proof as text: one table that a newcomer understands, the verdict, and how to go on.

Plain characters only and no box lines, so that it reads the same at 80 columns, without colour
and through a pipe.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgeopt.core import Change, Check, Fidelity, Measurement, Proof, TensorFidelity, format_bytes
from edgeopt.numerics.decide import compare_blocks, compare_values
from edgeopt.numerics.statistics import Interval, median, paired_interval
from edgeopt.report.gguf_text import render_cost, render_findings
from edgeopt.report.parts import decibels, line, paragraph, seconds
from edgeopt.report.shrink_text import count_rows, render_shrunk

__all__ = ["render"]

#: Groups of kept tensors, and outputs, shown before the rest is only counted.
_MOST_GROUPS = 8
_MOST_OUTPUTS = 12

_NAME_WIDTH = 30

_USAGE_HEADINGS = {
    "onnx": "Run it, with numpy and onnxruntime alone:",
    "gguf": "Run it, with llama-cpp-python alone:",
    "safetensors": "Read the weights:",
    "torch-exported": "Run it, with torch alone:",
    "hf-folder": "Run it, with transformers:",
}

#: Checks of a GGUF file that the verdict's sentence repeats, and how.
_SAID = {"tensors": "worst tensor: ", "runs": "", "next tokens": "", "embeddings": ""}

_HEAP = ("memory_heap", "of it heap, then", format_bytes, "less", "more")


def render(proof: Proof, console: Console) -> None:
    """Print ``proof`` on ``console``: what changed, how close it is, the verdict, what next."""
    title = Text(f"edgeopt {proof.verb}", style="bold")
    title.append(f"  {_name(proof.source)} -> {_name(proof.artifact)}", style="default not bold")
    line(console, title)
    console.print()
    console.print(_changes_table(proof))
    if conditions := _conditions(proof):
        paragraph(console, conditions, style="dim")
    gguf = proof.artifact.get("format") == "gguf"
    if gguf:
        render_findings(proof.artifact, proof.tensors, console)
    elif proof.fidelity or proof.tensors:
        console.print()
        line(console, Text(f"How close to the source, on {proof.samples}", style="bold"))
        console.print(_fidelity_table((*proof.fidelity, *proof.tensors)))
        paragraph(
            console,
            "SQNR: signal to quantization noise, in dB; 20 dB is an error of a tenth of the "
            "signal, 40 dB of a hundredth.",
            style="dim",
        )
    if "cuts" in proof.coverage:
        render_shrunk(proof.coverage, console)
    console.print()
    _verdict(proof, console)
    if gguf:
        render_cost(proof.artifact, console)
    _kept(proof.changes, console)
    if proof.usage:
        console.print()
        heading = _USAGE_HEADINGS[proof.artifact.get("format", "onnx")]
        line(console, Text(heading, style="bold"))
        for code in proof.usage.splitlines():
            line(console, Text(f"    {code}"))
    for data in proof.artifact.get("data", ()):
        name, size = _name(data), format_bytes(data["nbytes"])
        line(console, Text(f"Weights: {name}, {size}; keep it beside {_name(proof.artifact)}"))
    if "plan" in proof.artifact:
        console.print()
        line(console, Text(f"Plan (what was decided, and why): {proof.artifact['plan']}"))


# ---------------------------------------------------------------------------------------------
# what changed


def _changes_table(proof: Proof) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("before", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("")
    for row in _rows(proof):
        table.add_row(*(Text(cell) for cell in row))
    return table


def _rows(proof: Proof) -> Iterator[tuple[str, str, str, str]]:
    before, after = _file_bytes(proof)
    if before and after:
        yield (
            "File size",
            format_bytes(before),
            format_bytes(after),
            _times(before / after, "smaller", "larger"),
        )
    if "parameters" in proof.coverage:
        yield from count_rows(proof.coverage)
    if "share" in proof.coverage:
        label = f"Weights {proof.coverage.get('stored', 'quantized')}"
        yield label, "", _percent(proof.coverage["share"]), _of_bytes(proof.coverage)
    if bits := proof.coverage.get("bits"):
        yield "Weights", "", "", weights_by_bits(bits)
    if proof.artifact.get("bits_per_weight"):
        yield "Bits a weight", "", f"{proof.artifact['bits_per_weight']:.2f}", ""
    measured = _by_metric(proof.measurements)
    latency = measured.get("latency", {})
    if len(latency) == 2:
        yield (
            "Latency, p50",
            seconds(_p50(latency["source"])),
            seconds(_p50(latency["artifact"])),
            _speed(latency),
        )
    for metric, label, show, better, worse in (
        ("load", "Load time", seconds, "faster", "slower"),
        ("memory", "Memory at peak", format_bytes, "less", "more"),
        # Of a model whose weights are mapped, the peak counts pages that can be dropped.
        *([_HEAP] if "data" in proof.artifact else []),
    ):
        pair = measured.get(metric, {})
        if len(pair) == 2:
            yield (
                label,
                show(_p50(pair["source"])),
                show(_p50(pair["artifact"])),
                _apart(pair["source"], pair["artifact"], better, worse),
            )


def weights_by_bits(bits: Mapping[str, int]) -> str:
    """Shares of the weights by how the file stores them: ``4 bits 96.1 %, float 3.9 %``."""
    total = sum(bits.values())
    return ", ".join(
        f"{f'{name} bits' if name.isdecimal() else name} {100 * count / total:.1f} %"
        for name, count in sorted(bits.items(), key=lambda item: -item[1])
    )


def _conditions(proof: Proof) -> str:
    """How the table's figures were taken, in a sentence or two."""
    measured = _by_metric(proof.measurements)
    said = []
    if "latency" in measured:
        threads = next(iter(measured["latency"].values())).conditions.get("threads", 1)
        said.append(
            f"Latency: {threads} thread{'' if threads == 1 else 's'}, the two files taking turns "
            "in short blocks (95% interval)."
        )
    if "memory" in measured:
        said.append("Memory: above the runtime's own, in a fresh process.")
    return " ".join(said)


def _by_metric(measurements: Sequence[Measurement]) -> dict[str, dict[str, Measurement]]:
    table: dict[str, dict[str, Measurement]] = defaultdict(dict)
    for measurement in measurements:
        table[measurement.metric][measurement.subject] = measurement
    return table


def _file_bytes(proof: Proof) -> tuple[float, float]:
    files = _by_metric(proof.measurements).get("file", {})
    sizes = []
    for subject, described in (("source", proof.source), ("artifact", proof.artifact)):
        measured = files[subject].values[0][0] if subject in files else 0
        sizes.append(float(described.get("nbytes", measured)))
    return sizes[0], sizes[1]


def _of_bytes(coverage: Mapping[str, Any]) -> str:
    if "source_bytes" in coverage and "kept_bytes" in coverage:
        total = coverage["source_bytes"]
        done = max(0, total - coverage["kept_bytes"])
        return f"{format_bytes(done)} of {format_bytes(total)} of float weights"
    return str(coverage.get("of", "of the float weights' bytes"))


def _p50(measurement: Measurement) -> float:
    return median([value for process in measurement.values for value in process])


def _apart(source: Measurement, artifact: Measurement, better: str, worse: str) -> str:
    """How many times, where the rule of comparisons finds a difference; of a single process each,
    which is no rule's business, how many times it is there."""
    before, after = _p50(source), _p50(artifact)
    if before <= 0 or after <= 0:
        return ""
    said = compare_values(source.metric, source.values, artifact.values)
    if said == "unknown":
        times = _times(before / after, better, worse)
        return times if times == "the same" else f"{times} (once each)"
    if said == "same":
        return "the same"
    if said == "not significant":
        return "no clear difference"
    return _times(before / after, better, worse)


def _speed(latency: Mapping[str, Measurement]) -> str:
    """The ratio of times, turned into how many times faster, with its interval."""
    base, other = latency["source"].values, latency["artifact"].values
    ratio = paired_interval(base, other)
    return "" if ratio is None else _SPEEDS[compare_blocks(base, other)](ratio)


#: The words of a verdict on the ratio of times.
_SPEEDS: Mapping[str, Callable[[Interval], str]] = {
    "better": lambda r: f"{_x(1 / r.estimate)} faster ({_x(1 / r.high)} to {_x(1 / r.low)})",
    "worse": lambda r: f"{_x(r.estimate)} slower ({_x(r.low)} to {_x(r.high)})",
    **dict.fromkeys(
        ("same", "not significant", "unknown"),
        lambda r: f"no clear difference ({_x(1 / r.high)} to {_x(1 / r.low)})",
    ),
}


def _x(factor: float) -> str:
    return f"{factor:.2f}x" if factor < 9.995 else f"{factor:.0f}x"


def _times(factor: float, better: str, worse: str) -> str:
    if abs(factor - 1.0) < 0.005:
        return "the same"
    return f"{factor:.3g}x {better}" if factor > 1.0 else f"{1 / factor:.3g}x {worse}"


# ---------------------------------------------------------------------------------------------
# how close


def _fidelity_table(outputs: Sequence[Fidelity | TensorFidelity]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("output", no_wrap=True)
    for name in ("SQNR", "cosine", "top-1 same", "largest error"):
        table.add_column(name, justify="right", no_wrap=True)
    for output in outputs[:_MOST_OUTPUTS]:
        if isinstance(output, TensorFidelity):
            name, sqnr = _short(output.tensor, _NAME_WIDTH), decibels(output.sqnr_db)
            table.add_row(Text(name), sqnr, "-", "-", "-")
            continue
        table.add_row(
            Text(_short(output.output, _NAME_WIDTH)),
            decibels(output.sqnr_db),
            "-" if math.isnan(output.cosine) else f"{output.cosine:.5f}",
            "-" if output.top1 is None else _percent(output.top1),
            "-" if math.isnan(output.max_abs) else f"{output.max_abs:.3g}",
        )
    if len(outputs) > _MOST_OUTPUTS:
        table.add_row(Text(f"and {len(outputs) - _MOST_OUTPUTS} more"), "", "", "", "")
    return table


# ---------------------------------------------------------------------------------------------
# what it comes to


def _verdict(proof: Proof, console: Console) -> None:
    failed = [check for check in proof.verdict.checks if not check.passed]
    if not proof.verdict.checks:
        paragraph(console, Text("NOT CHECKED", style="bold yellow"))
    elif not failed:
        headline = Text("PROVEN", style="bold green")
        if proof.verdict.basis:
            headline.append(f" {proof.verdict.basis}", style="green not bold")
        headline.append(f"  {_sentence(proof)}", style="default not bold")
        paragraph(console, headline)
    else:
        headline = Text("NOT PROVEN", style="bold red")
        names = ", ".join(check.name for check in failed)
        headline.append(f"  failed: {names}", style="default not bold")
        paragraph(console, headline)
        for check in failed:
            _failure(check, console)
    for missing in proof.verdict.unproven:
        paragraph(console, Text(f"Not checked: {missing}", style="yellow"))
    for note in proof.notes:
        paragraph(console, Text(f"Note: {note}"))


def _sentence(proof: Proof) -> str:
    """The verdict in words: only what was measured is said."""
    said = []
    before, after = _file_bytes(proof)
    if before and after and before != after:
        said.append(_times(before / after, "smaller", "larger"))
    latency = _by_metric(proof.measurements).get("latency", {})
    if len(latency) == 2:
        speed = _speed(latency).split(" (")[0]
        said += [f"{speed} in speed" if speed.startswith("no ") else speed] if speed else []
    fidelity = next((c for c in proof.verdict.checks if c.name == "fidelity"), None)
    if fidelity is not None:
        said.append(f"worst output {fidelity.found}, asked: {fidelity.limit}")
    for quality in proof.coverage.get("quality", ()):
        said.append(f"{quality['metric']} {quality['after']:.4g} from {quality['before']:.4g}")
    for check in proof.verdict.checks:
        if check.name in ("answers alike", "same answers"):
            said.append(f"the same: {check.found}")
        if check.name in _SAID:
            said.append(f"{_SAID[check.name]}{check.found}")
    if fidelity is None and any(check.name == "same integers" for check in proof.verdict.checks):
        said.append("the same answers")
    return ("; ".join(said) or "every check passed") + "."


def _failure(check: Check, console: Console) -> None:
    text = Text(f"{check.name}: ", style="bold")
    text.append(f"found {check.found}; asked: {check.limit}.", style="default not bold")
    console.print(Padding(text, (0, 0, 0, 2)))
    if check.advice:
        console.print(Padding(Text(f"Try: {check.advice}"), (0, 0, 0, 4)))


def _kept(changes: Sequence[Change], console: Console) -> None:
    """What was left as it is, by reason, the heaviest first."""
    groups: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        if change.decision.kept:
            groups[change.decision.reason].append(change)
    if not groups:
        return
    ranked = sorted(groups.items(), key=lambda item: -sum(c.after for c in item[1]))
    kept = [change for group in groups.values() for change in group]
    total = format_bytes(sum(change.after for change in kept))
    console.print()
    line(console, Text(f"Kept as they were: {_count(kept)}, {total}", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("")
    for reason, group in ranked[:_MOST_GROUPS]:
        size = format_bytes(sum(change.after for change in group))
        table.add_row(_count(group), size, Text(reason))
    console.print(table)
    rest = sum(len(group) for _, group in ranked[_MOST_GROUPS:])
    if rest:
        line(console, Text(f"and {rest} more for other reasons: see the plan"))


# ---------------------------------------------------------------------------------------------


def _count(changes: Sequence[Change]) -> str:
    return f"{len(changes)} tensor{'' if len(changes) == 1 else 's'}"


def _name(described: Mapping[str, Any]) -> str:
    return PurePath(str(described.get("path", "?"))).name


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 13]}...{name[-10:]}"


def _percent(share: float) -> str:
    """A share as a percentage that never rounds up to all, nor down to none."""
    value = 100.0 * float(share)
    if 99.95 <= value < 100.0:
        return "> 99.9 %"
    return f"{value:.1f} %" if 0 < value < 100 else f"{value:.0f} %"
