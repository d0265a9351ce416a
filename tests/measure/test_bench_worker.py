"""The worker's own side, spoken to directly: what it answers to each command."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeopt.measure import bench_worker, clock
from edgeopt.measure.trial import Trial, write_job
from edgeopt.runtimes.engine import Case


def answers(
    folder: Path, trial: Trial, commands: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    job = write_job(trial, folder, 0)
    pipe = io.BytesIO()
    lines = io.BytesIO(b"".join(json.dumps(command).encode() + b"\n" for command in commands))
    bench_worker.main(job, lines, pipe)
    return [json.loads(line) for line in pipe.getvalue().splitlines()]


@pytest.fixture
def trial(tmp_path: Path, mlp: Callable[..., Path]) -> Trial:
    path = mlp()
    case = Case(path=path, files=(path,), runtime="onnxruntime")
    return Trial("mlp", case, {}, {"x": np.ones((1, 16), np.float32)})


def test_every_step(tmp_path: Path, trial: Trial) -> None:
    said = answers(
        tmp_path,
        trial,
        [
            {"do": "imports", "pin": False},
            {"do": "load", "cold": False},
            {"do": "first"},
            {"do": "turn", "seconds": 0.02, "limit": 7, "energy": True},
            {"do": "turn", "seconds": 0.0, "limit": 7},
            {"do": "memory"},
        ],
    )
    results = [each["result"] for each in said]
    assert len(results) == 6
    imports, load, first, turn, short, memory = results
    assert imports["seconds"] >= 0 and load["repeats"] is True and "verified" not in load
    assert 0 < first["seconds"] < 60
    assert 1 <= len(turn["samples"]) <= 7 and all(value > 0 for value in turn["samples"])
    assert set(turn["energy"]) == {"joules", "reason", "how"}
    assert len(short["samples"]) == 1 and "energy" not in short
    assert memory["memory"]["peak"] > 0
    assert memory["info"]["providers"] == ["CPUExecutionProvider"]
    mark = json.loads((tmp_path / "case-0.mark").read_text())
    assert mark == ["mlp", f"running {trial.case.path}"]


@pytest.mark.parametrize(("usual", "recorded"), [(1, [1] * 20), (30, [30] * 4)])
def test_what_a_sleep_has_cooled_is_not_recorded(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, usual: int, recorded: list[int]
) -> None:
    """A turn takes 100; five short inferences after a sleep take twice as long as others."""
    now = cold = 0

    class Engine:
        def run(self) -> None:
            nonlocal now, cold
            now += 2 if cold and usual == 1 else usual
            cold = max(0, cold - 1)

    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(bench_worker, "make_engine", lambda case: Engine())
    worker = bench_worker.BenchWorker(trial.case, trial.feed, lambda doing: None)
    worker._last = usual
    for _ in range(3):
        cold = 5
        assert worker.turn({"seconds": 100, "limit": 20})["samples"] == recorded


def test_a_cold_load_says_whether_it_was_cold(tmp_path: Path, trial: Trial) -> None:
    _, load = answers(
        tmp_path, trial, [{"do": "imports", "pin": False}, {"do": "load", "cold": True}]
    )
    assert isinstance(load["result"]["verified"], bool)
    assert load["result"]["verified"] or load["result"]["reason"]


def test_an_error_ends_it(tmp_path: Path, trial: Trial) -> None:
    trial.case.path.write_bytes(b"no model")
    said = answers(
        tmp_path,
        trial,
        [{"do": "imports", "pin": False}, {"do": "load", "cold": False}, {"do": "first"}],
    )
    assert len(said) == 2
    assert said[1]["error"]["type"] == "FormatError"
    assert "not an ONNX model" in said[1]["error"]["message"]


def test_a_case_survives_its_journey() -> None:
    case = Case(
        path=Path("/a/b.onnx"),
        files=(Path("/a/b.onnx"), Path("/a/b.data")),
        runtime="onnxruntime",
        threads=3,
        workload="pp",
        tokens=5,
        options={"model": "m:f"},
    )
    there = json.loads(json.dumps(bench_worker.case_to_json(case)))
    assert bench_worker.case_from_json(there) == case
