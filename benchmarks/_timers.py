"""Ways to time one ONNX or GGUF file, each in processes of its own: edgeopt's, and its peers'.

Each returns the seconds of every inference that it timed (of a GGUF file: by workload, of a prompt
or a token), as the tool itself recorded them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT

Samples = list[float]

#: What both loops of our own share: the core that edgeopt's own workers pin themselves to.
_PREAMBLE = """
import json, sys, time
import numpy as np
from edgeopt.measure.pinning import pin
pin(1)
"""

#: A loop as anybody writes it: one session, one thread, a warm-up, a clock around each run.
_BARE = (
    _PREAMBLE
    + """
import onnxruntime as ort
path, seq, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
feed = {i.name: np.ones((1, seq), np.int64) for i in session.get_inputs()}
for _ in range(20):
    session.run(None, feed)
samples, end = [], time.perf_counter() + seconds
while time.perf_counter() < end or len(samples) < 10:
    begin = time.perf_counter()
    session.run(None, feed)
    samples.append(time.perf_counter() - begin)
print(json.dumps(samples))
"""
)

#: pytest-benchmark's fixture, warm-up on and the collector off as its documentation advises.
_PYTEST = """
import numpy as np, onnxruntime as ort, os
from edgeopt.measure.pinning import pin

def test_run(benchmark):
    pin(1)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
    feed = {i.name: np.ones((1, int(os.environ["SEQ"])), np.int64) for i in session.get_inputs()}
    benchmark(session.run, None, feed)
"""

#: What llama-bench does, by the functions of llama.h that it calls: pp with everything in one
#: call, tg token by token from an empty cache on, a warm-up of each, then whole repetitions.
_LLAMA = (
    _PREAMBLE
    + """
import ctypes, os
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
import llama_cpp as L
path, prompt, generate, seconds = sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4])
L.llama_backend_init()
wanted = L.llama_model_default_params()
wanted.use_extra_bufts = sys.argv[5] == "repack"
model = L.llama_model_load_from_file(path.encode(), wanted)
vocab = L.llama_model_get_vocab(model)
rng = np.random.default_rng(1)
def draw(count):
    return (ctypes.c_int32 * count)(*rng.integers(0, L.llama_vocab_n_tokens(vocab), count).tolist())
def context(tokens):
    wanted = L.llama_context_default_params()
    wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = tokens, 2048, 512
    wanted.n_threads = wanted.n_threads_batch = 1
    return L.llama_init_from_model(model, wanted)
def decode(native, count):
    tokens = draw(count)
    begin = time.perf_counter()
    if L.llama_decode(native, L.llama_batch_get_one(tokens, count)):
        sys.exit("llama_decode failed")
    L.llama_synchronize(native)
    return time.perf_counter() - begin
def pp(native, count):
    L.llama_memory_clear(L.llama_get_memory(native), False)
    return [decode(native, count)]
def tg(native, count):
    L.llama_memory_clear(L.llama_get_memory(native), False)
    return [decode(native, 1) for _ in range(count)]
found = {}
for run, count in ((pp, prompt), (tg, generate)):
    native = context(count)
    run(native, count)
    samples, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        samples += run(native, count)
    found[run.__name__] = samples
    L.llama_free(native)
print(json.dumps(found))
"""
)


def _call(command: Sequence[str], **more: str) -> str:
    """A command's standard output; SystemExit with its last words where it fails."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), **more}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{(done.stderr or '')[-2000:]}")
    return done.stdout


def _edgeopt(model: Path, seconds: float, *options: str) -> Mapping[str, Any]:
    command = [sys.executable, "-m", "edgeopt", "bench", str(model), "--threads", "1"]
    command += ["--time", f"{seconds:g}", "--no-cold", "--json", *options]
    document: Mapping[str, Any] = json.loads(_call(command))
    failed = [subject["failure"] for subject in document["subjects"] if subject["failure"]]
    if failed:
        raise SystemExit(f"edgeopt bench {model.name}: {failed[0]}")
    return document


def _latency(document: Mapping[str, Any], workload: str) -> Samples:
    return [
        value
        for each in document["measurements"]
        if each["metric"] == "latency" and each["conditions"]["workload"].startswith(workload)
        for process in each["values"]
        for value in process
    ]


def edgeopt_onnx(model: Path, seq: int, seconds: float) -> Samples:
    document = _edgeopt(model, seconds, "--batch", "1", "--seq", str(seq))
    return _latency(document, "inference")


def bare(model: Path, seq: int, seconds: float) -> Samples:
    command = [sys.executable, "-c", _BARE, str(model), str(seq), f"{seconds:g}"]
    return list(json.loads(_call(command)))


def pytest_benchmark(model: Path, seq: int, seconds: float) -> Samples:
    """Its rounds; an inference a round, as they are far longer than the clock's resolution."""
    script, out = model.parent / "test_run.py", model.parent / "test_run.json"
    script.write_text(_PYTEST)
    command = [sys.executable, "-m", "pytest", "-q", str(script), "-p", "no:cacheprovider"]
    command += ["--rootdir", str(model.parent), "-c", os.devnull, "--benchmark-warmup=on"]
    command += ["--benchmark-disable-gc", f"--benchmark-max-time={seconds:g}"]
    command += ["--benchmark-json", str(out), "--benchmark-save-data", "-p", "no:xdist"]
    _call(command, MODEL=str(model), SEQ=str(seq))
    return list(json.loads(out.read_text())["benchmarks"][0]["stats"]["data"])


def optimum(python: Path, launcher: str, model: Path, seq: int, seconds: float) -> dict[str, Any]:
    """optimum-benchmark's samples, and the versions that it ran with."""
    script = Path(__file__).with_name("_optimum.py")
    command = [str(python), str(script), str(model.parent), str(seq), f"{seconds:g}", launcher]
    found: dict[str, Any] = json.loads(_call(command, PYTHONPATH="").strip().splitlines()[-1])
    return found


def edgeopt_gguf(
    model: Path, prompt: int, generate: int, seconds: float
) -> tuple[dict[str, Samples], bool]:
    """Seconds by workload, and whether llama.cpp could repack the weights."""
    options = ("--prompt", str(prompt), "--generate", str(generate))
    document = _edgeopt(model, seconds, *options)
    repack = not any("repacking" in warning for warning in document["warnings"])
    return {workload: _latency(document, workload) for workload in ("pp", "tg")}, repack


def bare_llama(
    model: Path, prompt: int, generate: int, seconds: float, repack: bool
) -> dict[str, Samples]:
    command = [sys.executable, "-c", _LLAMA, str(model), str(prompt), str(generate)]
    found: dict[str, Samples] = json.loads(
        _call([*command, f"{seconds:g}", "repack" if repack else "plain"])
    )
    return found
