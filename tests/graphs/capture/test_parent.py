"""The child process seen from outside: answers, errors, deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.graphs.capture import nets
from tests.in_process import forked_capture

from edgeopt.core import InputSpec
from edgeopt.errors import SourceError, UnsafeError, WorkerError
from edgeopt.files.open import open_source
from edgeopt.graphs.capture import capture, parent

NETS = "tests.graphs.capture.nets"


@pytest.fixture
def saved(tmp_path):
    torch.save(nets.Head().state_dict(), tmp_path / "w.pt")
    return open_source(tmp_path / "w.pt")


def test_a_whole_capture_in_a_child(saved, tmp_path):
    steps = []
    held = capture(
        saved,
        tmp_path / "work",
        model=f"{NETS}:Head",
        inputs=[InputSpec("features", "float32", ("batch", 8))],
        progress=lambda step, share: steps.append(step),
    )
    assert held.rung == "dynamo" and held.opset == 21
    assert held.inputs == (InputSpec("features", "float32", ("batch", 8)),)
    assert held.outputs == (InputSpec("output", "float32", ("batch", 4)),)
    assert held.example["features"].shape == (1, 8)
    assert held.agreement_db > 100
    assert held.peak_bytes > 50e6
    assert steps[:2] == ["importing torch", "loading the model"]
    assert steps[-1] == "exporting (dynamo)"


def test_importing_the_parents_side_loads_no_torch():
    code = (
        "import sys, edgeopt.graphs.capture; print({'torch', 'onnx', 'onnx_ir'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert out.stdout.strip() == "set()", out.stderr


def test_errors_travel_with_their_class_and_message(saved, tmp_path, capfd):
    with pytest.raises(SourceError, match="has no Missing; it has"):
        capture(saved, tmp_path / "work", model=f"{NETS}:Missing")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_an_untrusted_module_starts_no_child(tmp_path, monkeypatch):
    torch.save(nets.Head(), tmp_path / "m.pt")

    def never(*args, **kwargs):
        raise AssertionError("a child was started")

    monkeypatch.setattr(parent, "_run", never)
    with pytest.raises(UnsafeError, match="give --trust-pickle if you trust it, or the code"):
        capture(open_source(tmp_path / "m.pt"), tmp_path / "work")


def _boot(monkeypatch, code):
    monkeypatch.setattr(parent, "_BOOT", textwrap.dedent(code))


def test_a_child_killed_by_a_signal_is_named(saved, tmp_path, monkeypatch):
    _boot(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(WorkerError, match="killed by SIGSEGV"):
        capture(saved, tmp_path / "work", model=f"{NETS}:Head")
    _boot(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(WorkerError, match=r"killed by SIGKILL \(out of memory\?\)"):
        capture(saved, tmp_path / "work", model=f"{NETS}:Head")


def test_a_child_that_ends_without_an_answer_quotes_its_last_line(saved, tmp_path, monkeypatch):
    _boot(monkeypatch, "print('not json', flush=True); raise SystemExit('went wrong')")
    with pytest.raises(WorkerError, match="status 1 and no answer: went wrong"):
        capture(saved, tmp_path / "work", model=f"{NETS}:Head")


def _running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _gone(pid, within=10.0):
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not _running(pid):
            return True
        time.sleep(0.02)
    return False


SLOW = """
    import json, os, sys, time
    print(json.dumps({"step": str(os.getpid())}), flush=True)
    time.sleep(60)
"""


def test_an_interrupt_ends_the_child(saved, tmp_path, monkeypatch):
    _boot(monkeypatch, SLOW)
    seen = []

    def interrupt(step, share):
        seen.append(int(step))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(saved, tmp_path / "work", model=f"{NETS}:Head", progress=interrupt)
    assert _gone(seen[0])


def test_a_killed_parent_leaves_no_child(tmp_path):
    code = f"""
        import sys
        from pathlib import Path
        from edgeopt.core import Source
        from edgeopt.graphs.capture import capture
        source = Source(Path("absent.pt"), "torch-state-dict", (), 0, ())
        sys.path.insert(0, {str(tmp_path)!r})
        capture(source, Path({str(tmp_path / "work")!r}), model="slow:f")
    """
    pid_file = tmp_path / "pid"
    (tmp_path / "slow.py").write_text(
        f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], env=env)
    end = time.monotonic() + 60
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = int(pid_file.read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert _gone(child)


def test_an_example_travels_with_its_values(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(parent, "_run", forked_capture)
    x = np.full((1, 8), 0.25, np.float32)
    held = capture(saved, tmp_path / "work", model=f"{NETS}:Head", example={"features": x})
    assert np.array_equal(held.example["features"], x)
