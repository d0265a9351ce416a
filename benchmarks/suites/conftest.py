"""What the suites share: a reference kernel in every group, and the table of ratios to it.

Seconds mean something on one machine only. Every benchmark is therefore of a group, ``arrays``
(numpy and compiled loops) or ``python`` (parsing), and each group has a benchmark named
``test_reference_*`` of a fixed amount of such work. A benchmark's time over its group's reference,
both from one run, is what is saved beside the seconds and compared with the saved baseline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

RATIO = "times_reference"
BASELINE = Path(__file__).resolve().parents[1] / "baseline"

#: How far a ratio may wander between runs on a machine that does other work too.
_NOISE = 1.3

_found: dict[str, float] = {}


def ratios(benchmarks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Benchmark -> its least time over that of its group's reference.

    Least, because other work on the machine only ever adds to a time.
    """
    references = {
        b["group"]: b["stats"]["min"] for b in benchmarks if b["name"].startswith("test_reference_")
    }
    return {
        b["name"]: b["stats"]["min"] / references[b["group"]]
        for b in benchmarks
        if b["group"] in references
    }


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # whose machine it was is nobody's business


def pytest_benchmark_update_commit_info(config: Any, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
    commit_info["project"] = "edgeopt"


def pytest_benchmark_update_json(
    config: Any, benchmarks: Sequence[Any], output_json: dict[str, Any]
) -> None:
    found = ratios(output_json["benchmarks"])
    for entry in output_json["benchmarks"]:
        if entry["name"] in found:
            entry["extra_info"][RATIO] = round(found[entry["name"]], 4)
    _found.update(found)


def saved_ratios() -> dict[str, float]:
    """The newest saved run of any machine."""
    files = sorted(BASELINE.rglob("*.json"), key=lambda path: path.name)
    if not files:
        return {}
    document = json.loads(files[-1].read_text(encoding="utf-8"))
    return {b["name"]: b["extra_info"][RATIO] for b in document["benchmarks"]}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _found:
        return
    saved = saved_ratios()
    terminalreporter.section("times the reference kernel, now and in the saved baseline")
    for name, ratio in _found.items():
        line = f"{name:<42} {ratio:>9.2f}"
        if name in saved:
            change = ratio / saved[name]
            line += f" {saved[name]:>9.2f}   x{change:.2f}"
            if not 1 / _NOISE < change < _NOISE:
                line += "  slower" if change > 1 else "  faster"
        terminalreporter.line(line)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hot")
