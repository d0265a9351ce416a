"""Scores of candidates: the worst float output against the reference, failures at the bottom."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeopt.errors import SourceError
from edgeopt.measure.score import score_candidates

Feeds = list[dict[str, np.ndarray]]


def test_against_onnxruntime_itself(mlp: Callable[..., Path], feeds: Feeds, tmp_path: Path) -> None:
    reference, near = mlp("a.onnx"), mlp("near.onnx", noise=0.05)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"junk" * 50)
    found = score_candidates(
        reference,
        {
            "same": mlp("same.onnx"),
            "near": near,
            "broken": broken,
            "other": mlp("other.onnx", classes=7),
        },
        feeds,
    )
    ref, got = (
        np.stack([onnxruntime.InferenceSession(str(p)).run(None, f)[0] for f in feeds])
        for p in (reference, near)
    )
    ref, got = ref.astype(float), got.astype(float)
    expected = 10 * np.log10((ref**2).sum() / ((ref - got) ** 2).sum())
    assert found["near"] == pytest.approx(expected, abs=1e-6)
    assert found["same"] == math.inf
    assert found["broken"] == found["other"] == -math.inf


def test_no_float_output_no_noise(graph: Callable[..., Path], feeds: Feeds) -> None:
    pair = [
        graph(f"{op}.onnx", f"k = {op}<axis = 1>(x)", "float[N, 16] x", "int64[N, 1] k")
        for op in ("ArgMax", "ArgMin")
    ]
    assert score_candidates(pair[0], {"b": pair[1]}, feeds) == {"b": math.inf}


def test_a_reference_that_does_not_run_raises(
    mlp: Callable[..., Path], feeds: Feeds, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"junk" * 50)
    with pytest.raises(SourceError, match="not an ONNX model"):
        score_candidates(broken, {"a": mlp("a.onnx")}, feeds)
