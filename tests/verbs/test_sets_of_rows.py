"""A detector with NonMaxSuppression at its end: what quantizing does to the number of its boxes is
a finding with its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from tests.graphs.nets import model, node, normal, value
from tests.in_process import no_processes

import edgeopt
from edgeopt.core import Proof
from edgeopt.graphs.loose import loose_outputs

COUNT = 40


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)


def detector(path: Path, *, far: bool) -> Path:
    """Scores of 40 boxes from 64 numbers; boxes lie apart, those with a score over 0 are given.

    ``far``: no score is near the threshold, as with a network that knows what it sees.
    """
    corners = np.stack([np.arange(COUNT) * 20.0, np.zeros(COUNT)], axis=-1)
    boxes = np.concatenate([corners, corners + 10], axis=-1)[None].astype(np.float32)
    made: Any = model(
        [
            node("MatMul", ["x", "w0"], ["a"]),
            node("Relu", ["a"], ["h"]),
            node("MatMul", ["h", "w1"], ["s"]),
            node("Add", ["s", "offset"], ["scores"]),
            node("Unsqueeze", ["scores", "one"], ["by_class"]),
            node("NonMaxSuppression", ["all", "by_class", "most", "iou", "least"], ["picked"]),
            node("Gather", ["picked", "two"], ["places"], axis=1),
            node("Gather", ["all", "places"], ["found"], axis=1),
            node("Squeeze", ["found", "zero"], ["boxes"]),
            node("Gather", ["scores", "places"], ["confidence"], axis=1),
        ],
        {"x": [1, 64]},
        [
            value("boxes", [None, 4]),
            value("confidence", [1, None]),
            value("places", [None], TensorProto.INT64),
        ],
        {
            "w0": normal(64, 128, gain=0.125),
            "w1": normal(128, COUNT, seed=1, gain=0.01 if far else 0.1),
            "offset": np.where(np.arange(COUNT) % 2, 1, -1)[None].astype(np.float32) * far,
            "all": boxes,
            "one": np.array([1]),
            "zero": np.array([0]),
            "two": np.array(2),
            "most": np.array([100]),
            "iou": np.array([0.5], np.float32),
            "least": np.array([0.0], np.float32),
        },
    )
    onnx.save(made, path)
    return path


def checks(proof: Proof) -> dict[str, Any]:
    return {check.name: check for check in proof.verdict.checks}


def test_outputs_of_a_set_are_told_by_the_graph(tmp_path: Path) -> None:
    path = detector(tmp_path / "m.onnx", far=True)
    assert loose_outputs(path) == ("boxes", "confidence", "places")


def test_the_same_boxes_are_proven(tmp_path: Path) -> None:
    path = detector(tmp_path / "m.onnx", far=True)
    proof = edgeopt.quantize(path, tmp_path / "o.onnx", prefer="size", force=True)
    found = checks(proof)
    assert found["loads and runs"].passed
    assert found["same rows"].passed
    session = onnxruntime.InferenceSession(str(path))
    each = len(session.run(["places"], {"x": np.ones((1, 64), np.float32)})[0])
    rows = 8 * each
    assert found["same rows"].found.startswith(f"{rows} of {rows} rows found again, 0 others")
    assert found["fidelity"].passed
    assert {f.output: f.sqnr_db for f in proof.fidelity}["places"] == np.inf  # each one the same


def test_boxes_that_come_and_go_are_counted(tmp_path: Path) -> None:
    path = detector(tmp_path / "m.onnx", far=False)
    proof = edgeopt.quantize(path, tmp_path / "o.onnx", bits=4, prefer="size", force=True)
    found = checks(proof)
    assert found["loads and runs"].passed
    # The oracle: both files in plain ONNX Runtime, on the very inputs of the proof.
    files = [onnxruntime.InferenceSession(str(p)) for p in (path, tmp_path / "o.onnx")]
    rows = np.random.default_rng(5).standard_normal((40, 1, 64)).astype(np.float32)
    counts = [[len(f.run(["places"], {"x": x})[0]) for x in rows] for f in files]
    assert counts[0] != counts[1]
    said = found["same rows"].found
    assert " rows found again, " in said
    assert "(boxes, confidence, places)" in said
