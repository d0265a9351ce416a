"""``bench``: every kind of artifact end to end, and the inputs that it is measured with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core import Results
from edgeopt.errors import EdgeoptError, InputsError, SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.numerics.derive import derive
from edgeopt.results.gate import judge
from edgeopt.verbs import bench as verb
from edgeopt.verbs.bench import bench
from edgeopt.verbs.bench_trials import BenchRequest, names_of, runtime_of, trials_of

QUICK = {"seconds": 0.05, "cold": False, "processes": 5}


def write(path: Path, shape: tuple[int | str, ...] = ("batch", 8), width: int = 8) -> Path:
    """One dense layer, ``x`` of ``shape`` to the last axis' width."""
    weight = np.random.default_rng(0).standard_normal((8, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_two_onnx_files_and_weights(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", width=64)
    c = tmp_path / "c.safetensors"
    safetensors.numpy.save_file({"w": np.ones((64, 64), np.float32)}, c)
    out = tmp_path / "results.json"
    results = bench([a, b, c], out=out, **QUICK)
    assert [s.failure for s in results.subjects] == ["", "", ""]
    assert [s.runtime for s in results.subjects] == ["onnxruntime", "onnxruntime", "weights"]
    assert results.baseline == "a"
    for subject, path in zip(results.subjects, (a, b, c), strict=True):
        assert subject.nbytes == path.stat().st_size
        assert subject.sha256 == open_source(path).sha256()
        assert [layer.name for layer in subject.layers] == ["w"]
    latencies = [m for m in results.measurements if m.metric == "latency"]
    assert [(m.subject, m.conditions["batch"]) for m in latencies] == [("a", 1), ("b", 1)]
    assert all(len(m.values) == 5 for m in latencies)
    # weights are loaded, by mapping and by reading, and nothing of them runs
    loads = results.of("c", "load.warm")
    assert [m.conditions["workload"] for m in loads] == ["open", "read"]
    # what is saved is what is returned, and derives the same
    saved = Results.load(out)
    assert saved.to_json() == results.to_json()
    assert derive(saved).to_json() == derive(results).to_json()
    assert json.loads(out.read_text())["derived"] == derive(results).to_json()
    assert any(u.metric == "energy" for u in results.unavailable) or results.of("a", "energy")


def test_what_fails_is_named_and_the_rest_is_measured(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.onnx"), write(tmp_path / "bad.onnx")
    proto = onnx.load(bad)
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, bad)
    results = bench([bad, good], **QUICK)
    assert "NoSuchOperator" in results.subject("bad").failure
    assert results.of("good", "latency") and not results.of("bad", "latency")


def test_the_document_grows_round_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    save = verb.write_document

    def watched(results: Results, path: str | Path) -> None:
        save(results, path)
        counts.append(len(Results.load(Path(path)).of("a", "load.warm")[0].values))
        if len(counts) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(verb, "write_document", watched)
    out = tmp_path / "r.json"
    with pytest.raises(KeyboardInterrupt):
        bench([write(tmp_path / "a.onnx")], out=out, **QUICK)
    assert counts == [1, 2]
    assert len(Results.load(out).of("a", "latency")[0].values) == 2


def test_a_saved_file_of_several_is_compared_by_name(tmp_path: Path) -> None:
    a, b, saved = write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx"), tmp_path / "s.json"
    first = bench([a, b], out=saved, **QUICK)
    results = bench([b], baseline=saved, **QUICK)
    assert results.baseline == "b" and [s.name for s in results.subjects] == ["b", "b (now)"]
    assert results.of("b", "latency")[0].values == first.of("b", "latency")[0].values
    # A limit is asked of what is fresh, not of the saved figures.
    found = judge(["latency.p50 > 0 ms"], results, derive(results))
    assert [breach.subject for breach in found] == ["b (now)"]


# ---------------------------------------------------------------------------------------------
# inputs and conditions


def feeds(path: Path, **asked: object) -> list[dict[str, np.ndarray]]:
    trials = trials_of("m", open_source(path), BenchRequest(**asked), "cpu")  # type: ignore[arg-type]
    return [dict(trial.feed) for trial in trials]


def test_free_axes_take_batch_and_seq(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", ("batch", "sequence", 8))
    shapes = [feed["x"].shape for feed in feeds(path, batch=(1, 3), seq=7)]
    assert shapes == [(1, 7, 8), (3, 7, 8)]
    assert [feed["x"].shape[0] for feed in feeds(path)] == [1]


def test_a_fixed_batch_is_the_model_s_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx", (2, 8))
    assert [feed["x"].shape for feed in feeds(path)] == [(2, 8)]
    with pytest.raises(UsageError, match="batches of 2 only"):
        feeds(path, batch=(3,))
    with pytest.raises(UsageError, match="no free sequence axis"):
        feeds(path, seq=3)


def test_samples_are_joined_into_batches(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx")
    data = np.arange(24, dtype=np.float32).reshape(3, 8)
    np.savez(tmp_path / "d.npz", x=data)
    given = str(tmp_path / "d.npz")
    (two,) = feeds(path, batch=(2,), data=given)
    np.testing.assert_array_equal(two["x"], data[:2])
    (five,) = feeds(path, batch=(5,), data=given)
    np.testing.assert_array_equal(five["x"], data[[0, 1, 2, 0, 1]])


def three_at_once() -> list[dict[str, np.ndarray]]:
    return [{"x": np.arange(24, dtype=np.float32).reshape(3, 8)}]


def test_a_batch_is_never_more_than_was_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx")
    (eight,) = feeds(path, batch=(8,), data=f"{__name__}:three_at_once")
    rows = three_at_once()[0]["x"]
    np.testing.assert_array_equal(eight["x"], rows[[0, 1, 2, 0, 1, 2, 0, 1]])


def test_weights_without_code_are_loaded_only(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"w": np.ones(4, np.float32)}, path)
    source = open_source(path)
    assert runtime_of(source, BenchRequest()) == "weights"
    assert runtime_of(source, BenchRequest(model="m:f")) == "torch"
    with pytest.raises(UsageError, match="which weights opens"):
        runtime_of(source, BenchRequest(runtime="onnxruntime"))
    assert runtime_of(replace(source, kind="gguf"), BenchRequest(runtime="weights")) == "weights"


def test_inputs_that_nobody_knows_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"w": np.ones(4, np.float32)}, path)
    source, asked = open_source(path), BenchRequest(model="m:f")
    with pytest.raises(InputsError, match="--input"):
        trials_of("w", source, asked, "cpu")
    other = open_source(write(tmp_path / "a.onnx"))
    (trial,) = trials_of("w", source, asked, "cpu", other)
    assert trial.feed["x"].shape == (1, 8)
    (trial,) = trials_of("w", source, replace(asked, inputs=("q:float32[2,3]",)), "cpu")
    assert trial.feed["q"].shape == (2, 3)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/x.onnx", "a/y.onnx"], ["x", "y"]),
        (["a/x.onnx", "a/x.gguf"], ["x.onnx", "x.gguf"]),
        (["a/x.onnx", "b/x.onnx"], ["a/x.onnx", "b/x.onnx"]),
    ],
)
def test_names_tell_files_apart(paths: list[str], names: list[str]) -> None:
    assert names_of([Path(path) for path in paths]) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": [0]}, "--threads 0; use 1 or more"),
        ({"threads": [1, 1]}, "give each number once"),
        ({"batch": [-1]}, "--batch -1; use 1 or more"),
        ({"seq": 0}, "--seq 0; use 1 or more"),
        ({"runtime": "tflite"}, "--runtime tflite: use onnxruntime"),
        ({"seconds": 0.0}, "--time 0; use"),
        ({"seconds": float("nan")}, "--time nan; use"),
        ({"timeout": -1.0}, "--timeout -1; use"),
        ({"processes": 4}, "--processes 4; use 5 or more"),
        ({"prompt": 0, "generate": 0}, "use 1 or more of either"),
        ({"device": "cuda"}, "device cuda:"),
        ({"out": "/nowhere/r.json"}, "does not exist"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = write(tmp_path / "a.onnx")
    with pytest.raises(EdgeoptError, match=message) as caught:
        bench([path], **options)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_artifacts_that_cannot_be(tmp_path: Path) -> None:
    path = write(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="given twice"):
        bench([path, path])
    with pytest.raises(UsageError, match="nothing to measure"):
        bench([])
    with pytest.raises(SourceError, match="no such file"):
        bench([tmp_path / "none.onnx"])
