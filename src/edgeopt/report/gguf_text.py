"""What a proof found in a GGUF file, as text: types, worst tensors, llama.cpp, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from edgeopt.core import TensorFidelity, format_bytes
from edgeopt.report.parts import decibels, line, paragraph, plain_table, seconds

__all__ = ["render_cost", "render_findings"]

_NAME_WIDTH = 40
_SQNR = (
    "SQNR: signal to quantization noise, in dB; 20 dB is an error of a tenth of the signal, 40 dB "
    "of a hundredth."
)


def render_findings(
    artifact: Mapping[str, Any], worst: Sequence[TensorFidelity], console: Console
) -> None:
    """Print what is stored and how close it is, then what llama.cpp made of it."""
    if artifact.get("types"):
        console.print()
        line(console, Text("What is stored, and its worst tensors", style="bold"))
        _types(artifact["types"], console)
        if worst:
            console.print()
            _tensors(worst, console)
        paragraph(console, _SQNR, style="dim")
    if "session" in artifact:
        console.print()
        paragraph(console, _session(artifact))
    if "divergence" in artifact:
        console.print()
        _divergence(artifact["divergence"], console)
    if "embeddings" in artifact:
        console.print()
        found = artifact["embeddings"]
        heading = f"How close the embeddings are, on {found['texts']} texts of {found['text']}"
        line(console, Text(heading, style="bold"))
        mean, least = found["mean_cosine"], found["least_cosine"]
        line(console, Text(f"cosine  {mean:.6f} on average, {least:.6f} at least"))


def render_cost(artifact: Mapping[str, Any], console: Console) -> None:
    """Print what proving took, apart from what converting took."""
    spent = artifact.get("seconds", {})
    said = [f"{name} {seconds(value)}" for name, value in spent.items()]
    if artifact.get("proof_disk"):
        said.append(f"{format_bytes(artifact['proof_disk'])} of disk for a while")
    if said:
        paragraph(console, f"Took: {', '.join(said)}.", style="dim")


def _types(types: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    table = plain_table()
    for name in ("type", "tensors", "bytes", "bits a weight", "lowest SQNR"):
        table.add_column(name, justify="left" if name == "type" else "right", no_wrap=True)
    for kind, found in types.items():
        lowest = found["lowest_db"]
        table.add_row(
            kind,
            str(found["tensors"]),
            format_bytes(found["nbytes"]),
            f"{found['bits_per_weight']:.2f}",
            "-" if lowest is None else decibels(float(lowest)),
        )
    console.print(table)


def _tensors(worst: Sequence[TensorFidelity], console: Console) -> None:
    table = plain_table(show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for tensor in worst:
        table.add_row(Text(_short(tensor.tensor)), decibels(tensor.sqnr_db))
    console.print(table)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 13]}...{name[-10:]}"


def _session(artifact: Mapping[str, Any]) -> str:
    session = artifact["session"]
    said = [f"loads in {seconds(artifact['load'])}"] if "load" in artifact else []
    said.append("mapped" if session["mmap"] else "read into memory")
    if session["repack"] is not None:
        said.append("repacked" if session["repack"] else "not repacked")
    if session["pages_shared"]:
        said.append("pages shared with every process that maps the file")
    return f"llama.cpp ({session['version']}): {', '.join(said)}."


def _divergence(found: Mapping[str, Any], console: Console) -> None:
    heading = (
        f"How close the predictions are, on {found['text']}: {found['chunks']} x "
        f"{found['context']} tokens, the second halves scored ({found['tokens']})"
    )
    line(console, Text(heading, style="bold"))
    table = plain_table(show_header=False)
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for each in found["statistics"]:
        # percentages as llama-perplexity prints them, the rest to its six places
        places = 3 if each["unit"] == "%" else 6
        error = "" if each["error"] is None else f"± {float(each['error']):.{places}f}"
        unit = f"{error} {each['unit']}".strip()
        table.add_row(Text(each["name"]), f"{float(each['value']):.{places}f}", unit)
    console.print(table)
