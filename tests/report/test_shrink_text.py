"""What pruning and distilling add to a proof's text, at 80 columns and through a pipe."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest
from rich.console import Console

from edgeopt.core import Check, Fidelity, Proof, Verdict
from edgeopt.report.shrink_text import count_rows, render_shrunk
from edgeopt.report.text import render


def cut(layer: str, before: int, after: int, kind: str = "channels", reason: str = "") -> Any:
    return {"layer": layer, "kind": kind, "before": before, "after": after, "reason": reason}


def row(layer: str, parameters: list[int], flops: list[int]) -> dict[str, Any]:
    return {"layer": layer, "kind": "Conv2d", "parameters": parameters, "flops": flops}


COVERAGE: dict[str, Any] = {
    "parameters": [403_562, 201_509],
    "nonzero": [403_562, 201_509],
    "nbytes": [1_614_248, 806_036],
    "flops": [23_500_000, 11_700_000],
    "methods": [{"method": "channels", "notes": []}],
    "cuts": [cut("stem", 32, 23), cut("head", 10, 10, reason="its channels are the output")],
    "layers": [row("stem", [288, 207], [36_900, 26_500]), row("head", [650, 470], [1280, 920])],
    "quality": [],
}

TRAINING: dict[str, Any] = {
    "stopped": "finished",
    "steps": 1200,
    "best_step": 1100,
    "metric": "accuracy",
    "best_metric": 0.97812,
    "validation": "137 held out",
    "samples": "digits.npz, 1097 samples (SHA-256 1662db5e9ee8): all rows but every 4th",
    "losses": "soft 0.9, hard 0.1 (a classifier with labels: mostly the teacher's soft labels)",
    "notes": [],
}


def text(coverage: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    render_shrunk(coverage, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def said(shown: str) -> str:
    """Without the line breaks."""
    return " ".join(shown.split())


def proof(coverage: dict[str, Any], *checks: Check) -> Proof:
    return Proof(
        verb="prune",
        source={"path": "model.pt", "nbytes": 1_634_431},
        artifact={"path": "model-pruned.pt", "nbytes": 886_000, "format": "torch-exported"},
        plan=None,
        changes=(),
        coverage=coverage,
        fidelity=(Fidelity("output", 11.4, 0.96774, 3.01, 1.0, 0.1, True, False, 100),),
        samples="digits-test.npz, 100 samples",
        measurements=(),
        environment={},
        verdict=Verdict(checks or (Check("fewer weights", True, "", "", ""),), ()),
        usage="import torch",
        notes=(),
    )


def test_layers_are_shown_with_what_they_were_and_are() -> None:
    lines = text(COVERAGE).splitlines()
    stem = next(line for line in lines if line.startswith("stem"))
    assert " ".join(stem.split()) == "stem 32 23 channels 288 -> 207 36.9 k -> 26.5 k"
    assert "Left alone: head: its channels are the output" in lines
    assert not any(line.startswith("head") for line in lines)


@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_wider_than_the_console(width: int) -> None:
    """Names and counts of a large model, the longest reason and a training beside."""
    names = [f"model.encoder.layers.{i}.self_attention.query_projection" for i in range(6)]
    coverage = {
        **COVERAGE,
        "cuts": [
            *(cut(name, 16_777_216, 8_388_608, "weights") for name in names),
            *(cut(f"{n}.norm", 1, 1, reason="it is no matrix, " * 9) for n in names),
        ],
        "layers": [row(n, [16_800_000, 8_390_000], [999_000_000, 12_300_000]) for n in names],
        "training": {**TRAINING, "notes": ["stopped after 7 of 90 updates: the loss is nan " * 3]},
    }
    shown = text(coverage, width)
    assert max(map(len, shown.splitlines())) <= width
    rows = [line for line in shown.splitlines() if line.startswith("model.") and "->" in line]
    assert len(rows) == 6
    figures = "16.8 M  8.39 M  not zero  16.8 M -> 8.39 M  999 M -> 12.3 M"
    assert all(figures in line and "jection" in line for line in rows)
    assert "and 3 more: it is no matrix" in said(shown)


def test_of_many_layers_the_heaviest_are_shown_in_their_order() -> None:
    names = [f"layer{i}" for i in range(40)]
    coverage = {
        **COVERAGE,
        "cuts": [cut(name, 64, 32) for name in names],
        "layers": [row(n, [100 * (i + 1), 50], [0, 0]) for i, n in enumerate(names)],
    }
    lines = text(coverage).splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("layer") and "channels" in line]
    assert shown == names[-16:]
    assert "and 24 more: see --json" in lines


def test_a_model_without_flops_has_no_row_of_them() -> None:
    labels = [cells[0] for cells in count_rows({**COVERAGE, "flops": [0, 0]})]
    assert labels == ["Parameters"]
    assert [cells[0] for cells in count_rows(COVERAGE)] == ["Parameters", "FLOPs, batch of one"]


def test_zeros_are_counted_apart_from_parameters() -> None:
    cells = list(count_rows({**COVERAGE, "parameters": [400, 400], "nonzero": [400, 100]}))
    assert cells[0] == ("Parameters", "400", "400", "")
    assert cells[1] == ("Weights not zero", "400", "100", "75.0% are zero")


def test_a_student_of_another_kind_may_have_more() -> None:
    cells = list(count_rows({**COVERAGE, "parameters": [400, 800], "nonzero": [400, 800]}))
    assert cells[0][3] == "2x more"
    nothing = count_rows({**COVERAGE, "parameters": [0, 0], "nonzero": [0, 0]})
    assert next(nothing)[3] == ""


@pytest.mark.parametrize(
    ("metric", "before", "after", "higher", "change"),
    [
        ("accuracy", 0.9, 0.95, True, "+0.05, better"),
        ("accuracy", 0.9, 0.8, True, "-0.1, worse"),
        ("perplexity", 20.0, 25.0, False, "+5, worse"),
        ("perplexity", 20.0, 15.5, False, "-4.5, better"),
        ("spearman", 0.5, 0.5, True, "the same"),
    ],
)
def test_metrics_fall_and_rise(
    metric: str, before: float, after: float, higher: bool, change: str
) -> None:
    quality = {"metric": metric, "before": before, "after": after, "higher_is_better": higher}
    *_, last = count_rows({**COVERAGE, "quality": [quality]})
    assert last == (metric.capitalize(), f"{before:.4g}", f"{after:.4g}", change)


@pytest.mark.parametrize(
    ("stopped", "begins"),
    [
        ("finished", "Training finished after 1,200 steps on digits.npz, 1097 samples: all"),
        ("early", "Training stopped early, after 1,200 steps"),
        ("diverged", "Training diverged, and was stopped after 1,200 steps"),
        ("interrupted", "Training was interrupted after 1,200 steps"),
    ],
)
def test_how_a_training_ended_is_said(stopped: str, begins: str) -> None:
    notes = ["stopped after 1200 of 9000 updates: the loss is nan; kept the weights after 1100"]
    shown = said(text({**COVERAGE, "training": {**TRAINING, "stopped": stopped, "notes": notes}}))
    assert begins in shown
    assert "the weights of step 1,100 are kept, accuracy 0.9781 on 137 held out" in shown
    assert "Note: stopped after 1200 of 9000 updates: the loss is nan" in shown
    assert "SHA-256" not in shown


def test_a_training_that_nothing_judged() -> None:
    training = {**TRAINING, "best_metric": None, "validation": "", "steps": 1, "best_step": 1}
    shown = said(text({**COVERAGE, "training": training}))
    assert "finished after 1 step on" in shown
    assert "the weights of step 1 are kept Losses: soft 0.9" in shown


def test_notes_of_a_method_are_told() -> None:
    methods = [{"method": "depth", "notes": ["blocks were ranked on made-up inputs"]}]
    shown = text({**COVERAGE, "methods": methods})
    assert "Cut, by depth" in shown
    assert "Note: blocks were ranked on made-up inputs" in shown


def test_a_whole_proof_reads_through_and_survives_its_document() -> None:
    quality = {
        "metric": "accuracy",
        "before": 0.985,
        "after": 0.97,
        "higher_is_better": True,
        "samples": 400,
        "how": "",
    }
    made = proof(
        {**COVERAGE, "quality": [quality], "training": TRAINING},
        Check("accuracy", False, "0.9700 from 0.9850", "a drop of 0.01", "a lower --ratio"),
    )
    document = json.loads(json.dumps(made.to_json()))
    assert document["coverage"] == made.coverage
    streams = []
    for one in (made, dataclasses.replace(made, coverage=document["coverage"])):
        stream = io.StringIO()
        render(one, Console(file=stream, width=80, highlight=False))
        streams.append(stream.getvalue())
    assert streams[0] == streams[1]
    assert "NOT PROVEN  failed: accuracy" in streams[0]
    assert "Run it, with torch alone:" in streams[0]
