"""What a proof stands on: samples that were given, or not; decoders and noise say what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from tests.graphs.nets import FLOAT, INT64, close_db, model, node, normal, value
from tests.in_process import no_processes

import edgeopt


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)


def save(path: Path, *args: Any) -> Path:
    onnx.save(model(*args), path)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])]
    return save(
        tmp_path / "m.onnx", nodes, {"x": ["n", 64]}, {"y": ["n", 64]}, {"w": normal(64, 64)}
    )


@pytest.mark.parametrize(
    ("rows", "kind", "count"), [(None, "made-up", 8), (1, "made-up", 8), (24, "samples", 6)]
)
def test_the_verdict_says_what_it_stands_on(
    tmp_path: Path, plain: Path, rows: int | None, kind: str, count: int
) -> None:
    """One sample calibrates, and the proof is then on made-up inputs: it says so."""
    data = None
    if rows is not None:
        data = tmp_path / "d.npz"
        np.savez(data, x=normal(rows, 64, seed=3))
    proof = edgeopt.quantize(
        plain,
        tmp_path / "o.onnx",
        prefer="size",
        data=None if data is None else str(data),
        force=True,
    )
    basis = proof.to_json()["verdict"]["basis"]
    assert basis == {"kind": kind, "count": count}
    assert str(proof.verdict.basis).startswith(f"on {'your' if kind == 'samples' else 'made-up'} ")


def test_weights_alone_stand_on_their_tensors(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": normal(64, 64), "v": normal(64, 64, seed=1)}, tmp_path / "m.safetensors")
    proof = edgeopt.quantize(tmp_path / "m.safetensors", tmp_path / "o.safetensors")
    assert proof.to_json()["verdict"]["basis"] == {"kind": "weights", "count": 2}


STATE = {
    "x": ["batch", "time", 32],
    "h": [1, "batch", 32],
}


@pytest.mark.parametrize("shape", [(12, 1, 1, 32), (12, 1, 32)], ids=["rows, 1, 1", "rows, 1"])
def test_a_recurrent_network_with_rows_of_its_state(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nodes = [
        node("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        helper.make_node("GRU", ["xt", "W", "R", "", "", "h"], ["Y", "hn"], hidden_size=32),
        node("Squeeze", ["Y", "one"], ["ys"]),
        node("MatMul", ["ys", "wo"], ["y"]),
    ]
    arrays = {
        "W": normal(1, 96, 32, gain=0.2),
        "R": normal(1, 96, 32, gain=0.2, seed=1),
        "wo": normal(32, 64, gain=0.2, seed=2),
        "one": np.array([1]),
    }
    outputs = {"y": ["time", "batch", 64], "hn": [1, "batch", 32]}
    path = save(tmp_path / "m.onnx", nodes, STATE, outputs, arrays)
    x, h = normal(12, 10, 32, seed=3), normal(*shape, seed=4)
    np.savez(tmp_path / "d.npz", x=x, h=h)
    out = tmp_path / "o.onnx"
    edgeopt.quantize(path, out, data=str(tmp_path / "d.npz"), prefer="size", force=True)
    feed = {"x": x[:3], "h": h.reshape(12, 1, 32)[:3].swapaxes(0, 1)}
    answers = [onnxruntime.InferenceSession(str(p)).run(["y"], feed)[0] for p in (path, out)]
    assert close_db(*answers) > 20


@pytest.mark.parametrize(("steps", "said"), [(1, True), (4, False), ("seq", False)])
def test_a_decoder_proven_on_single_steps_says_so(
    tmp_path: Path, steps: int | str, said: bool
) -> None:
    nodes = [
        node("Gather", ["table", "input_ids"], ["e"]),
        node("ReduceMean", ["past_key_values.0.key"], ["m"], keepdims=0),
        node("Add", ["e", "m"], ["a"]),
        node("MatMul", ["a", "w"], ["logits"]),
    ]
    inputs = [
        value("input_ids", ["batch", steps], INT64),
        value("past_key_values.0.key", ["batch", 2, "past_length", 16], FLOAT),
    ]
    arrays = {"table": normal(100, 64), "w": normal(64, 100, gain=0.125, seed=1)}
    path = save(tmp_path / "m.onnx", nodes, inputs, {"logits": ["batch", steps, 100]}, arrays)
    proof = edgeopt.quantize(path, tmp_path / "o.onnx", prefer="size", force=True)
    assert any("one token at a time" in note for note in proof.notes) is said
