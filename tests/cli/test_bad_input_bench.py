"""What ``bench`` and ``compare`` do with what they should not be given, and with runtimes that die.

The same promise as everywhere: one line on standard error, the right exit code, every file that
was there as it was, and of what could be measured, nothing lost.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # before any stand-in for it is on the path
import psutil
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from tests.cli.test_bad_input import (
    Here,
    Left,
    assert_refused,
    contents,
    environment,
    here,
    in_a_process,
    mlp,
)
from tests.graphs.nets import model, node, normal
from tests.report import results_of

from edgeopt.core import Results

__all__ = ["here"]  # a fixture

assert onnxruntime

USUAL = ("--time", "0.05", "--no-cold", "-o", "r.json")
QUICK = ("--processes", "5", *USUAL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two artifacts, and results of before that are to stay unless new ones replace them."""
    folder = tmp_path / "x"
    folder.mkdir()
    onnx.save(mlp(), folder / "m.onnx")
    save_file({"w": normal(64, 64)}, folder / "w.safetensors")
    return folder


# ---------------------------------------------------------------------------------------------
# said before anything is measured

Spoil = Callable[[Path], None]


def _text(name: str, text: str | bytes) -> Spoil:
    raw = text.encode() if isinstance(text, str) else text
    return lambda folder: (folder / name).write_bytes(raw) and None


def _cut(folder: Path) -> None:
    raw = (folder / "m.onnx").read_bytes()
    (folder / "cut.onnx").write_bytes(raw[: len(raw) // 2])


def _linked(folder: Path) -> None:
    (folder / "l.onnx").symlink_to("m.onnx")


def _nothing(folder: Path) -> None:
    """As it is."""


REFUSED: dict[str, tuple[Spoil, tuple[str, ...], tuple[str, ...]]] = {
    "missing": (_nothing, ("no.onnx",), ("no.onnx", "no such file")),
    "empty": (_text("e.onnx", ""), ("e.onnx",), ("e.onnx", "empty")),
    "cut short": (_cut, ("cut.onnx",), ("cut.onnx", "cut short")),
    "text": (_text("t.txt", "hello\n"), ("t.txt",), ("t.txt", "text file")),
    "second one missing": (_nothing, ("m.onnx", "no.onnx"), ("no.onnx",)),
    "twice": (_nothing, ("m.onnx", "m.onnx"), ("m.onnx", "twice")),
    "twice, another way": (_nothing, ("m.onnx", "../x/m.onnx"), ("twice",)),
    "twice, by a link": (_linked, ("m.onnx", "l.onnx"), ("l.onnx", "twice")),
    "no GPU": (_nothing, ("m.onnx", "--device", "cuda"), ("cuda", "use cpu")),
    "no device": (_nothing, ("m.onnx", "--device", "tpu"), ("tpu", "cpu")),
    "threads 0": (_nothing, ("m.onnx", "--threads", "0"), ("--threads 0", "1 or more")),
    "threads -1": (_nothing, ("m.onnx", "--threads", "1,-1"), ("--threads -1", "1 or more")),
    "threads twice": (_nothing, ("m.onnx", "--threads", "2,2"), ("2,2", "once")),
    "threads in words": (_nothing, ("m.onnx", "--threads", "many"), ("--threads", "many")),
    "too many threads": (_nothing, ("m.onnx", "--threads", "99999"), ("99999", "1024")),
    "batch 0": (_nothing, ("m.onnx", "--batch", "0"), ("--batch 0", "1 or more")),
    "batch 1.5": (_nothing, ("m.onnx", "--batch", "1.5"), ("--batch", "1.5")),
    "batch too large": (_nothing, ("m.onnx", "--batch", "99999999999"), ("memory", "--batch")),
    "seq 0": (_nothing, ("m.onnx", "--seq", "0"), ("--seq 0", "1 or more")),
    "no sequence": (_nothing, ("m.onnx", "--seq", "5"), ("--seq 5", "no free sequence axis")),
    "time nan": (_nothing, ("m.onnx", "--time", "nan"), ("--time nan",)),
    "time -1": (_nothing, ("m.onnx", "--time", "-1"), ("--time -1",)),
    "timeout 0": (_nothing, ("m.onnx", "--timeout", "0"), ("--timeout 0",)),
    "few processes": (_nothing, ("m.onnx", "--processes", "4"), ("--processes 4", "5 or more")),
    "other runtime": (_nothing, ("m.onnx", "--runtime", "llama"), ("llama", "m.onnx")),
    "input unknown": (_nothing, ("m.onnx", "--input", "z:float32[1,64]"), ("z:", "x: float32")),
    "input narrow": (_nothing, ("m.onnx", "--input", "x:float32[1,63]"), ("63", "64")),
    "data missing": (_nothing, ("m.onnx", "--data", "no.npz"), ("no.npz",)),
    "data broken": (_text("d.npz", b"PK\3\4 and so on"), ("m.onnx", "--data", "d.npz"), ("d.npz",)),
    "no baseline": (_nothing, ("m.onnx", "--fail-if", "latency.p50 >"), ("number", "+5%")),
    "no operator": (_nothing, ("m.onnx", "--fail-if", "latency.p50"), ("--fail-if", ">=")),
    "no metric": (_nothing, ("m.onnx", "--fail-if", "speed > 5%"), ("'speed'",)),
    "misspelt": (_nothing, ("m.onnx", "--fail-if", "latncy.p50 > +5%"), ("latency.p50",)),
    "no unit": (_nothing, ("m.onnx", "--fail-if", "latency.p50 > +5 bar"), ("'bar'", "ms")),
    "not a number": (_nothing, ("m.onnx", "--fail-if", "latency.p50 > nan"), ("'nan'",)),
    "condition empty": (_nothing, ("m.onnx", "--fail-if", ""), ("--fail-if",)),
    "second condition": (
        _nothing, ("m.onnx", "--fail-if", "file > 1GB", "--fail-if", "file"), ("'file'",)
    ),
    "report nowhere": (_nothing, ("m.onnx", "--report", "no/r.md"), ("no/r.md", "does not exist")),
    "report a folder": (
        lambda folder: (folder / "d.md").mkdir(), ("m.onnx", "--report", "d.md"), ("is a folder",)
    ),
    "report a PDF": (_nothing, ("m.onnx", "--report", "r.pdf"), ("r.pdf", ".html")),
    "report twice": (_nothing, ("m.onnx", "--report", "r.md", "--report", "./r.md"), ("twice",)),
    "report and out": (_nothing, ("m.onnx", "--report", "o.json", "-o", "o.json"), ("twice",)),
    "report the artifact": (
        lambda folder: (folder / "m.json").symlink_to("m.onnx"),
        ("m.onnx", "--report", "m.json"),
        ("is the source",),
    ),
    "out the artifact": (_nothing, ("m.onnx", "-o", "m.onnx"), ("m.onnx", "is the source")),
    "out nowhere": (_nothing, ("m.onnx", "-o", "no/r.json"), ("no/r.json", "does not exist")),
    "out a device": (_nothing, ("m.onnx", "-o", "/dev/full"), ("/dev/full", "no regular file")),
    "charts a file": (_nothing, ("m.onnx", "--charts", "m.onnx"), ("m.onnx", "is a file")),
    "no host": (_nothing, ("m.onnx", "--on", "ssh://"), ("ssh://", "ssh://user@host")),
}  # fmt: skip


@pytest.fixture(scope="session")
def gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_measuring(
    folder: Path, here: Here, monkeypatch: pytest.MonkeyPatch, name: str, gpu: bool
) -> None:
    if name == "no GPU" and gpu:
        pytest.skip("there is a GPU")
    from edgeopt.measure import relay

    def never(*args: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(relay, "start", never)
    spoil, words, said = REFUSED[name]
    spoil(folder)
    (folder / "r.md").write_text("of before")
    before = contents(folder)
    assert_refused(here("bench", *words, cwd=folder), 2, *said)
    assert contents(folder) == before


# ---------------------------------------------------------------------------------------------
# runtimes that die, in workers of their own

DIES = {
    "segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV while loading onnxruntime"),
    "abort": ("import os; os.abort()", "SIGABRT while loading onnxruntime"),
    "killed": ("import os; os.kill(os.getpid(), 9)", "SIGKILL (out of memory?) while loading"),
    "leaves": ("raise SystemExit(7)", "code 7 while loading onnxruntime"),
    "raises": ("raise RuntimeError('no licence')", "code 1 while loading onnxruntime: RuntimeErr"),
    "no memory": ("raise MemoryError", "out of memory while loading onnxruntime; use smaller"),
    "hangs": ("import time; time.sleep(1000)", "no answer for 2 s while loading onnxruntime"),
    "half an answer": (
        "import os\nfor fd in range(3, 20):\n  try: os.write(fd, b'{')\n  except OSError: pass\n"
        "os.abort()",
        "SIGABRT while",
    ),
}


def _stand_in(folder: Path, code: str) -> Path:
    folder.mkdir()
    (folder / "onnxruntime.py").write_text(code + "\n")
    return folder


@pytest.mark.parametrize("name", DIES)
def test_a_runtime_that_dies_is_named(
    folder: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    code, said = DIES[name]
    monkeypatch.syspath_prepend(_stand_in(tmp_path / "stand-in", code))
    before = contents(folder)
    left = here("bench", "m.onnx", *QUICK, "--timeout", "2", cwd=folder)
    assert_refused(left, 3, "m: ", said)
    after = contents(folder)
    assert Results.load(folder / "r.json").subject("m").failure in left.err
    del after["r.json"]
    assert after == before


def test_the_others_are_measured_all_the_same(
    folder: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(_stand_in(tmp_path / "stand-in", DIES["abort"][0]))
    words = ["m.onnx", "w.safetensors", *USUAL, "--report", "r.md"]
    assert_refused(here("bench", *words, cwd=folder), 3, "m: ", "SIGABRT")
    found = Results.load(folder / "r.json")
    assert [len(m.values) for m in found.of("w", "load.warm")] == [8, 8]
    assert found.subject("w").failure == ""
    page = (folder / "r.md").read_text()
    assert "SIGABRT" in page and "w" in page


def loop(turns: int) -> onnx.ModelProto:
    """A loop that runs for ``turns``, in the runtime's own code."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["h2"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 64]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h2", TensorProto.FLOAT, [1, 64]),
        ],
    )
    return model(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)],
        {"x": [1, 64]},
        {"y": [1, 64]},
        {"w": np.eye(64, dtype=np.float32), "n": np.int64(turns)},
    )


def test_a_model_that_never_ends(folder: Path, here: Here) -> None:
    onnx.save(loop(1 << 60), folder / "l.onnx")
    left = here("bench", "l.onnx", *QUICK, "--timeout", "4", cwd=folder)
    assert_refused(left, 3, "l: no answer for 4 s while running", "--timeout")
    # What it gave before is kept.
    assert Results.load(folder / "r.json").of("l", "load.warm")


def test_a_model_that_asks_for_more_memory_than_there_is(folder: Path, here: Here) -> None:
    made = model(
        [
            node("ConstantOfShape", ["s"], ["c"]),
            node("ReduceSum", ["c"], ["r"], keepdims=0),
            node("Add", ["x", "r"], ["y"]),
        ],
        {"x": ["n", 64]},
        {"y": ["n", 64]},
        {"s": np.array([1 << 23, 1 << 23], np.int64)},
    )
    onnx.save(made, folder / "huge.onnx")
    assert_refused(here("bench", "huge.onnx", *QUICK, cwd=folder), 3, "huge: ", "huge.onnx")


def test_a_model_that_the_runtime_does_not_know(folder: Path, here: Here) -> None:
    made = mlp()
    made.graph.node[1].op_type = "Sparkle"
    onnx.save(made, folder / "s.onnx")
    assert_refused(here("bench", "s.onnx", *QUICK, cwd=folder), 3, "s: ", "Sparkle")


# ---------------------------------------------------------------------------------------------
# the machine's own refusals


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))


def test_disk_full(folder: Path) -> None:
    save_file({"w": normal(4, 4)}, folder / "s.safetensors")
    (folder / "r.json").write_text("of before")
    before = contents(folder)
    words = ["s.safetensors", "--runtime", "weights", *QUICK]
    left = in_a_process("bench", *words, cwd=folder, preexec_fn=small_files_only)
    assert_refused(left, 2, "r.json")
    assert contents(folder) == before


def listening() -> None:
    """Whoever started the tests may have had signals ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def started(*words: str, cwd: Path, path: Path | None = None) -> subprocess.Popen[str]:
    there = environment()
    if path is not None:
        there["PYTHONPATH"] = os.pathsep.join([str(path), there["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, "-m", "edgeopt", *words],
        cwd=cwd,
        env=there,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listening,
    )


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_results_so_far_are_kept(folder: Path, sent: int, code: int) -> None:
    words = ["m.onnx", "--time", "2", "--processes", "200", "--no-cold", "-o", "r.json"]
    process = started("bench", *words, cwd=folder)
    until(lambda: (folder / "r.json").exists() or process.poll() is not None)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    if sent == signal.SIGINT:
        assert_refused(Left(process.returncode, out, err), 130, "interrupted")
    found = Results.load(folder / "r.json")
    assert 1 <= len(found.of("m", "latency")[0].values) < 200
    assert {p.name for p in folder.iterdir()} == {"m.onnx", "w.safetensors", "r.json"}
    psutil.wait_procs(workers, timeout=10)
    assert not [p for p in workers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_no_worker_outlives_a_parent_that_is_killed(folder: Path, tmp_path: Path) -> None:
    """Not even one that is busy, and does not see that nobody asks any more."""
    code = "import os, time; open(os.environ['BUSY'], 'w').write(str(os.getpid()) + '.')\n"
    stand_in = _stand_in(tmp_path / "stand-in", code + "time.sleep(1000)")
    busy = tmp_path / "busy"
    os.environ["BUSY"] = str(busy)
    try:
        process = started("bench", "m.onnx", *QUICK, cwd=folder, path=stand_in)
    finally:
        del os.environ["BUSY"]
    until(lambda: busy.exists() and busy.read_text().endswith("."))
    worker = psutil.Process(int(busy.read_text()[:-1]))
    process.kill()
    process.communicate()
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_json_of_a_failure_is_still_a_document(folder: Path, here: Here) -> None:
    made = mlp()
    made.graph.node[1].op_type = "Sparkle"
    onnx.save(made, folder / "s.onnx")
    left = here("bench", "s.onnx", *QUICK, "--json", cwd=folder)
    assert_refused(left, 3, "Sparkle")
    assert "Sparkle" in Results.from_json(json.loads(left.out)).subject("s").failure


# ---------------------------------------------------------------------------------------------
# saved results


def _saved(change: Callable[[dict[str, Any]], None] | None = None) -> Spoil:
    def spoil(folder: Path) -> None:
        document = results_of.two().to_json()
        if change is not None:
            change(document)
        (folder / "s.json").write_text(json.dumps(document))

    return spoil


def _quality(value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["quality"] = [
            {
                "subject": subject["name"],
                "metric": "accuracy",
                "value": value,
                "higher_is_better": True,
                "samples": 10,
                "how": "",
                "scores": [],
            }
            for subject in document["subjects"]
        ]

    return change


def _no_samples(document: dict[str, Any]) -> None:
    for measurement in document["measurements"]:
        if measurement["metric"] == "latency":
            measurement["values"] = measurement["blocks"] = []


def _version(document: dict[str, Any]) -> None:
    document["edgeopt_results"] = 2


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.pop(name) and None


def _same_names(document: dict[str, Any]) -> None:
    for subject in document["subjects"]:
        subject["name"] = "a"


FEW = "latency.p50 > +5%"
SAVED: dict[str, tuple[Spoil, tuple[str, ...], tuple[str, ...]]] = {
    "missing": (_nothing, ("s.json",), ("s.json", "No such file")),
    "empty": (_text("s.json", ""), ("s.json",), ("s.json", "not JSON")),
    "no JSON": (_text("s.json", "{edgeopt}"), ("s.json",), ("s.json", "not JSON")),
    "no text": (_text("s.json", b"\xff\xfe\0"), ("s.json",), ("s.json", "not JSON")),
    "a proof": (_text("s.json", '{"edgeopt_proof": 1}'), ("s.json",), ("s.json", "no results")),
    "another version": (_saved(_version), ("s.json",), ("version 2", "reads 1", "measure again")),
    "incomplete": (_saved(_without("measurements")), ("s.json",), ("measurements is missing",)),
    "two of a name": (_saved(_same_names), ("s.json",), ("s.json", "names of their own")),
    "no such subject": (_saved(), ("s.json[other]",), ("s.json", "'other'")),
    "NaN metric": (
        _saved(_quality("nan")), ("s.json", "--fail-if", "quality.accuracy < 0.9"), ("is nan",)
    ),
    "no number": (_saved(_quality(None)), ("s.json",), ("quality[0].value is None",)),
    "no samples": (_saved(_no_samples), ("s.json", "--fail-if", FEW), ("latency.p50",)),
    "no such metric": (
        _saved(), ("s.json", "--fail-if", "quality.f1 < 0.9"), ("quality.f1", "not measured")
    ),
    "run again": (_saved(), ("s.json", "--metric", "accuracy"), ("saved results cannot be run",)),
    "over itself": (_saved(), ("s.json", "-o", "s.json"), ("s.json", "is the source")),
    "over a part": (
        _saved(), (f"s.json[{results_of.NAMES[0]}]", "s.json", "-o", "s.json"), ("is the source",)
    ),
    "reported over itself": (_saved(), ("s.json", "--report", "s.json"), ("is the source",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_saved_results_that_are_refused(folder: Path, here: Here, name: str) -> None:
    spoil, words, said = SAVED[name]
    spoil(folder)
    before = contents(folder)
    assert_refused(here("compare", *words, cwd=folder), 2, *said)
    assert contents(folder) == before


@pytest.mark.parametrize("words", [("--baseline", "s.json"), ("--baseline", "s.json[x]")])
@pytest.mark.parametrize("out", ["-o", "--report"])
def test_a_baseline_is_not_written_over(
    folder: Path, here: Here, words: tuple[str, ...], out: str
) -> None:
    _saved()(folder)
    before = contents(folder)
    left = here("bench", "w.safetensors", *words, out, "s.json", cwd=folder)
    assert_refused(left, 2, "s.json")
    assert contents(folder) == before


def test_two_that_cannot_be_compared_alone(folder: Path, here: Here) -> None:
    assert_refused(here("compare", "m.onnx", cwd=folder), 2, "two or more")


def test_a_metric_of_the_user_s_that_fails(folder: Path, here: Here) -> None:
    """It is found out before anything is measured."""
    (folder / "mine.py").write_text("def half(): return 0.5\n")
    for metric, said in (("mine:whole", "whole"), ("mine", "'mine'"), ("their:own", "their")):
        left = here("compare", "m.onnx", "m.onnx", "--metric", metric, cwd=folder)
        assert_refused(left, 2, said)
