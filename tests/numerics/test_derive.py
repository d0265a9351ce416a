"""What is derived from a document of raw samples, against documents whose answers are known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edgeopt.core.proof import Measurement
from edgeopt.core.results import Results, Subject
from edgeopt.numerics.derive import derive

HERE = {
    "runtime": "onnxruntime",
    "device": "cpu",
    "threads": 1,
    "batch": 1,
    "workload": "inference",
}


def document(measurements: list[Measurement], names: str = "ab") -> Results:
    subjects = tuple(
        Subject(n, f"{n}.onnx", "onnx", "onnxruntime", ((f"{n}.onnx", 1000 * (i + 1)),), "0" * 64)
        for i, n in enumerate(names)
    )
    return Results("bench", "now", names[0], subjects, tuple(measurements), {}, {})


def test_percentiles_are_shown_from_their_floor_on() -> None:
    for count, shown in ((63, {"p50"}), (64, {"p50", "p90"}), (661, {"p50", "p90", "p95"})):
        values = (tuple(np.linspace(1.0, 2.0, count).tolist()),)
        row = derive(document([Measurement("a", "latency", "s", HERE, values)])).row(
            "a", "latency", HERE
        )
        assert row is not None
        assert {name for name in row.figures if name.startswith("p")} == shown


def test_file_sizes_need_no_measurement_and_compare_exactly() -> None:
    derived = derive(document([]))
    assert [r.figures["exact"].value for r in derived.rows] == [1000.0, 2000.0]
    assert [(c.ratio.value, c.verdict) for c in derived.contrasts] == [(2.0, "worse")]
    assert json.loads(json.dumps(derived.to_json()))["contrasts"][0]["verdict"] == "worse"


def latencies(rng: np.random.Generator, scale: float, **conditions: object) -> Measurement:
    values = tuple(
        tuple((scale * (1 + 0.02 * rng.exponential(size=200))).tolist()) for _ in range(5)
    )
    return Measurement("?", "latency", "s", {**HERE, **conditions}, values, ((20,) * 10,) * 5)


def of(subject: str, measurement: Measurement) -> Measurement:
    return dataclasses.replace(measurement, subject=subject)


def test_figures_are_numpys() -> None:
    m = of("a", latencies(np.random.default_rng(0), 1e-3, batch=8))
    row = derive(document([m])).row("a", "latency", m.conditions)
    assert row is not None
    flat = np.array(m.values).reshape(-1)
    for name, expected in {
        "p50": np.median(flat),
        "p90": np.percentile(flat, 90),
        "p99": np.percentile(flat, 99),
        "mean": flat.mean(),
        "throughput": 8 * flat.size / flat.sum(),
    }.items():
        figure = row.figures[name]
        assert figure.value == pytest.approx(expected)
        assert figure.low is not None and figure.high is not None
        assert figure.low < figure.value < figure.high
        assert (figure.samples, figure.processes) == (1000, 5)
    assert row.figures["throughput"].unit == "1/s"
    assert row.steady == {"processes": 5, "settled": 5, "starts": (0,) * 5}
    assert row.noise is not None and row.noise < 0.01 and row.advice == ()


def test_tokens_a_second_as_llama_bench_counts_them() -> None:
    seconds = ((0.5, 0.25), (0.5, 0.5), (0.25, 0.5))
    for workload, tokens, expected in (
        ("pp512", 512, np.mean([1024, 2048, 1024, 1024, 2048, 1024])),
        ("tg128", 1, 6 / 2.5),
    ):
        conditions = {**HERE, "workload": workload, "tokens": tokens}
        m = Measurement("a", "latency", "s", conditions, seconds)
        row = derive(document([m])).row("a", "latency", conditions)
        assert row is not None and "throughput" not in row.figures
        assert row.figures["tokens_per_s"].value == pytest.approx(expected)
        assert row.figures["tokens_per_s"].unit == "tokens/s"


def test_a_faster_subject_is_better_in_time_and_in_rate() -> None:
    rng = np.random.default_rng(1)
    found = derive(
        document([of("a", latencies(rng, 2e-3)), of("b", latencies(rng, 1e-3))])
    ).contrasts
    by_name = {c.statistic: c for c in found if c.metric == "latency"}
    assert set(by_name) == {"p50", "p90", "p95", "p99", "throughput"}
    assert {c.verdict for c in by_name.values()} == {"better"}
    assert by_name["p50"].ratio.value == pytest.approx(0.5, rel=0.01)
    assert by_name["throughput"].ratio.value == pytest.approx(2.0, rel=0.01)
    assert all(c.ratio.low is not None and c.ratio.high is not None for c in by_name.values())


def test_conditions_pair_and_runtimes_may_differ() -> None:
    rng = np.random.default_rng(2)
    derived = derive(
        document(
            [
                of("a", latencies(rng, 1e-3, threads=1)),
                of("a", latencies(rng, 1e-3, threads=2)),
                of("b", latencies(rng, 1e-3, threads=2, runtime="llama.cpp")),
            ]
        )
    )
    pairs = {(c.subject, c.conditions["threads"]) for c in derived.contrasts if c.conditions}
    assert pairs == {("b", 2)}
    assert {c.verdict for c in derived.contrasts if c.conditions} == {"not significant"}
    assert derive(document([]), baseline="").contrasts == ()
    assert {c.subject for c in derive(document([]), baseline="b").contrasts} == {"a"}


def test_saved_documents_put_together_are_not_paired() -> None:
    """Rounds of two machines' moods: paired they would cancel, unpaired they must not."""
    mood = np.exp(0.3 * np.random.default_rng(3).normal(size=5))
    rng = np.random.default_rng(4)
    a, b = (
        dataclasses.replace(
            m, values=tuple(tuple(f * v for v in p) for f, p in zip(mood, m.values, strict=True))
        )
        for m in (of("a", latencies(rng, 1e-3)), of("b", latencies(rng, 2e-3)))
    )
    widths = []
    for settings in ({}, {"documents": [{"subjects": ["a"]}, {"subjects": ["b"]}]}):
        results = dataclasses.replace(document([a, b]), settings=settings)
        contrast = next(c for c in derive(results).contrasts if c.statistic == "p50")
        assert contrast.ratio.low is not None and contrast.ratio.high is not None
        widths.append(contrast.ratio.high / contrast.ratio.low)
    assert widths[0] < 1.02
    assert widths[1] > 1.5


def test_steady_state_counts_the_warm_up_and_never_is_said() -> None:
    rng = np.random.default_rng(5)
    calm = latencies(rng, 1e-3)
    warmup = Measurement("a", "warmup", "s", HERE, ((3e-3, 3e-3, 3e-3),) * 4 + ((),))
    climb = tuple(v * (1 + i / 100) for i, v in enumerate(calm.values[4]))
    m = dataclasses.replace(of("a", calm), values=(*calm.values[:4], climb))
    row = derive(document([warmup, m])).row("a", "latency", HERE)
    assert row is not None
    assert row.steady == {"processes": 5, "settled": 4, "starts": (3, 3, 3, 3, None)}


def test_noise_is_flagged_with_advice_and_a_warning() -> None:
    rng = np.random.default_rng(6)
    values = tuple(
        tuple(np.repeat(np.exp(0.3 * rng.normal(size=20)), 10).tolist()) for _ in range(5)
    )
    m = Measurement("a", "latency", "s", HERE, values, ((10,) * 20,) * 5)
    derived = derive(document([m]))
    row = derived.row("a", "latency", HERE)
    assert row is not None and row.noise is not None and row.noise > 0.2
    assert any("--processes" in line for line in row.advice)
    assert any("noisy" in w for w in derived.warnings)


def test_what_many_rows_have_in_common_is_said_once() -> None:
    rng = np.random.default_rng(6)
    climb = tuple(float(v) for v in 1e-3 * np.linspace(1, 4, 200))
    bumpy = tuple(np.repeat(1e-3 * np.exp(0.3 * rng.normal(size=20)), 10).tolist())
    calm = latencies(rng, 1e-3)
    taken = [
        Measurement(s, "latency", "s", {**HERE, "threads": t}, (v,) * 5, ((10,) * 20,) * 5)
        for s, v in (("a", climb), ("b", bumpy))
        for t in (1, 2)
    ]
    said = [w for w in derive(document([*taken, of("c", calm)], "abc")).warnings if "latency" in w]
    (never,) = (w for w in said if "never steady" in w)
    (noisy,) = (w for w in said if "noisy" in w)
    assert "in 4 of 5 measurements" in noisy and noisy.startswith("a, b, ")
    assert never.startswith("a") and "c" not in never.partition(",")[0]
    alone = derive(document([taken[0]])).warnings
    assert any(
        "a, latency (device cpu, threads 1" in w and "never steady in 5 of 5" in w for w in alone
    )


def test_broken_samples_are_named_not_counted() -> None:
    nan = float("nan")
    derived = derive(
        document(
            [
                Measurement("a", "latency", "s", HERE, ((1.0, nan, 1.0),) * 3),
                Measurement("b", "latency", "s", HERE, ((nan,),)),
                Measurement("b", "first", "s", HERE, ()),
                Measurement("a", "load.warm", "s", HERE, ((1.0,), (1.0,))),
                Measurement("b", "load.warm", "s", HERE, ((2.0,), (2.0,))),
                Measurement("a", "memory.gpu", "B", HERE, ((0.0,),) * 3),
                Measurement("b", "memory.gpu", "B", HERE, ((5.0,),) * 3),
            ]
        )
    )
    row = derived.row("a", "latency", HERE)
    assert row is not None and row.figures["p50"].samples == 6
    empty = derived.row("b", "latency", HERE)
    assert empty is not None and empty.figures == {} and empty.noise is None
    said = " ".join(derived.warnings)
    assert "3 samples are no finite numbers" in said
    assert "b, latency" in said and "no finite sample" in said and "no samples" in said
    loads = [c for c in derived.contrasts if c.metric == "load.warm"]
    assert [(c.ratio.value, c.verdict) for c in loads] == [(2.0, "unknown")]
    assert not [c for c in derived.contrasts if c.metric == "memory.gpu"]
    json.dumps(derived.to_json(), allow_nan=False)


def test_the_same_document_gives_the_same_figures() -> None:
    m = of("a", latencies(np.random.default_rng(7), 1e-3))
    nine = dataclasses.replace(m, values=m.values + m.values[:4], blocks=m.blocks + m.blocks[:4])
    assert derive(document([nine])).to_json() == derive(document([nine])).to_json()
