"""The report as people get it: at 80 columns, without colour, through a pipe."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import Any

import pytest
from rich.console import Console

from edgeopt.core import (
    Affine,
    Basis,
    Change,
    Check,
    Decision,
    Fidelity,
    Measurement,
    Proof,
    Verdict,
)
from edgeopt.report.text import render

USAGE = "import numpy as np\n" + "\n".join(f"line{i} = [{'x' * 90}]" for i in range(4))


def measured(subject: Any, metric: str, *values: float, **conditions: Any) -> Measurement:
    unit = {"latency": "s", "load": "s"}.get(metric, "B")
    return Measurement(subject, metric, unit, conditions, tuple((v,) for v in values))


def latency(subject: Any, seconds: float) -> Measurement:
    blocks = tuple(seconds * (1 + 0.001 * (i % 5)) for i in range(40))
    return Measurement(subject, "latency", "s", {"threads": 1}, (blocks,))


def kept(name: str, reason: str, nbytes: int) -> Change:
    return Change(Decision(name, "Add", "keep", "keep", None, reason, nbytes), nbytes, nbytes)


QUANTIZED = Change(
    Decision("w", "MatMul", "rtn", "matmul-integer", Affine(8), "int8 is fast here", 100), 400, 100
)

PROOF = Proof(
    verb="quantize",
    source={"path": "models/encoder.pt", "nbytes": 91_000_000},
    artifact={"path": "out/encoder.int8.onnx", "nbytes": 23_100_000, "plan": "out/encoder.plan"},
    plan=None,
    changes=(
        QUANTIZED,
        *(kept(f"bias{i}", "one-dimensional", 400) for i in range(3)),
        kept("norm", "no integer form", 5000),
    ),
    coverage={"share": 0.989, "source_bytes": 90_000_000, "kept_bytes": 990_000},
    fidelity=(
        Fidelity("last_hidden_state", 31.24, 0.99961, 0.31, None, None, True, False, 32),
        Fidelity("logits[0]", 24.0, 0.99, 0.5, 0.991, 0.01, True, False, 32),
    ),
    samples="sts.npz, 32 samples: rows 3, 7, 11, ..., held out",
    measurements=(
        latency("source", 4.1e-3),
        latency("artifact", 1.36e-3),
        measured("source", "load", 0.21, 0.22, 0.2),
        measured("artifact", "load", 0.088, 0.09, 0.091),
        measured("source", "memory", 120e6, 121e6, 120e6),
        measured("artifact", "memory", 120e6, 122e6, 119e6),
    ),
    environment={},
    verdict=Verdict(
        (Check("fidelity", True, "24.0 dB (logits[0])", "20 dB or more"),), ("energy: no sensor",)
    ),
    usage=USAGE,
    notes=("one worker found it slower",),
)


def text(proof: Proof, width: int = 80, **options: Any) -> str:
    stream = io.StringIO()
    render(proof, Console(file=stream, width=width, **options))
    return stream.getvalue()


def row(report: str, label: str) -> str:
    (found,) = (line for line in report.splitlines() if line.startswith(label))
    return found


def test_the_figures() -> None:
    report = text(PROOF)
    assert "91 MB" in row(report, "File size")
    assert "23.1 MB" in row(report, "File size")
    assert "3.94x smaller" in row(report, "File size")
    assert "98.9 %" in row(report, "Weights quantized")
    assert "89 MB of 90 MB" in row(report, "Weights quantized")
    assert "4.11 ms" in row(report, "Latency, p50")
    assert "3.01x faster" in row(report, "Latency, p50")
    assert "2.33x faster" in row(report, "Load time")
    assert "no clear difference" in row(report, "Memory at peak")
    assert "31.2 dB" in row(report, "last_hidden_state")
    assert "99.1 %" in row(report, "logits[0]")
    assert "held out" in report
    assert "Not checked: energy: no sensor" in report
    assert "Note: one worker found it slower" in report


def test_kept_tensors_are_grouped_heaviest_first() -> None:
    report = text(PROOF)
    assert "4 tensors, 6.2 kB" in report
    assert report.index("no integer form") < report.index("one-dimensional")
    assert "3 tensors" in report
    assert "int8 is fast here" not in report
    many = dataclasses.replace(PROOF, changes=tuple(kept(f"t{i}", f"{i}", 9) for i in range(11)))
    assert "and 3 more for other reasons" in text(many)
    assert "Kept" not in text(dataclasses.replace(PROOF, changes=(QUANTIZED,)))


def test_plain_characters_no_colour_nothing_cut_in_a_pipe() -> None:
    report = text(PROOF)
    assert report.isascii()
    assert "\x1b" not in report
    # Code and paths are copied: they stay whole. Everything else keeps to the width.
    for line in USAGE.splitlines():
        assert f"    {line}\n" in report
    for line in report.replace(USAGE.replace("\n", "\n    "), "").splitlines():
        assert len(line) <= 80, line


@pytest.mark.parametrize("width", [40, 60, 200])
def test_any_width(width: int) -> None:
    report = text(PROOF, width=width)
    assert "PROVEN" in report
    assert "23.1 MB" in report


def test_colour_where_there_is_any() -> None:
    report = text(PROOF, force_terminal=True, color_system="standard")
    assert "\x1b[1;32mPROVEN" in report
    failed = dataclasses.replace(
        PROOF, verdict=Verdict((Check("file smaller", False, "a", "b", "c"),))
    )
    assert "\x1b[1;31mNOT PROVEN" in text(failed, force_terminal=True, color_system="standard")


def test_a_proven_one_is_a_sentence() -> None:
    report = " ".join(text(PROOF).split())
    assert (
        "PROVEN 3.94x smaller; 3.01x faster; worst output 24.0 dB (logits[0]), "
        "asked: 20 dB or more." in report
    )
    assert "NOT PROVEN" not in report


def test_a_failed_one_says_what_and_what_to_try() -> None:
    check = Check("fidelity", False, "5.0 dB (y[0])", "20 dB or more", "use --bits 8")
    report = text(dataclasses.replace(PROOF, verdict=Verdict((check,))))
    assert "NOT PROVEN  failed: fidelity" in report
    assert "found 5.0 dB (y[0]); asked: 20 dB or more." in report
    assert "Try: use --bits 8" in report


def test_slower_and_larger_are_said_as_such() -> None:
    worse = dataclasses.replace(
        PROOF,
        artifact={"path": "b.onnx", "nbytes": 182_000_000},
        measurements=(latency("source", 1e-6), latency("artifact", 95e-6)),
    )
    report = text(worse)
    assert "2x larger" in row(report, "File size")
    assert "95x slower" in row(report, "Latency, p50")
    assert "95.2 us" in row(report, "Latency, p50")


def test_speed_within_noise_is_no_difference() -> None:
    even = dataclasses.replace(
        PROOF, measurements=(latency("source", 4.1e-3), latency("artifact", 4.1e-3))
    )
    assert "no clear difference" in row(text(even), "Latency, p50")
    assert "no clear difference in speed" in " ".join(text(even).split())


def test_a_speedup_too_small_to_speak_of_is_no_difference() -> None:
    tiny = dataclasses.replace(
        PROOF, measurements=(latency("source", 4.1e-3), latency("artifact", 4.05e-3))
    )
    assert "no clear difference" in row(text(tiny), "Latency, p50")


def test_a_bare_proof_renders() -> None:
    bare = Proof("export", {}, {}, None, (), {}, (), "", (), {}, Verdict(()))
    assert "NOT CHECKED" in text(bare) and not bare.proven
    checked = dataclasses.replace(
        bare, verdict=Verdict((Check("structure", True, "it does", "it"),))
    )
    assert "PROVEN  every check passed." in text(checked)
    assert "PROVEN on your samples (3 held out)  every" in text(
        dataclasses.replace(
            checked,
            verdict=dataclasses.replace(checked.verdict, basis=Basis("samples", 3)),
        )
    )


def test_odd_figures() -> None:
    outputs = tuple(
        Fidelity(f"{'long_' * 12}{i}", db, math.nan, 0.0, 0.99999, None, True, False, 1)
        for i, db in enumerate([math.inf, -math.inf, math.nan] * 5)
    )
    classes = Verdict((Check("same integers", True, "100 % equal", "90 %"),))
    report = text(dataclasses.replace(PROOF, fidelity=outputs, verdict=classes))
    assert "identical" in report
    assert "no signal" in report
    assert "> 99.9 %" in report
    assert "and 3 more" in report
    assert "the same answers" in report
    assert max(len(line) for line in report.splitlines() if line.startswith("long")) <= 80


def test_sizes_come_from_the_files_where_the_proof_does_not_say() -> None:
    found = dataclasses.replace(
        PROOF,
        source={"path": "a"},
        artifact={"path": "b"},
        measurements=(measured("source", "file", 200), measured("artifact", "file", 100)),
    )
    assert "2x smaller" in row(text(found), "File size")


def test_markup_in_names_is_no_markup() -> None:
    odd = dataclasses.replace(PROOF, notes=("[bold]x[/bold] [1, 2]",))
    assert "[bold]x[/bold] [1, 2]" in text(odd)


def test_weights_alone_are_read_not_run() -> None:
    weights = dataclasses.replace(PROOF, artifact={**PROOF.artifact, "format": "safetensors"})
    assert "Read the weights:" in text(weights)
    assert "Run it" not in text(weights)
