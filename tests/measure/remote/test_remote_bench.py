"""Benchmarks on another machine: the same document as here, and what is kept when it is lost."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.measure.conftest import write_mlp
from tests.measure.remote.test_host import processes
from tests.sshd import Server

from edgeopt.cli import cli
from edgeopt.core import Results
from edgeopt.errors import HostError, InputsError, UsageError
from edgeopt.measure.bench import Bench, run_bench
from edgeopt.measure.remote.bench import RemoteBench
from edgeopt.measure.remote.host import Host, connect
from edgeopt.measure.remote.target import parse_target
from edgeopt.measure.trial import BenchSettings, Trial
from edgeopt.runtimes.engine import Case
from edgeopt.verbs import bench as verb

QUICK = BenchSettings(processes=1, seconds=0.02, turn=0.005, cold=False)


def trial(path: Path, *files: Path, name: str = "", feed: object = None, **case: object) -> Trial:
    given = Case(path=path, files=(path, *files), runtime="onnxruntime", **case)  # type: ignore[arg-type]
    feed = {"x": np.ones((1, 16), np.float32)} if feed is None else feed
    return Trial(name or path.stem, given, {"threads": 1}, feed)  # type: ignore[arg-type]


def shown(found: Bench) -> list[tuple[object, ...]]:
    """What was measured; whether it warmed up depends on the clock."""
    rest = [m for m in found.measurements if m.metric != "warmup"]
    return [(m.subject, m.metric, m.unit, m.conditions) for m in rest]


def test_the_same_as_here(host: Host, tmp_path: Path) -> None:
    one = write_mlp(tmp_path / "one.onnx", external=True)
    (tmp_path / "deep").mkdir()
    two = write_mlp(tmp_path / "deep" / "two.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"junk" * 20)
    trials = [trial(one, tmp_path / "one.bin"), trial(two), trial(broken)]
    rounds: list[Bench] = []
    steps: list[str] = []
    assert RemoteBench(host).resolve("cpu", "onnxruntime") == "cpu"
    there = RemoteBench(host).run(
        trials,
        QUICK,
        progress=lambda step, part: steps.append(step),
        on_round=rounds.append,
    )
    here = run_bench(trials, QUICK)
    assert shown(there) == shown(here)
    assert all(len(m.values) == 1 for m in there.measurements if m.metric == "latency")
    assert there.info == here.info
    assert set(there.failures) == {"broken"}
    assert str(broken) in there.failures["broken"]  # not the name that it had there
    assert len(rounds) == 1
    assert rounds[-1] == there
    assert any(step.startswith("sending") for step in steps)


def test_a_machine_that_is_lost_keeps_what_it_gave(server: Server, tmp_path: Path) -> None:
    rounds: list[Bench] = []

    def lose(found: Bench) -> None:
        rounds.append(found)
        keeper = min(pid for pid in processes(server) if _is_keeper(pid))
        os.kill(keeper, 9)  # the eldest: a worker that is just being started looks like it

    settings = BenchSettings(processes=50, seconds=20.0, turn=0.005, cold=False)
    with connect(parse_target(server.url), python=sys.executable) as host:
        found = RemoteBench(host).run(
            [trial(write_mlp(tmp_path / "a.onnx"))], settings, on_round=lose
        )
    assert found.measurements == rounds[-1].measurements != ()
    assert "lost while measuring" in found.failures["a"]


def _is_keeper(pid: int) -> bool:
    return b"-c" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def test_what_is_not_measured_elsewhere(host: Host, tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "a.onnx")
    torch = Trial("a", Case(path=path, files=(path,), runtime="torch"), {})
    outside = trial(path, Path("/etc/hostname"))
    objects = trial(path, feed={"x": np.array([None])})
    with pytest.raises(UsageError, match="torch is not measured on another machine"):
        RemoteBench(host).run([torch], QUICK)
    with pytest.raises(Exception, match="not beside or below"):
        RemoteBench(host).run([outside], QUICK)
    with pytest.raises(InputsError, match="input x: not an array"):
        RemoteBench(host).run([objects], QUICK)


def test_a_device_that_is_not_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Host, *more: object) -> str:
        raise UsageError("no CUDA")

    monkeypatch.setattr(Host, "ask", refuse)
    with pytest.raises(UsageError, match=r"--on ssh://.*: no CUDA"):
        RemoteBench(host).resolve("cuda", "onnxruntime")


def test_no_runtime_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(host.facts.packages, "llama_cpp", None)  # type: ignore[misc]
    with pytest.raises(HostError, match="pip install llama-cpp-python"):
        RemoteBench(host).resolve("cpu", "llama.cpp")


def test_by_the_command_line(
    server: Server,
    mlp: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verb, "_FEWEST_PROCESSES", 1)
    out = tmp_path / "results.json"
    arguments = [
        "bench", mlp(), "--on", server.url, "--remote-python", sys.executable, "--time", "0.02",
        "--processes", "1", "--no-cold", "--json", "-o", out,
    ]  # fmt: skip
    done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0
    results = Results.from_json(json.loads(done.stdout))
    assert results.settings["on"] == server.url
    assert results.environment["machine"] == os.uname().machine
    assert results.of("source", "latency")
    assert Results.load(out).measurements == results.measurements


@pytest.mark.parametrize(
    ("on", "said"),
    [("board", "no machine; write ssh://"), ("ssh://no.such.machine.invalid", "of that name")],
)
def test_the_command_line_refuses(
    server: Server, mlp: Callable[..., Path], on: str, said: str
) -> None:
    with pytest.raises((UsageError, HostError), match=said):
        verb.bench([mlp()], on=on)
