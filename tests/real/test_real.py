"""What becomes of published models, by the command that a user types.

`make test-real` fetches them; the judge is ONNX Runtime on seeded inputs, not edgeopt's own proof.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from tests.real import networks
from tests.real.table import MODELS, Feed, Real

import edgeopt

ROOT = Path(__file__).resolve().parents[2]
FETCHED = ROOT / "build" / "real"
PINS = {
    pin.partition("==")[0]: pin
    for line in (ROOT / "tests/real/requirements.txt").read_text().splitlines()
    if (pin := line.split("#")[0].strip())
}
#: No model here takes a minute on one thread; what takes this long hangs.
SECONDS = 240
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}

pytestmark = [pytest.mark.slow, pytest.mark.real]


def drawn(feed: Feed, rng: np.random.Generator, dtype: str) -> np.ndarray:
    """Values of a feed: a tone in noise for audio, smooth blobs in [-1, 1] for a picture."""
    if isinstance(feed.kind, int):
        values = np.full(feed.shape, feed.kind, np.float64)
    elif feed.kind == "bytes":
        values = rng.integers(0, 256, feed.shape)
    elif feed.kind == "letters":
        values = rng.integers(0, 12, feed.shape)
    elif feed.kind == "uniform":
        values = rng.random(feed.shape)
    elif feed.kind == "audio":
        steps = np.arange(np.prod(feed.shape)).reshape(feed.shape)
        values = 0.3 * np.sin(steps * rng.uniform(0.02, 0.2)) + 0.05 * rng.normal(size=feed.shape)
    elif feed.kind == "picture":
        coarse = rng.uniform(-1, 1, [max(1, n // 8) if n > 8 else n for n in feed.shape])
        for axis, n in enumerate(feed.shape):
            coarse = np.repeat(coarse, n // coarse.shape[axis], axis)
        values = coarse
    else:
        values = rng.normal(size=feed.shape)
    return values.astype(dtype)


def answers(path: Path, rows: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, row) for row in rows]


def decibels(source: list[np.ndarray], artifact: list[np.ndarray]) -> float:
    """Signal to quantization noise of one output over all rows."""
    signal = sum(float(np.square(a, dtype=np.float64).sum()) for a in source)
    noise = sum(
        float(np.square(a.astype(np.float64) - b).sum())
        for a, b in zip(source, artifact, strict=True)
    )
    return float(10 * np.log10(signal / noise)) if noise else float("inf")


def source_of(model: Real, folder: Path) -> Path:
    """The fetched file, or in `folder` the part of it that is quantized."""
    path = FETCHED / PINS[model.package] / model.member
    assert path.exists(), f"{path} is not there: make test-real fetches it"
    if model.part is None:
        return path
    part = folder / f"part{path.suffix}"
    getattr(torch.jit.load(path), model.part).save(part)
    return part


def judged_weights(model: Real, source: Path, out: Path) -> list[float]:
    """Decibels of each tensor as edgeopt decodes it; torch and safetensors read the source."""
    if source.suffix == ".safetensors":
        before = {k: v.numpy() for k, v in load_file(source).items()}
    elif source.suffix == ".jit":
        before = {k: v.numpy() for k, v in torch.jit.load(source).state_dict().items()}
    else:
        held = torch.load(source, map_location="cpu", weights_only=True)
        held = held[model.weights] if model.weights else held
        before = {k: v.numpy() for k, v in held.items()}
    after = edgeopt.load_weights(out)
    assert after.keys() >= before.keys()  # TorchScript has constants and state besides
    return [decibels([before[k]], [after[k]]) for k in before]


def judged_answers(model: Real, source: Path, out: Path) -> list[float]:
    """Decibels of each output on four seeded rows, the source run by its own runtime."""
    rng = np.random.default_rng(zlib.crc32(model.member.encode()))
    if source.suffix == ".onnx":
        types = {i.name: i.type for i in onnxruntime.InferenceSession(source).get_inputs()}
    else:
        types = dict.fromkeys(model.feeds, "tensor(float)")
    rows = [{n: drawn(f, rng, DTYPES[types[n]]) for n, f in model.feeds.items()} for _ in range(4)]
    after = answers(out, rows)
    before = (
        answers(source, rows) if source.suffix == ".onnx" else torch_answers(model, source, rows)
    )
    if model.within is not None:
        first = [(a.pop(0), b.pop(0)) for a, b in zip(before, after, strict=True)]
        assert max(float(np.abs(a - b).max()) for a, b in first) <= model.within
    return [
        decibels(list(a), list(b))
        for a, b in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
    ]


def torch_answers(
    model: Real, source: Path, rows: list[dict[str, np.ndarray]]
) -> list[list[np.ndarray]]:
    if model.part is not None:
        net = torch.jit.load(source)
    else:
        net = networks.crepe_tiny()
        net.load_state_dict(torch.load(source, map_location="cpu", weights_only=True))
    net.eval()
    with torch.inference_mode():
        found = [net(*map(torch.from_numpy, row.values())) for row in rows]
    return [[t.numpy() for t in (f if isinstance(f, tuple) else (f,))] for f in found]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{m.package}/{Path(m.member).name}")
def test_published_model(model: Real, tmp_path: Path) -> None:
    source = source_of(model, tmp_path)
    out = tmp_path / f"out{model.suffix}"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgeopt", "quantize", str(source)),
            *(*model.options, "-o", str(out), "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if model.refused is not None:
        assert done.returncode == 2, done.stderr
        assert re.search(model.refused, done.stderr), done.stderr
        assert not out.exists()
        return
    if model.unproven is not None:
        assert done.returncode == 3, done.stderr
        assert re.search(model.unproven, done.stderr), done.stderr
        assert not out.exists()
        return
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"]["proven"] is True
    assert out.stat().st_size < source.stat().st_size
    judge = judged_weights if model.suffix == ".safetensors" else judged_answers
    found = judge(model, source, out)
    assert min(found, default=np.inf) >= model.least, f"{found} dB, {model.least} expected"
