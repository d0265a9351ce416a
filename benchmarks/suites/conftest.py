"""What the suites share: reference kernels, and the table of ratios to them.

Seconds mean something on one machine only, and on a busy one not even there. Every benchmark is of
a group, ``arrays`` (numpy and compiled loops) or ``python`` (parsing), that has a reference: a set
amount of such work, timed just before and just after the benchmark. The benchmark's least time over
the reference's is what is saved beside the seconds, and compared with the saved baseline. (Least,
because other work on the machine only ever adds to a time.)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RATIO = "times_reference"
BASELINE = Path(__file__).resolve().parents[1] / "baseline"

#: How far a ratio wanders between runs on a machine that does other work too.
_NOISE = 1.5
#: How often the reference is run on each side of a benchmark.
_TURNS = 15

_VALUES = np.random.default_rng(0).standard_normal((256, 1024), np.float32)
_TEXT = json.dumps({f"tensor{i}": {"shape": [i, 64], "at": [i, i + 9]} for i in range(1000)})


def _arrays() -> float:
    """Scale, round, clip, and the squared error: what a plain quantizer of one scale would do."""
    codes = np.clip(np.rint(_VALUES * np.float32(30)), -127, 127)
    return float(np.square(codes * np.float32(1 / 30) - _VALUES).sum())


def _python() -> int:
    """The interpreter and a C parser: one JSON document of 1,000 entries, read and walked."""
    return sum(e["shape"][0] * e["shape"][1] for e in json.loads(_TEXT).values())


REFERENCES: Mapping[str, Callable[[], Any]] = {"arrays": _arrays, "python": _python}

#: Benchmark -> its ratio, in this session.
_found: dict[str, float] = {}


@pytest.fixture(autouse=True)
def beside_the_reference(benchmark: Any) -> Iterator[None]:
    """Time the group's reference around the benchmark."""
    if benchmark.disabled:
        yield
        return
    kernel = REFERENCES[benchmark.group]
    before = _least(kernel)
    yield
    benchmark.extra_info["reference_s"] = min(before, _least(kernel))


def _least(kernel: Callable[[], Any]) -> float:
    taken = []
    for _ in range(_TURNS):
        began = time.perf_counter()
        kernel()
        taken.append(time.perf_counter() - began)
    return min(taken)


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # whose machine it was is nobody's business


def pytest_benchmark_update_commit_info(config: Any, commit_info: dict[str, Any]) -> None:
    commit_info.clear()
    commit_info["project"] = "edgeopt"


def pytest_benchmark_update_json(
    config: Any, benchmarks: Sequence[Any], output_json: dict[str, Any]
) -> None:
    for entry in output_json["benchmarks"]:
        ratio = entry["stats"]["min"] / entry["extra_info"]["reference_s"]
        entry["extra_info"][RATIO] = _found[entry["name"]] = round(ratio, 4)


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
