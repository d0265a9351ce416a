"""The pages of the language model benchmarks: what is said follows from the raw figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks._processes import run

from benchmarks import llama7b, llm


def figure(ours: float) -> dict[str, Any]:
    return {
        "convert_s": [7.0, 14.0, 7.0],
        "quantize_s": [3.0, 6.0, 3.0],
        "edgeopt_s": [ours, 2 * ours, ours],
        "proven_s": [2 * ours, 4 * ours, 2 * ours],
        "peer_anon": [400e6, 500e6, 450e6],
        "edgeopt_anon": [100e6, 120e6, 110e6],
        "proven_anon": [200e6, 210e6, 220e6],
        "peer_extra_disk": 2_200_000_000,
        "edgeopt_bytes": 637_000_000,
        "peer_bytes": 637_100_000,
        "edgeopt_first_s": 9.0,
    }


def test_ratios_are_taken_within_a_round() -> None:
    """The second round was twice as slow for both: no matter."""
    said = llm.summary(figure(5.0))
    assert said["ratio"] == pytest.approx(0.5)
    assert said["edgeopt_anon_mb"] == 120
    assert said["peer_anon_mb"] == 500


def test_the_page_shows_all_ways() -> None:
    page = "\n".join(llm.page({"Q4_0": figure(5.0)}, {"cpu": "x"}, []))
    times = ("7.0 + 3.0", "5.0 (0.50)", "10.0 (1.00)", "9.0 (0.90)")
    for part in (*times, "500 / 120 / 220", "2.20 / 0", "637.1 / 637.0"):
        assert f"| {part} |" in page


def test_a_command_is_timed_and_its_memory_seen() -> None:
    held = "import time; block = b'x' * 200_000_000; time.sleep(0.3); print('done')"
    found = run([sys.executable, "-c", held])
    assert found.output == "done\n"
    assert found.seconds > 0.3
    assert 190e6 < found.peak_anon < 300e6
    with pytest.raises(SystemExit, match="failed"):
        run([sys.executable, "-c", "import sys; sys.exit(3)"])


@pytest.mark.skipif(sys.platform != "linux", reason="mincore and smaps are Linux's")
def test_the_page_cache_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(bytes(8 << 20))
    assert llama7b.in_cache(file) == 8 << 20
    llama7b.evict(file)
    assert llama7b.in_cache(file) < 8 << 20


def test_the_headline_s_goals() -> None:
    one = {"anon": 60_000_000, "file": 0}
    document = {
        "artifact_bytes": 3_800_000_000,
        "quantizing": {"peak_anon": 120_000_000},
        "heap_and_cache": {
            "read": {"anon": 3_900_000_000, "cache": 3_800_000_000},
            "touch": {"anon": 60_000_000, "cache": 3_800_000_000},
        },
        "processes": {"one": 3_900_000_000, "together": [1_000_000_000] * 4},
        "loading": {
            "read": [{"seconds": 2.0, **one}],
            "open": [{"seconds": 0.01, **one}],
            "touch": [{"seconds": 0.1, **one}],
        },
    }
    goals = {goal.text: goal for goal in llama7b.goals_of(document)}
    assert all(goal.met for goal in goals.values())
    assert goals["read / open, times"].found == pytest.approx(200)
    document["loading"]["open"][0]["seconds"] = 0.03
    assert not all(goal.met for goal in llama7b.goals_of(document))
