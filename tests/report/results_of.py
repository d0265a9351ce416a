"""Documents of results that no machine measured, for what shows them: seeded, plausible, awkward.

The spread of a latency is made as it is met: processes differ by a percent or two, neighbouring
samples resemble one another, and a few are far out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeopt.core import Fidelity, Layer, Measurement, Quality, Results, Subject, Unavailable

__all__ = [
    "NAMES",
    "close",
    "conditions",
    "failed",
    "gguf",
    "hostile",
    "latency",
    "renamed",
    "single",
    "three",
    "two",
    "weights",
    "with_tail",
]

PROCESSES = 5
TURNS = 16

HOSTILE = '<script>alert("x")</script>'
LONG = "a-model-whose-name-goes-on-and-on-" * 6 + "end.onnx"

ENVIRONMENT: Mapping[str, Any] = {
    "cpu": "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz",
    "features": ["avx2", "avx512f", "avx512_vnni"],
    "machine": "x86_64",
    "system": "Linux 6.1.0",
    "cores": 2,
    "cores_usable": 2,
    "cpu_limit": "none",
    "memory_total": 8_323_170_304,
    "memory_limit": 4_294_967_296,
    "load_1min": 0.42,
    "governor": "unavailable",
    "frequency_now_mhz": [2880, 2900],
    "steal": 0.004,
    "python": "3.11.2",
    "onnxruntime": "1.32.0",
    "gpu": "unavailable",
    "threads": 1,
}

SETTINGS: Mapping[str, Any] = {
    "processes": PROCESSES,
    "time": 10.0,
    "block_s": 0.1,
    "order": "ABBA",
    "pinned": [0],
    "cold": {"evicted": True, "verified": False},
}


def conditions(**changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "runtime": "onnxruntime",
        "device": "cpu",
        "threads": 1,
        "batch": 1,
        "seq": 128,
        "workload": "inference",
    }
    return {k: v for k, v in {**found, **changed}.items() if v is not None}


def timings(
    center: float, seed: int, count: int = 640, spread: float = 0.015, apart: float = 0.008
) -> tuple[tuple[float, ...], ...]:
    """``count`` samples of each process about ``center`` seconds."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(PROCESSES):
        middle = center * (1 + apart * random.standard_normal())
        drift = np.convolve(random.standard_normal(count + 7), np.ones(8) / 8**0.5, "valid")
        values = middle * np.exp(spread * (0.5 * drift + 0.5 * random.standard_normal(count)))
        late = random.random(count) < 0.012
        values[late] *= 1 + random.exponential(0.35, int(late.sum()))
        found.append(tuple(round(float(v), 9) for v in values))
    return tuple(found)


def latency(
    subject: str, center: float, seed: int, count: int = 640, **changed: Any
) -> Measurement:
    values = timings(center, seed, count)
    turns = tuple(len(part) for part in np.array_split(np.arange(count), min(TURNS, count)))
    return Measurement(subject, "latency", "s", conditions(**changed), values, (turns,) * PROCESSES)


def once(
    subject: str, metric: str, center: float, seed: int, how: str = "", **changed: Any
) -> Measurement:
    """One value a process."""
    unit = "B" if metric.startswith("memory") else ("J" if metric == "energy" else "s")
    random = np.random.default_rng(seed)
    values = center * (1 + 0.02 * random.standard_normal(PROCESSES))
    values = np.round(values) if unit == "B" else np.round(values, 9)
    given = tuple((float(v),) for v in values)
    return Measurement(subject, metric, unit, conditions(**changed), given, (), how)


def phases(subject: str, load: float, first: float, seed: int, **changed: Any) -> list[Measurement]:
    return [
        once(subject, "import", 0.31, seed, **changed),
        once(subject, "load.cold", load * 1.7, seed + 1, "pages evicted, not verified", **changed),
        once(subject, "load.warm", load, seed + 2, **changed),
        once(subject, "first", first, seed + 3, **changed),
    ]


def memory(
    subject: str, anonymous: float, mapped: float, seed: int, **changed: Any
) -> list[Measurement]:
    baseline, other = 41e6, 6.2e6
    parts = {
        "memory.baseline": baseline,
        "memory.anonymous": anonymous,
        "memory.mapped": mapped,
        "memory.other": other,
        "memory.peak": 1.06 * (baseline + anonymous + mapped + other),
        "memory.pss": 0.97 * (baseline + anonymous + mapped + other),
    }
    return [
        once(subject, name, value, seed + i, **changed)
        for i, (name, value) in enumerate(parts.items())
    ]


def encoder_layers(bits: float, sqnr: float | None, seed: int) -> tuple[Layer, ...]:
    """A small encoder's tensors: a big embedding, six layers of six."""
    random = np.random.default_rng(seed)
    shapes = {"embeddings.word_embeddings.weight": 30522 * 384}
    for i in range(6):
        for part, size in (
            ("attention.self.query", 384 * 384),
            ("attention.self.key", 384 * 384),
            ("attention.self.value", 384 * 384),
            ("attention.output.dense", 384 * 384),
            ("intermediate.dense", 384 * 1536),
            ("output.dense", 384 * 1536),
        ):
            shapes[f"encoder.layer.{i}.{part}.weight"] = size
    found = []
    for name, size in shapes.items():
        error = None if sqnr is None else round(float(sqnr + 3 * random.standard_normal()), 2)
        dtype = {32: "float32", 8: "int8"}.get(int(bits), "int4")
        found.append(Layer(name, dtype, int(size * bits / 8), error))
    return tuple(found)


def subject(name: str, nbytes: int, layers: Sequence[Layer] = (), **changed: Any) -> Subject:
    return (
        Subject(
            name=name,
            path=f"out/{name}",
            kind="onnx",
            runtime="onnxruntime",
            files=((name, nbytes),),
            sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            placement={"providers": ["CPUExecutionProvider"], "fell_back": 0},
            layers=tuple(layers),
        )
        if not changed
        else dataclasses.replace(subject(name, nbytes, layers), **changed)
    )


def close(sqnr: float, top1: float | None, output: str = "last_hidden_state") -> Fidelity:
    return Fidelity(
        output, sqnr, 0.99961, 0.31, top1, None if top1 is None else 0.0021, True, False, 256
    )


NO_ENERGY = Unavailable("", "energy", "no powercap: /sys/class/powercap is empty")
NO_GPU = Unavailable("", "memory.gpu", "no NVIDIA driver answers")


def _document(**parts: Any) -> Results:
    return Results(
        **{
            "verb": "bench",
            "made": "2026-11-22T22:40:00+00:00",
            "environment": ENVIRONMENT,
            "settings": SETTINGS,
            "unavailable": (NO_ENERGY, NO_GPU),
            **parts,
        }
    )


def two() -> Results:
    """A float model and its INT8 artifact, one set of conditions, layers, fidelity and quality."""
    a, b = NAMES[:2]
    return _document(
        baseline=a,
        subjects=(
            subject(a, 90_916_484, encoder_layers(32, None, 1)),
            subject(b, 23_104_512, encoder_layers(8, 38.0, 2)),
        ),
        measurements=(
            *phases(a, 0.141, 0.0061, 10),
            latency(a, 4.1e-3, 20),
            *memory(a, 12e6, 91e6, 30),
            *phases(b, 0.052, 0.0024, 40),
            latency(b, 1.36e-3, 50),
            *memory(b, 11e6, 23.1e6, 60),
        ),
        fidelity={b: (close(31.24, 0.9961),)},
        quality=(
            Quality(a, "spearman", 0.8203, True, 1379, "STS-B, cosine of mean-pooled embeddings"),
            Quality(b, "spearman", 0.8189, True, 1379, "STS-B, cosine of mean-pooled embeddings"),
        ),
        warnings=("cold load: the pages could not be shown to be gone (mincore); unverified",),
    )


NAMES = ("minilm.onnx", "minilm.int8.onnx", "minilm.int4.onnx")


def three() -> Results:
    """Three artifacts, two thread counts; the INT4 one is no faster than the float one."""
    base = two()
    c = NAMES[2]
    wide = {"threads": 2}
    return dataclasses.replace(
        base,
        subjects=(*base.subjects, subject(c, 12_610_944, encoder_layers(4.5, 21.0, 3))),
        measurements=(
            *base.measurements,
            *phases(c, 0.061, 0.0058, 70),
            latency(c, 4.08e-3, 80),
            *memory(c, 30e6, 12.6e6, 90),
            latency(NAMES[0], 2.3e-3, 100, **wide),
            latency(NAMES[1], 0.81e-3, 110, **wide),
            latency(c, 2.9e-3, 120, **wide),
        ),
        fidelity={**base.fidelity, c: (close(19.8, 0.962), close(23.1, None, "pooled"))},
        quality=(
            *base.quality,
            Quality(c, "spearman", 0.8011, True, 1379, "STS-B, cosine of mean-pooled embeddings"),
        ),
    )


def gguf() -> Results:
    """Two GGUF files: prompt processing and generation, as llama-bench has them."""
    a, b = "smollm2-f16.gguf", "smollm2-q4_k_m.gguf"
    how = {"runtime": "llama.cpp", "batch": None, "seq": None}
    measured: list[Measurement] = []
    for i, (name, pp, tg) in enumerate(((a, 0.92, 0.021), (b, 0.71, 0.0094))):
        prompt = {**how, "workload": "pp512", "tokens": 512}
        measured += [
            *phases(name, 0.09, 0.4, 200 + 50 * i, **prompt),
            latency(name, pp, 210 + 50 * i, 12, **prompt),
            latency(name, tg, 220 + 50 * i, 400, **how, workload="tg128", tokens=1),
            *memory(name, 160e6, 270e6 / (1 + 2 * i), 230 + 50 * i, **prompt),
        ]
    files = {"kind": "gguf", "runtime": "llama.cpp"}
    return _document(
        baseline=a,
        subjects=(
            subject(a, 270_885_056, encoder_layers(16, None, 5), **files),
            subject(b, 105_454_304, encoder_layers(4.5, 24.0, 6), **files),
        ),
        measurements=tuple(measured),
        fidelity={b: (close(22.0, 0.934, "next token"),)},
    )


def weights() -> Results:
    """Two safetensors files: nothing runs, loading is all there is."""
    a, b = "weights.safetensors", "weights.int8.safetensors"
    how = {"runtime": "weights", "batch": None, "seq": None, "workload": "read"}
    return _document(
        baseline=a,
        subjects=tuple(
            subject(n, s, kind="safetensors", runtime="weights")
            for n, s in ((a, 90_868_370), (b, 22_820_112))
        ),
        measurements=tuple(
            once(n, metric, value, seed, **how)
            for n, values, seed in ((a, (0.081, 0.031), 300), (b, (0.026, 0.009), 310))
            for metric, value in zip(("load.cold", "load.warm"), values, strict=True)
        ),
    )


def failed() -> Results:
    """The second artifact crashed in the runtime: what is known of it stays."""
    base = two()
    a, b = base.subjects
    died = dataclasses.replace(b, failure="onnxruntime died of SIGSEGV while loading")
    return dataclasses.replace(
        base,
        subjects=(a, died),
        measurements=tuple(m for m in base.measurements if m.subject == a.name),
        fidelity={},
        quality=(),
    )


def single() -> Results:
    """One artifact, few samples: nothing to compare, no tail to quote."""
    name = "tiny.onnx"
    return _document(
        baseline=name,
        subjects=(subject(name, 812),),
        measurements=(*phases(name, 0.004, 0.0002, 400), latency(name, 83e-6, 410, 10)),
    )


def renamed(results: Results, *names: str, **changed: Any) -> Results:
    """The same with other names for its subjects, in order; ``changed`` are parts of each."""
    given = {s.name: name for s, name in zip(results.subjects, names, strict=True)}

    def called(part: Any) -> Any:
        return dataclasses.replace(part, subject=given[part.subject])

    return dataclasses.replace(
        results,
        baseline=given[results.baseline],
        subjects=tuple(
            dataclasses.replace(s, name=given[s.name], **changed) for s in results.subjects
        ),
        measurements=tuple(called(m) for m in results.measurements),
        fidelity={given[name]: found for name, found in results.fidelity.items()},
        quality=tuple(called(q) for q in results.quality),
    )


def hostile() -> Results:
    """Names that would run, or break a line or a table, wherever one is taken for markup."""
    nasty = '</script><img src=x onerror="alert(1)">|`*_=cmd()\n\x1b[31m'
    layers = (Layer(nasty, "int8", 4096, float("-inf")), Layer(LONG, "int8", 8192, float("inf")))
    base = renamed(two(), HOSTILE, LONG, path=nasty, layers=layers, sha256="")
    return dataclasses.replace(
        base,
        fidelity={LONG: (close(float("inf"), None, nasty),)},
        environment={**ENVIRONMENT, "cpu": nasty},
        warnings=(nasty,),
        unavailable=(Unavailable(HOSTILE, "energy", nasty),),
    )


def with_tail(m: Measurement, share: float, times: float) -> Measurement:
    """The same with the last ``share`` of every process's samples so many times as long."""
    values = tuple(
        tuple(v * times if i >= len(process) * (1 - share) else v for i, v in enumerate(process))
        for process in m.values
    )
    return dataclasses.replace(m, values=values)
