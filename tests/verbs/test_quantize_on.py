"""``quantize --on``: what depends on the machine is decided, and proven, on the other machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import sshd
from tests.in_process import no_processes
from tests.verbs.small_onnx import mlp

from edgeopt.core import Progress
from edgeopt.errors import HostError, UsageError, WorkerError
from edgeopt.measure import pair
from edgeopt.targets.onnx import plan as graph_plan
from edgeopt.targets.onnx import planner
from edgeopt.targets.onnx import prove as proving
from edgeopt.targets.onnx.base_graph import needs_unsigned
from edgeopt.verbs.quantize import make_plan, quantize


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def there(running: sshd.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The options that name the other machine; nothing is left on it afterwards."""
    monkeypatch.setenv("EDGEOPT_SSH_OPTIONS", running.options)
    monkeypatch.setattr(planner, "_CONTEST", 0.02)
    monkeypatch.setattr(proving, "_SECONDS", 0.02)
    monkeypatch.setattr(pair, "_PROCESSES", 1)
    yield {"on": running.url, "remote_python": sys.executable}
    assert list(running.space.iterdir()) == []


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return mlp(tmp_path / "source.onnx")


def test_it_is_decided_and_proven_there(
    running: sshd.Server, there: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    proof = quantize(source, out, force=True, **there)
    name = running.url.removesuffix(str(running.space))
    assert proof.plan is not None
    kernel = next(c for c in proof.plan.choices if c.name == "kernel")
    assert kernel.reason.startswith(f"timed on {name}: ")
    assert kernel.timings["float"]
    assert proof.environment["on"] == name
    assert any(name in note for note in proof.notes)
    assert {"latency", "load", "memory"} <= {m.metric for m in proof.measurements}
    assert [c.name for c in proof.verdict.checks if not c.passed] in ([], ["not slower"])
    again = quantize(source, tmp_path / "again.onnx", force=True, plan=proof.artifact["plan"])
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()
    assert "on" not in again.environment


def test_the_other_machine_s_processor_decides(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_processes(monkeypatch)
    old = {"machine": "x86_64", "features": ["avx2"]}
    monkeypatch.setattr(graph_plan, "machine", lambda on, threads: old)
    assert make_plan(source).choice("weights") == "uint8"


@pytest.mark.parametrize(
    ("machine", "features", "unsigned"),
    [
        ("x86_64", ["avx2"], True),
        ("AMD64", "unavailable", True),
        ("x86_64", ["avx2", "avx_vnni"], False),
        ("aarch64", ["dotprod"], False),
    ],
)
def test_which_processors_saturate(machine: str, features: Any, unsigned: bool) -> None:
    assert needs_unsigned({"machine": machine, "features": features}) is unsigned


def test_the_machine_is_lost_on_the_way(
    running: sshd.Server, there: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    def lose(step: str, part: float | None) -> None:
        if step == "timing candidates":
            for entry in Path("/proc").glob("[0-9]*"):
                if running.is_inside(entry):
                    os.kill(int(entry.name), 9)

    watch: Progress = lose
    planner._CONTEST = 60.0  # restored by the fixture's monkeypatch
    with pytest.raises(WorkerError, match="lost while doing a contest job"):
        quantize(source, tmp_path / "out.onnx", progress=watch, **there)
    assert [p.name for p in tmp_path.iterdir()] == ["source.onnx"]


def test_what_cannot_be_reached(source: Path, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no machine of that name"):
        quantize(source, tmp_path / "out.onnx", on="ssh://no.such.machine.invalid")
    with pytest.raises(UsageError, match="no machine; write ssh://"):
        make_plan(source, on="board")
    assert [p.name for p in tmp_path.iterdir()] == ["source.onnx"]


@pytest.mark.parametrize(("to", "said"), [("safetensors", "safetensors"), ("gguf", "GGUF")])
def test_where_nothing_is_timed(source: Path, to: str, said: str) -> None:
    with pytest.raises(UsageError, match=rf"--on has no meaning for {said}"):
        quantize(source, to=to, on="ssh://board")
    with pytest.raises(UsageError, match=rf"--on has no meaning for {said}"):
        make_plan(source, to=to, on="ssh://board")
