"""What is derived from a document of raw samples, against documents whose answers are known."""

from __future__ import annotations

import json

import numpy as np

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
