"""The pytest-benchmark suites run, each benchmark once and untimed."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class _Seen:
    """Outcomes of the tests of a session inside this one."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            self.outcomes[report.nodeid.rpartition("::")[2]] = report.outcome


def test_every_benchmark_runs_and_has_a_saved_ratio(tmp_path: Path) -> None:
    from benchmarks.suites.conftest import saved_ratios

    seen = _Seen()
    options = ["--benchmark-disable", "--benchmark-storage", str(tmp_path), "-q", "-s"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "-p", "no:timeout"]
    options += ["--rootdir", str(ROOT), "--basetemp", str(tmp_path / "suites")]
    assert pytest.main([str(ROOT / "benchmarks/suites"), *options], [seen]) == 0
    assert set(seen.outcomes.values()) == {"passed"}
    saved = saved_ratios()
    assert set(saved) == set(seen.outcomes)
    assert min(saved.values()) > 0
