"""Jobs on another machine: the same answers as here, its failures named by our paths."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.measure.conftest import write_mlp
from tests.sshd import Server

from edgeopt.errors import SourceError, WorkerError
from edgeopt.measure.contest import time_candidates
from edgeopt.measure.pair import measure_pair
from edgeopt.measure.remote.host import Host, connect
from edgeopt.measure.remote.jobs import RemoteJobs
from edgeopt.measure.remote.target import parse_target
from edgeopt.measure.score import score_candidates


@pytest.fixture
def samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((2, 16)).astype(np.float32)} for _ in range(3)]


def test_a_pair(
    host: Host,
    samples: list[dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgeopt.measure.pair._PROCESSES", 1)
    source = write_mlp(tmp_path / "a.onnx", external=True)
    artifact = write_mlp(tmp_path / "b.onnx", noise=0.05)
    there = measure_pair(source, artifact, samples, seconds=0.02, on=RemoteJobs(host))
    here = measure_pair(source, artifact, samples, seconds=0.02)
    assert there.failure is None
    assert there.fidelity == here.fidelity
    assert there.nbytes == here.nbytes
    assert there.files == here.files
    assert {m.metric for m in there.measurements} == {m.metric for m in here.measurements}
    assert not list(Path(host.facts.folder).glob("samples/**/*.npy"))


def test_candidates_are_sent_once(
    host: Host,
    samples: list[dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[str] = []
    send = Host._send
    monkeypatch.setattr(
        Host, "_send", lambda self, name, *more: sent.append(name) or send(self, name, *more)
    )
    one, two = write_mlp(tmp_path / "one.onnx"), write_mlp(tmp_path / "two.onnx", noise=0.1)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"junk" * 9)
    jobs = RemoteJobs(host)
    scores = score_candidates(one, {"two": two, "broken": broken}, samples, on=jobs)
    assert scores == score_candidates(one, {"two": two, "broken": broken}, samples)
    timings = time_candidates(
        {"one": one, "two": two, "broken": broken}, samples, seconds=0.02, on=jobs
    )
    assert list(timings) == ["one", "two"]
    assert str(broken) in timings.failures["broken"]  # not the name that it has there
    models = [name for name in sent if name.startswith("models/")]
    assert sorted(models) == [f"models/0/{n}.onnx" for n in ("broken", "one", "two")]


def test_the_source_s_own_error_comes_back(
    host: Host, samples: list[dict[str, np.ndarray]], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"junk" * 9)
    with pytest.raises(SourceError, match=str(broken)):
        measure_pair(broken, write_mlp(tmp_path / "b.onnx"), samples, on=RemoteJobs(host))


def test_the_machine_is_lost_while_a_job_runs(
    server: Server, samples: list[dict[str, np.ndarray]], mlp: Callable[..., Path]
) -> None:
    """Its runner is killed: an error that says so, and neither process nor file stays."""

    def kill() -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    worker = b"edgeopt.measure.worker" in (entry / "cmdline").read_bytes()
                    if worker and server.is_inside(entry):
                        fields = (entry / "stat").read_text().rpartition(")")[2].split()
                        workers.append(int(entry.name))
                        os.kill(int(fields[1]), 9)
                        return
                except OSError:
                    continue
            time.sleep(0.01)

    workers: list[int] = []
    killer = threading.Thread(target=kill)
    with (
        pytest.raises(WorkerError, match="lost while doing a contest job"),
        connect(parse_target(server.url), python=sys.executable) as host,
    ):
        killer.start()
        time_candidates({"a": mlp()}, samples, seconds=120.0, on=RemoteJobs(host))
    killer.join()
    assert workers
    end = time.monotonic() + 10
    while Path(f"/proc/{workers[0]}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{workers[0]}").exists()
