"""Workers that die, hang or are interrupted: reported by name, and nothing left running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgeopt.errors import OutputError, WorkerError
from edgeopt.measure import child, process
from edgeopt.measure.contest import time_candidates
from edgeopt.measure.pair import measure_pair
from edgeopt.measure.process import workplace
from edgeopt.measure.score import score_candidates

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

#: Loaded by the worker at its start: a file whose name says so takes the process down, as a crash
#: of native code does, or hangs.
SABOTAGE = """
import os, signal, sys, time
if "edgeopt.measure.worker" in " ".join(sys.orig_argv):
    from edgeopt.runtimes.onnxruntime import OnnxSession
    plain = OnnxSession.open.__func__
    def open(cls, path, **options):
        name = os.path.basename(path)
        if name.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if name.startswith("exit"):
            print("native words", file=sys.stderr, flush=True)
            os._exit(7)
        if name.startswith("hang"):
            with __builtins__["open"](os.environ["PID_FILE"] + ".part", "w") as f:
                f.write(str(os.getpid()))
            os.rename(os.environ["PID_FILE"] + ".part", os.environ["PID_FILE"])
            time.sleep(60)
        return plain(cls, path, **options)
    OnnxSession.open = classmethod(open)
"""


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    text = SABOTAGE.replace('__builtins__["open"]', "io.open").replace(
        "import os,", "import io, os,"
    )
    (folder / "sitecustomize.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    return folder


def test_a_crashing_artifact_is_named_with_its_signal(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]], sabotage: Path
) -> None:
    result = measure_pair(mlp("a.onnx"), mlp("crash.onnx"), feeds)
    assert "SIGSEGV" in (result.failure or "")
    assert "loading" in (result.failure or "")
    assert "crash.onnx" in (result.failure or "")


def test_a_crashing_source_raises(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]], sabotage: Path
) -> None:
    with pytest.raises(WorkerError, match="SIGSEGV"):
        measure_pair(mlp("crash.onnx"), mlp("a.onnx"), feeds)


def test_a_worker_that_just_leaves_is_quoted(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]], sabotage: Path
) -> None:
    result = measure_pair(mlp("a.onnx"), mlp("exit.onnx"), feeds)
    assert "code 7" in (result.failure or "")
    assert "native words" in (result.failure or "")


def test_a_crashing_candidate_does_not_end_the_contest(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]], sabotage: Path
) -> None:
    timings = time_candidates(
        {"crash": mlp("crash.onnx"), "good": mlp("a.onnx")}, feeds, seconds=0.02
    )
    assert list(timings) == ["good"]
    assert "SIGSEGV" in timings.failures["crash"]


def test_a_crashing_candidate_scores_lowest(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]], sabotage: Path
) -> None:
    candidates = {"crash": mlp("crash.onnx"), "good": mlp("b.onnx")}
    found = score_candidates(mlp("a.onnx"), candidates, feeds)
    assert found == {"crash": -np.inf, "good": np.inf}
    assert score_candidates(mlp("a.onnx"), {"x": mlp("crash.onnx")}, feeds) == {"x": -np.inf}


def test_a_silent_worker_is_given_up_and_ended(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]], sabotage: Path, tmp_path: Path
) -> None:
    job = {
        "kind": "solo",
        "subject": "artifact",
        "path": str(mlp("hang.onnx")),
        "threads": 1,
        "runs": 1,
    }
    spent = time.process_time()
    with workplace(feeds) as place:
        outcome = place.run(job, silence=3.0)
        folder = place.folder
    assert time.process_time() - spent < 1.0  # it slept, it did not spin
    assert "no sign" in str(outcome.error)
    assert outcome.subject == "artifact"
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert not folder.exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(
    mlp: Callable[..., Path], sabotage: Path, tmp_path: Path, how: signal.Signals
) -> None:
    code = (
        "import sys, pathlib, numpy as np\n"
        "from edgeopt.measure.pair import measure_pair\n"
        "feeds = [{'x': np.zeros((1, 16), np.float32)}]\n"
        "measure_pair(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), feeds)\n"
    )
    root = Path(process.__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(mlp("a.onnx")), str(mlp("hang.onnx"))],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{sabotage}", "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    pid_file = tmp_path / "pid"
    try:
        _until(pid_file.exists)
        worker = int(pid_file.read_text())
        parent.send_signal(how)
        _, errors = parent.communicate(timeout=30)
    finally:
        parent.kill()
    _until(lambda: not psutil.pid_exists(worker))
    if how is signal.SIGINT:
        assert b"KeyboardInterrupt" in errors
        assert not list(tmp_path.glob("edgeopt-*"))


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_an_interrupt_while_listening_ends_the_worker(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]]
) -> None:
    def interrupt(step: str, part: float | None) -> None:
        raise KeyboardInterrupt

    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        measure_pair(mlp("a.onnx"), mlp("b.onnx"), feeds, progress=interrupt)
    assert {child.pid for child in psutil.Process().children()} <= before


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(process.np, "save", full)
    with (
        pytest.raises(OutputError, match="No space left on device; set TMPDIR"),
        workplace([{"x": np.zeros(3)}]),
    ):
        pass


@pytest.mark.usefixtures("side_by_side")
def test_nothing_of_the_current_folder_is_imported(
    mlp: Callable[..., Path],
    feeds: list[dict[str, np.ndarray]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = mlp("a.onnx")
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("numpy", "json", "onnxruntime"):
        (trap / f"{name}.py").write_text("raise SystemExit('trapped')")
    monkeypatch.chdir(trap)
    assert measure_pair(source, source, feeds, seconds=0.0).failure is None


def test_a_worker_loads_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, edgeopt.measure.worker, onnxruntime\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxscript', 'transformers', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = str(Path(process.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_no_executable_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.sys, "executable", "/nowhere/python")
    with workplace([{"x": np.zeros(3)}]) as place, pytest.raises(WorkerError, match="cannot start"):
        place.run({"kind": "solo"})
    monkeypatch.setattr(child.sys, "executable", "")
    with workplace([{"x": np.zeros(3)}]) as place, pytest.raises(WorkerError, match="executable"):
        place.run({"kind": "solo"})


def test_the_worker_in_this_process(
    mlp: Callable[..., Path], feeds: list[dict[str, np.ndarray]]
) -> None:
    """The worker's own side, spoken to directly: what it answers on its pipe."""
    import io
    import json

    from edgeopt.measure import worker

    def ask(job: dict[str, object]) -> dict[str, object]:
        with workplace(feeds) as place:
            document = {**job, "feeds": {"count": len(feeds), "names": ["x"]}}
            path = place.folder / "job.json"
            path.write_text(json.dumps(document))
            pipe = io.BytesIO()
            with contextlib.suppress(ValueError):
                worker.main(path, pipe)
            return json.loads(pipe.getvalue().splitlines()[-1])

    source = str(mlp("a.onnx"))
    pair = {
        "kind": "pair",
        "source": source,
        "artifact": source,
        "threads": 1,
        "seconds": 0.01,
        "output_map": None,
        "compare": True,
    }
    assert ask(pair)["result"]["fidelity"][0]["sqnr_db"] == np.inf
    assert ask({**pair, "compare": False})["result"]["fidelity"] == []
    error = ask({**pair, "artifact": "none.onnx"})["error"]
    assert (error["type"], error["subject"]) == ("SourceError", "artifact")
    solo = {"kind": "solo", "subject": "source", "path": source, "threads": 1, "runs": 2}
    assert ask(solo)["result"]["load"] > 0
    contest = {
        "kind": "contest",
        "candidates": {"a": source, "b": "none.onnx"},
        "threads": 1,
        "seconds": 0.01,
    }
    answer = ask(contest)["result"]
    assert list(answer["timings"]) == ["a"]
    assert list(answer["failures"]) == ["b"]
    score = {"kind": "score", "source": source, "candidates": {"a": source, "b": "n"}, "threads": 1}
    assert ask(score)["result"]["scores"] == {"a": np.inf, "b": None}
    assert ask({**contest, "candidates": {"b": "none.onnx"}})["result"]["timings"] == {}


def test_a_worker_ends_when_its_input_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.measure import worker

    codes: list[int] = []
    for answer in (b"", OSError("closed")):

        def read(fd: int, size: int, answer: bytes | OSError = answer) -> bytes:
            if isinstance(answer, OSError):
                raise answer
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(worker.os, "read", read)
            patch.setattr(worker.os, "_exit", codes.append)
            worker._end_with_parent()
    assert codes == [1, 1]


def test_a_worker_leaves_no_core_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from edgeopt.measure import worker

    limits: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limit: limits.append((which, limit)))
    worker._no_core_dump()
    assert limits == [(resource.RLIMIT_CORE, (0, 0))]
    monkeypatch.setitem(sys.modules, "resource", None)
    worker._no_core_dump()
    assert len(limits) == 1
