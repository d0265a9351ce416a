"""``bench`` on the command line: what is printed, what is written, and the exit code."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report import results_of

from edgeopt import cli
from edgeopt.core import Results
from edgeopt.verbs import bench as verb

Run = Callable[..., int]


@pytest.fixture
def asked() -> dict[str, Any]:
    return {}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: dict[str, Any]) -> Run:
    """The command with results that are there already; ``asked`` is what the verb was given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def command(results: Results, *words: str) -> int:
        def measured(artifacts: tuple[str, ...], **options: Any) -> Results:
            asked.update(options, artifacts=artifacts)
            return results

        monkeypatch.setattr(verb, "bench", measured)
        monkeypatch.setattr(sys, "argv", ["edgeopt", "bench", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert isinstance(left.value.code, int)
        return left.value.code

    return command


def test_every_option_reaches_the_verb(run: Run, asked: dict[str, Any]) -> None:
    words = "a b --device cpu --threads 1,2 --batch 4,8 --seq 32 --runtime llama --time 3"
    words += " --processes 7 --prompt 9 --generate 5 --no-cold --timeout 20 --data d.npz"
    words += " --input x:int64[1] --model m:f --trust-pickle -o r.json --json"
    assert run(results_of.two(), *words.split()) == 0
    del asked["progress"]
    assert asked == {
        "artifacts": ("a", "b"),
        "device": "cpu",
        "threads": (1, 2),
        "batch": (4, 8),
        "seq": 32,
        "runtime": "llama",
        "seconds": 3.0,
        "processes": 7,
        "prompt": 9,
        "generate": 5,
        "cold": False,
        "timeout": 20.0,
        "data": "d.npz",
        "inputs": ("x:int64[1]",),
        "model": "m:f",
        "trust_pickle": True,
        "out": "r.json",
        "on": None,
        "baseline": None,
        "other_machine": False,
        "remote_python": asked["remote_python"],
    }


def test_json_is_all_that_stdout_gets(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(results_of.two(), "a", "b", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert Results.from_json(document).to_json() == results_of.two().to_json()
    assert document["derived"]["rows"]


def test_reports_and_charts_are_written(run: Run, tmp_path: Path) -> None:
    words = ["--report", "r.html", "--report", "r.md", "--report", "r.csv", "--charts", "c"]
    assert run(results_of.two(), "a", "b", *words) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"r.html", "r.md", "r.csv", "c"}
    assert list((tmp_path / "c").glob("*.svg"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--report", "r.pdf"], "r.pdf: a report's name ends with"),
        (["--report", "no/r.html"], "the folder"),
        (["--charts", "file"], "is a file; give a folder"),
        (["--fail-if", "latency.p50 >>"], "--fail-if"),
        (["--threads", "one"], "'one' is not numbers separated by commas"),
        (["--batch", "1,,2"], "is not numbers separated by commas"),
        (["--device", "tpu"], "'tpu' is not one of"),
    ],
)
def test_what_cannot_be_is_said_before_measuring(
    run: Run,
    asked: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run(results_of.two(), "a", "b", *words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert asked == {}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_is_exit_3_and_the_rest_is_shown(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = results_of.failed()
    (lost,) = [s for s in results.subjects if s.failure]
    assert run(results, "a", "b", "--report", "r.md") == 3
    said = capsys.readouterr()
    assert said.err.startswith(f"edgeopt: error: {lost.name}: ") and said.err.count("\n") == 1
    assert "File size" in said.out
    assert (tmp_path / "r.md").exists()


def test_a_breach_is_exit_4_after_the_report(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--fail-if", "file > 1B", "--report", "r.csv"]
    assert run(results_of.two(), "a", "b", *words) == 4
    said = capsys.readouterr()
    assert "--fail-if 'file > 1B'" in said.err and said.err.count("\n") == 1
    assert "File size" in said.out and (tmp_path / "r.csv").exists()
    assert run(results_of.two(), "a", "b", "--fail-if", "file > 900GB") == 0


def test_a_condition_on_what_was_not_measured_never_passes(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(results_of.weights(), "a", "b", "--fail-if", "latency.p99 > 1s") == 2
    assert capsys.readouterr().err.count("\n") == 1
