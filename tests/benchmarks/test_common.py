"""The statistics and the pages of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _common as common


def test_ratio_is_taken_within_a_round() -> None:
    machine_speed = np.array([1.0, 5.0, 1.0, 3.0, 2.0])
    found, low, high = common.ratio(list(2 * machine_speed), list(machine_speed))
    assert (found, low, high) == (2.0, 2.0, 2.0)


def test_interval_holds_the_median() -> None:
    rng = np.random.default_rng(0)
    slow, fast = rng.uniform(2, 4, 40), rng.uniform(1, 2, 40)
    found, low, high = common.ratio(list(slow), list(fast))
    assert low < found < high
    assert found == np.median(slow / fast)


def test_sqnr() -> None:
    signal = [np.ones(8, np.float32), np.zeros(2, np.float32)]
    assert common.sqnr_db(signal, signal) == float("inf")
    assert common.sqnr_db(signal, [s * 0.9 for s in signal]) == pytest.approx(20, abs=1e-4)


@pytest.mark.parametrize(
    ("found", "at_most", "met"),
    [(1.9, False, True), (1.9, True, True), (1.8, False, False), (2.0, True, False)],
)
def test_goal(found: float, at_most: bool, met: bool) -> None:
    goal = common.Goal("speed", found, 1.9, at_most)
    assert goal.met is met
    assert goal.to_json()["met"] is met
    assert ("**not met**" in "\n".join(common.goals_table([goal]))) is not met


def test_entry_in_json_has_no_infinity_and_no_folder() -> None:
    entry = common.Entry("a", "", Path("/home/someone/a.onnx"), sqnr_db={"y": float("inf")})
    text = json.dumps(entry.to_json(), allow_nan=False)
    assert "someone" not in text
    assert json.loads(text)["sqnr_db"] == {"y": "inf"}


def test_results_read_back_as_they_were(tmp_path: Path) -> None:
    document = {"raw": [1.5, 2e-7, -3], "names": ["a, 1", "[1,  2]"], "none": [], "deep": [[1], 2]}
    common.write_results(tmp_path, "r", document, ["# Title", "", *common.table("ab", ["12"])])
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == document
    assert '"raw": [ 1.5, 2e-07, -3 ]' in text  # on one line
    assert (tmp_path / "r.md").read_text() == "# Title\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_environment_names_versions_and_no_host() -> None:
    import platform

    found = common.machine(["numpy"])
    assert found["numpy"] == np.__version__
    assert platform.node() not in json.dumps(found).replace('"', " ").split()
