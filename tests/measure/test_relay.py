"""Workers that take turns: crashes, hangs and errors stay with the artifact that caused them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeopt.core import Measurement
from edgeopt.measure.bench import Bench, BenchSettings, Trial, run_bench
from edgeopt.runtimes import engine
from edgeopt.runtimes.engine import Case

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

#: An engine of the tests' own, found by the worker as any other: what it does says the path.
ENGINE = """
import ctypes, os, time
from edgeopt.errors import SourceError
from edgeopt.runtimes import engine

class Mimic:
    repeats = True
    def __init__(self, case):
        self.case, self.runs = case, 0
        self.name = case.path.name
    def imports(self): pass
    def load(self):
        if self.name.startswith("unloadable"):
            raise SourceError(f"{self.case.path}: no good; give another")
        if self.name.startswith("segfault"):
            ctypes.string_at(0)
    def prepare(self, feed):
        self.feed = feed
    def run(self):
        self.runs += 1
        with open(os.environ["MIMIC_LOG"], "a") as log:
            log.write(f"{self.name} {os.getpid()}\\n")
        if self.name.startswith("abort") and self.runs > 3:
            os.abort()
        if self.name.startswith("hang") and self.runs > 2:
            time.sleep(60)
        if self.name.startswith("memory") and self.runs > 2:
            raise MemoryError
        time.sleep(0.002)
    def info(self):
        fallback = [["where", "NonZero"], ["", "Shape"]] if self.name.startswith("partly") else []
        total = float(sum(v.sum() for v in self.feed.values()))
        return {"runs": self.runs, "sum": total, "fallback": fallback}

engine.ENGINES = {**engine.ENGINES, "mimic": "mimic_engine:Mimic"}
"""

SITE = """
import sys
if "edgeopt.measure.bench_worker" in " ".join(sys.orig_argv):
    import mimic_engine
"""

QUICK = BenchSettings(processes=5, seconds=0.1, turn=0.01, samples=40, silence=20.0)


@pytest.fixture
def mimic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    site = tmp_path / "site"
    site.mkdir()
    (site / "mimic_engine.py").write_text(ENGINE)
    (site / "sitecustomize.py").write_text(SITE)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("MIMIC_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(engine, "ENGINES", {**engine.ENGINES, "mimic": "mimic_engine:Mimic"})

    def trial(name: str, **more: Any) -> Trial:
        path = tmp_path / name
        path.write_bytes(b"x" * 5000)
        case = Case(path=path, files=(path,), runtime="mimic")
        return replace(
            Trial(name, case, {"runtime": "mimic", "threads": 1}, {"x": np.ones(3)}), **more
        )

    return trial


def of(bench: Bench, subject: str) -> Mapping[str, Measurement]:
    return {m.metric: m for m in bench.measurements if m.subject == subject}


def test_two_trials_take_turns_in_fresh_processes(
    mimic: Callable[..., Trial], tmp_path: Path
) -> None:
    bench = run_bench([mimic("a"), mimic("b")], QUICK)
    assert bench.failures == {}
    for subject in ("a", "b"):
        found = of(bench, subject)
        latency = found["latency"]
        assert len(latency.values) == len(latency.blocks) == 5
        for samples, blocks in zip(latency.values, latency.blocks, strict=True):
            assert sum(blocks) == len(samples) > 0
        assert all(value >= 0.002 for samples in latency.values for value in samples)
        assert len(found["load.cold"].values) == len(found["load.warm"].values) == 5
        assert bench.info[subject]["sum"] == 3.0
        assert {"memory.baseline", "memory.peak", "memory.anonymous", "import", "first"} <= set(
            found
        )
    assert {m.conditions["threads"] for m in bench.measurements} == {1}
    lines = (tmp_path / "log").read_text().split("\n")[:-1]
    # Ten processes ran, each one subject's; who came first alternated from round to round.
    ran = list(dict.fromkeys(lines))
    assert len({line.split()[1] for line in ran}) == len(ran) == 10
    firsts = [line.split()[0] for line in ran]
    assert firsts == ["a", "b", "b", "a"] * 2 + ["a", "b"]
    # Within a round the subjects took turns: more changes of subject than two runs would give.
    runs_of = [line.split()[0] for line in lines]
    changes = sum(x != y for x, y in itertools.pairwise(runs_of))
    assert changes >= 5 * 3


def test_nodes_on_the_cpu_and_threads_without_a_core_are_said(mimic: Callable[..., Trial]) -> None:
    trials = [mimic("a"), mimic("partly")]
    many = [replace(trial, case=replace(trial.case, threads=4096)) for trial in trials]
    bench = run_bench([trials[0], many[1]], replace(QUICK, cold=False))
    assert bench.info["a"]["pinning"].keys() == {"1"}
    assert "4096 threads" in bench.info["partly"]["pinning"]["4096"]
    (nodes,) = (w for w in bench.warnings if "CPU" in w)
    assert nodes == "partly: 2 nodes stayed on the CPU: where (NonZero), unnamed (Shape)"
    assert sum("not pinned: 4096 threads" in w for w in bench.warnings) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("segfault", "SIGSEGV while loading"),
        ("abort", "SIGABRT while running"),
        ("unloadable", "no good; give another"),
        ("memory", "out of memory"),
    ],
)
def test_what_ends_one_ends_no_other(mimic: Callable[..., Trial], name: str, reason: str) -> None:
    rounds: list[Bench] = []
    bench = run_bench([mimic("a"), mimic(name)], QUICK, on_round=rounds.append)
    assert list(bench.failures) == [name]
    assert reason in bench.failures[name]
    assert "\n" not in bench.failures[name]
    assert len(of(bench, "a")["latency"].values) == 5
    assert len(rounds) == 5
    if name in ("abort", "memory"):
        assert "load.warm" in of(bench, name)  # what it gave before is kept
    left = [p for p in psutil.Process().children(recursive=True) if "bench_worker" in str(p)]
    assert left == []


def test_a_hang_is_given_up(mimic: Callable[..., Trial]) -> None:
    settings = replace(QUICK, silence=1.5, cold=False)
    bench = run_bench([mimic("hang"), mimic("a")], settings)
    assert "no answer for 1.5 s while running" in bench.failures["hang"]
    assert "--timeout" in bench.failures["hang"]
    assert len(of(bench, "a")["latency"].values) == 5


def test_groups_do_not_mix(mimic: Callable[..., Trial]) -> None:
    trials = [
        mimic("a", group="1", conditions={"threads": 1}),
        mimic("a", group="2", conditions={"threads": 2}),
    ]
    bench = run_bench(trials, replace(QUICK, cold=False))
    latencies = [m for m in bench.measurements if m.metric == "latency"]
    assert [m.conditions["threads"] for m in latencies] == [1, 2]
    assert all(len(m.values) == 5 for m in latencies)


def test_progress_goes_from_0_to_1(mimic: Callable[..., Trial]) -> None:
    said: list[tuple[str, float | None]] = []
    run_bench([mimic("a")], QUICK, progress=lambda step, part: said.append((step, part)))
    parts = [part for _, part in said if part is not None]
    assert parts == sorted(parts) and parts[0] == 0.0 and 0.9 < parts[-1] <= 1.0
    assert said[0][0] == "process 1 of 5, a: cold load:"


def test_what_does_not_fit_together_runs_one_after_the_other(
    mimic: Callable[..., Trial], tmp_path: Path
) -> None:
    bench = run_bench([mimic("a"), mimic("b")], replace(QUICK, cold=False, memory=7000))
    assert bench.failures == {}
    assert any("one at a time" in warning for warning in bench.warnings)
    assert all(m.values and not m.blocks for m in bench.measurements if m.metric == "latency")
    runs_of = [line.split()[0] for line in (tmp_path / "log").read_text().split("\n")[:-1]]
    # A B, B A, A B, B A, A B: whole processes alternate, and two of a kind meet in between.
    assert [name for name, _ in itertools.groupby(runs_of)] == ["a", "b", "a", "b", "a", "b"]
