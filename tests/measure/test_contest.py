"""Contests: all in one worker, aligned blocks, failures named, the choice stable under noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeopt.errors import InputsError, WorkerError
from edgeopt.measure.contest import Timings, fastest, time_candidates


def test_blocks_are_aligned_and_failures_named(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"junk" * 50)
    candidates = {
        "slow": mlp("slow.onnx", hidden=20_000),
        "fast": mlp("fast.onnx"),
        "broken": broken,
        "missing": tmp_path / "none.onnx",
    }
    timings = time_candidates(candidates, feeds, seconds=0.1)
    assert list(timings) == ["slow", "fast"]
    assert set(timings.failures) == {"broken", "missing"}
    assert len(timings["slow"]) == len(timings["fast"]) >= 3
    assert fastest(timings, ["broken", "slow", "fast"]) == "fast"


def test_one_feed_needs_no_list(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]]
) -> None:
    assert list(time_candidates({"a": mlp()}, feeds[0], seconds=0.0)) == ["a"]
    with pytest.raises(InputsError, match="no samples"):
        time_candidates({"a": mlp()}, [], seconds=0.0)


def test_no_candidate_at_all_is_an_error_with_the_reasons(
    feeds: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    timings = time_candidates({"a": tmp_path / "none.onnx"}, feeds)
    assert dict(timings) == {}
    with pytest.raises(WorkerError, match=r"a: .*no such file"):
        fastest(timings, ["a"])
    with pytest.raises(WorkerError, match="no candidate could be timed"):
        fastest(Timings({}), ["a"])


def blocks(times: dict[str, float], seed: int, rounds: int = 20) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    machine = rng.choice([1.0, 1.0, 1.0, 3.0], rounds)  # what a round meets, all meet
    return {
        name: list(machine * time * rng.normal(1.0, 0.02, rounds)) for name, time in times.items()
    }


def test_equals_keep_the_preferred() -> None:
    for seed in range(50):
        timings = blocks({"a": 1.0, "b": 1.0, "c": 0.985}, seed)
        assert fastest(timings, ["a", "b", "c"]) == "a"
        assert fastest(timings, ["b", "c", "a"]) == "b"


def test_a_clear_winner_wins_from_anywhere() -> None:
    for seed in range(50):
        timings = blocks({"a": 1.0, "b": 0.8, "c": 0.6}, seed)
        assert fastest(timings, ["a", "b", "c"]) == "c"
        assert fastest(timings, ["c", "b", "a"]) == "c"


def test_the_margin_is_asked_for() -> None:
    timings = {"a": [1.0] * 10, "b": [0.9] * 10}
    assert fastest(timings, ["a", "b"]) == "b"
    assert fastest(timings, ["a", "b"], margin=0.15) == "a"


def test_two_rounds_prove_nothing_and_unnamed_come_last() -> None:
    assert fastest({"a": [1.0, 1.0], "b": [0.1, 0.1]}, ["a", "b"]) == "a"
    assert fastest({"z": [0.5] * 5, "a": [0.5] * 5, "e": []}, ["e", "a"]) == "a"
