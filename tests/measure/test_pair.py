"""A pair measured for real: in fresh worker processes, with plain ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from edgeopt.errors import InputsError, SourceError, UsageError
from edgeopt.measure import pair
from edgeopt.measure.pair import measure_pair

Feeds = list[dict[str, np.ndarray]]


def test_a_pair_against_onnxruntime_itself(mlp: Callable[..., Path], feeds: Feeds) -> None:
    source, artifact = mlp("a.onnx"), mlp("b.onnx", noise=0.05)
    result = measure_pair(source, artifact, feeds, seconds=0.05)
    assert result.failure is None
    sessions = [onnxruntime.InferenceSession(str(p)) for p in (source, artifact)]
    ref, got = (np.stack([s.run(None, f)[0] for f in feeds]).astype(float) for s in sessions)
    (fidelity,) = result.fidelity
    assert fidelity.output == "y"
    assert fidelity.samples == len(feeds) == result.samples
    assert fidelity.sqnr_db == pytest.approx(
        10 * np.log10((ref**2).sum() / ((ref - got) ** 2).sum()), abs=1e-6
    )
    assert fidelity.top1 == (ref.argmax(-1) == got.argmax(-1)).mean()

    found = {(m.subject, m.metric): m for m in result.measurements}
    assert result.nbytes == (source.stat().st_size, artifact.stat().st_size)
    for subject in ("source", "artifact"):
        latency = found[subject, "latency"]
        assert latency.unit == "s"
        assert len(latency.values[0]) >= 2 * 3  # two blocks a round
        assert all(0 < value < 1 for value in latency.values[0])
        assert latency.conditions["threads"] == 1
        assert latency.conditions["input_shapes"] == {"x": [1, 16]}
        assert latency.conditions["providers"] == ["CPUExecutionProvider"]
        assert len(found[subject, "load"].values) == 3  # three processes, one value each
        assert all(len(process) == 1 for process in found[subject, "load"].values)
    assert result.ratio is not None
    assert result.ratio.low <= result.ratio.estimate <= result.ratio.high
    assert [str(spec) for spec in result.inputs] == ["x: float32[batch, 16]"]
    assert [spec.name for spec in result.outputs] == ["y"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_sees_the_weights(
    mlp: Callable[..., Path], feeds: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "_QUICK", 0.0)  # as for files that are slow to load: one process
    small, large = mlp("small.onnx"), mlp("large.onnx", hidden=400_000)  # 26 MB of weights
    result = measure_pair(small, large, feeds, seconds=0.0)
    found = {(m.subject, m.metric): m.values[0][0] for m in result.measurements}
    weights = 400_000 * 26 * 4
    assert found["artifact", "memory"] - found["source", "memory"] > 0.9 * weights
    assert found["artifact", "memory"] < 10 * weights
    assert found["source", "memory"] > 0
    assert found["artifact", "memory_heap"] > 0.9 * weights


@pytest.mark.usefixtures("side_by_side")
def test_a_much_slower_artifact_is_slower_in_two_workers(
    mlp: Callable[..., Path], feeds: Feeds
) -> None:
    result = measure_pair(mlp("a.onnx"), mlp("b.onnx", hidden=4_000), feeds, seconds=0.05)
    assert result.slower
    (latency,) = (m for m in result.measurements if (m.subject, m.metric) == ("source", "latency"))
    assert len(latency.values) == 2
    back = measure_pair(mlp("b.onnx", hidden=4_000), mlp("a.onnx"), feeds, seconds=0.05)
    assert not back.slower


@pytest.mark.usefixtures("side_by_side")
def test_external_data_counts_as_file_bytes(mlp: Callable[..., Path], feeds: Feeds) -> None:
    inside, outside = mlp("in.onnx"), mlp("out.onnx", external=True)
    result = measure_pair(inside, outside, feeds, seconds=0.0)
    beside = outside.with_suffix(".bin")
    assert result.nbytes[1] == outside.stat().st_size + beside.stat().st_size
    assert result.fidelity[0].sqnr_db == np.inf


@pytest.mark.usefixtures("side_by_side")
def test_feeds_may_be_a_stream(mlp: Callable[..., Path], feeds: Feeds) -> None:
    result = measure_pair(mlp("a.onnx"), mlp("b.onnx"), iter(feeds), seconds=0.0)
    assert result.samples == len(feeds)


@pytest.mark.usefixtures("side_by_side")
def test_output_names_by_map_and_by_position(mlp: Callable[..., Path], feeds: Feeds) -> None:
    source, artifact = mlp("a.onnx"), mlp("b.onnx", output="other")
    result = measure_pair(source, artifact, feeds, seconds=0.0)
    assert result.failure is None
    assert result.fidelity[0].output == "y"
    assert "other" in " ".join(result.notes)
    mapped = measure_pair(source, artifact, feeds, seconds=0.0, output_map={"y": "other"})
    assert mapped.fidelity == result.fidelity
    lost = measure_pair(source, artifact, feeds, seconds=0.0, output_map={"y": "lost"})
    assert "no output lost" in (lost.failure or "")
    with pytest.raises(UsageError, match="no output z"):
        measure_pair(source, artifact, feeds, seconds=0.0, output_map={"z": "other"})


@pytest.mark.usefixtures("side_by_side")
def test_two_outputs_one_of_integers(graph: Callable[..., Path], feeds: Feeds) -> None:
    body = "y = Neg(x) k = ArgMax<axis = 1>(x)"
    source = graph("a.onnx", body, "float[N, 16] x", "float[N, 16] y, int64[N, 1] k")
    artifact = graph(
        "b.onnx",
        "y = Neg(x) n = Neg(x) k = ArgMax<axis = 1>(n)",
        "float[N, 16] x",
        "int64[N, 1] k, float[N, 16] y",
    )
    result = measure_pair(source, artifact, feeds, seconds=0.0)
    by_name = {f.output: f for f in result.fidelity}
    assert by_name["y"].sqnr_db == np.inf
    assert by_name["k"].top1 == 0.0


@pytest.mark.usefixtures("side_by_side")
def test_a_half_precision_artifact_takes_the_same_samples(
    graph: Callable[..., Path], feeds: Feeds
) -> None:
    source = graph("a.onnx", "y = Neg(x)", "float[N, 16] x", "float[N, 16] y")
    artifact = graph("b.onnx", "y = Neg(x)", "float16[N, 16] x", "float16[N, 16] y")
    result = measure_pair(source, artifact, feeds, seconds=0.0)
    assert 60 < result.fidelity[0].sqnr_db < 90


@pytest.mark.usefixtures("side_by_side")
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not an ONNX model"), (b"junk" * 50, "not an ONNX model")],
    ids=["empty", "junk"],
)
def test_an_artifact_that_does_not_load_is_a_finding(
    mlp: Callable[..., Path], feeds: Feeds, tmp_path: Path, content: bytes, reason: str
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(content)
    result = measure_pair(mlp(), broken, feeds, seconds=0.0)
    assert reason in (result.failure or "")
    assert "\n" not in (result.failure or "")
    assert result.fidelity == ()
    assert result.ratio is None


@pytest.mark.usefixtures("side_by_side")
def test_an_artifact_of_another_shape_is_a_finding(mlp: Callable[..., Path], feeds: Feeds) -> None:
    result = measure_pair(mlp("a.onnx"), mlp("b.onnx", classes=7), feeds, seconds=0.0)
    assert result.failure is None
    assert result.shapes == ("y [1, 10] in the source and [1, 7] in the artifact",)
    assert result.rows is None


@pytest.mark.usefixtures("side_by_side")
def test_an_artifact_that_fails_at_run_time_is_a_finding(
    mlp: Callable[..., Path], graph: Callable[..., Path], feeds: Feeds
) -> None:
    fails = graph(
        "b.onnx",
        "s = Constant<value_ints = [3, 7]>() y = Reshape(x, s)",
        "float[N, 16] x",
        "float[A, B] y",
    )
    result = measure_pair(mlp(), fails, feeds, seconds=0.0)
    assert "fails while running" in (result.failure or "")


@pytest.mark.usefixtures("side_by_side")
def test_the_source_at_fault_raises(mlp: Callable[..., Path], feeds: Feeds, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"junk" * 50)
    with pytest.raises(SourceError, match="not an ONNX model"):
        measure_pair(broken, mlp(), feeds, seconds=0.0)
    with pytest.raises(SourceError, match="no such file"):
        measure_pair(tmp_path / "none.onnx", mlp(), feeds)
    with pytest.raises(UsageError, match="0 threads"):
        measure_pair(mlp(), mlp(), feeds, threads=0)


@pytest.mark.usefixtures("side_by_side")
def test_feeds_that_do_not_fit_raise(mlp: Callable[..., Path], feeds: Feeds) -> None:
    source, artifact = mlp("a.onnx"), mlp("b.onnx")
    for bad, match in (
        ([{"z": feeds[0]["x"]}], "input x is missing"),
        ([{"x": np.zeros((1, 5), np.float32)}], "do not fit"),
        ([{"x": np.zeros((1, 16), np.int64)}], "do not fit"),
        ([], "no samples"),
        ([feeds[0], {"w": feeds[0]["x"]}], "sample 1"),
        ([{"x": np.array([object()])}], "not an array of numbers"),
    ):
        with pytest.raises(InputsError, match=match):
            measure_pair(source, artifact, bad, seconds=0.0)


@pytest.mark.usefixtures("side_by_side")
def test_nan_of_the_source_is_unproven(graph: Callable[..., Path], feeds: Feeds) -> None:
    source = graph("a.onnx", "y = Log(x)", "float[N, 16] x", "float[N, 16] y")
    result = measure_pair(source, source, feeds, seconds=0.0)
    assert any("NaN or Inf" in line for line in result.unproven)
    assert result.fidelity[0].finite


def test_progress_is_passed_on(
    mlp: Callable[..., Path], feeds: Feeds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "_QUICK", 0.0)
    steps: list[tuple[str, float | None]] = []
    measure_pair(
        mlp("a.onnx"),
        mlp("b.onnx"),
        feeds,
        seconds=0.05,
        progress=lambda step, part: steps.append((step, part)),
    )
    assert {"loading"} <= {step for step, _ in steps}
    assert all(part is None or 0 <= part <= 1 for _, part in steps)


@pytest.mark.usefixtures("side_by_side")
@pytest.mark.parametrize(("large", "lost"), [(1.0, False), (100.0, True)])
def test_a_row_is_seen_to_take_another_down(tmp_path: Path, large: float, lost: bool) -> None:
    """One scale serves a batch of a dynamic INT8 product: judged by ONNX Runtime's own quantizer,
    alone and beside a row that is 100 times larger."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((64, 32)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [weight],
    )
    source, artifact = tmp_path / "a.onnx", tmp_path / "b.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), source)
    quantize_dynamic(source, artifact, extra_options={"MatMulConstBOnly": True})
    rows = rng.standard_normal((4, 1, 64)).astype(np.float32)
    rows[2] *= large
    result = measure_pair(source, artifact, [{"x": r} for r in rows], seconds=0.05, batch=["x"])
    found = result.mates
    assert found is not None and (found.rows, found.output) == (4, "y")
    sessions = [onnxruntime.InferenceSession(str(p)) for p in (source, artifact)]
    ref, got = (s.run(None, {"x": rows[:, 0]})[0].astype(float) for s in sessions)
    db = 10 * np.log10((ref**2).sum(1) / ((ref - got) ** 2).sum(1))
    assert np.isclose(db, found.beside_db, atol=1e-4).any()
    assert (found.lost > 20) == lost
    assert (found.beside_db < 10) == lost
    assert found.alone_db > 25


@pytest.mark.usefixtures("side_by_side")
def test_without_a_batch_there_are_no_neighbours(mlp: Callable[..., Path], feeds: Feeds) -> None:
    source, artifact = mlp("a.onnx"), mlp("b.onnx", noise=0.05)
    assert measure_pair(source, artifact, feeds, seconds=0.05).mates is None
    one = measure_pair(source, artifact, feeds[:1], seconds=0.05, batch=["x"])
    assert one.mates is None
