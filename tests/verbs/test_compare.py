"""``compare`` end to end, and what each kind of artifact is compared by."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import small_onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import quantize_dynamic
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from tests.in_process import no_processes

from edgeopt.core import Measurement, Results, Subject
from edgeopt.errors import InputsError, UsageError, WorkerError
from edgeopt.files.open import open_source
from edgeopt.measure.answers import take_answers
from edgeopt.measure.layers import tensors_of
from edgeopt.measure.process import workplace
from edgeopt.numerics.derive import derive
from edgeopt.results.gate import check, enforce
from edgeopt.runtimes.engine import Case
from edgeopt.verbs import bench as benchmarks
from edgeopt.verbs import compare as verb
from edgeopt.verbs.bench_trials import BenchRequest, names_of, runtime_of
from edgeopt.verbs.compare import compare


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """No benchmark: its subjects alone; and no processes. Gives what bench was called with."""
    calls: list[dict[str, Any]] = []

    def subjects(items: Sequence[str | Path], **options: Any) -> Results:
        calls.append(options)
        sources = [open_source(item) for item in items]
        asked = BenchRequest(runtime=options.get("runtime"), model=options.get("model"))
        found = tuple(
            Subject(
                name,
                str(source.path),
                source.kind,
                runtime_of(source, asked),
                ((source.path.name, source.nbytes),),
                source.sha256(),
            )
            for name, source in zip(names_of([s.path for s in sources]), sources, strict=True)
        )
        return Results("bench", "", found[0].name, found, (), {"cpu": "here"}, {})

    no_processes(monkeypatch, capture=False)
    monkeypatch.setattr(verb, "bench", subjects)
    return calls


def quantized(path: Path, out: Path) -> Path:
    logging.disable(logging.WARNING)
    # Weights of 7 bits: the same answers on CPUs with and without VNNI.
    quantize_dynamic(path, out, per_channel=True, reduce_range=True)
    logging.disable(logging.NOTSET)
    return out


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    fp32 = small_onnx.mlp(tmp_path / "fp32.onnx")
    return fp32, quantized(fp32, tmp_path / "int8.onnx")


def reasons(results: Results) -> dict[tuple[str, str], str]:
    return {(u.subject, u.metric): u.reason for u in results.unavailable}


# ---------------------------------------------------------------------------------------------
# arrays


def test_digits_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FP32 against INT8: smaller, as accurate as scikit-learn says, gated, saved, compared anew."""
    monkeypatch.setattr(benchmarks, "_FEWEST_PROCESSES", 2)  # what is timed is not looked at
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    model = LogisticRegression(max_iter=200).fit(images[:1300], labels[:1300])
    arrays = {"w": model.coef_.T.astype(np.float32), "b": model.intercept_.astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    x = (TensorProto.FLOAT, ["batch", 64])
    fp32 = small_onnx.write(tmp_path / "fp32.onnx", nodes, arrays, x)
    int8 = quantized(fp32, tmp_path / "int8.onnx")
    data, out = tmp_path / "test.npz", tmp_path / "results.json"
    np.savez(data, x=images[1300:], label=labels[1300:])
    results = compare(
        [fp32, int8],
        data=str(data),
        metric=["accuracy"],
        out=out,
        seconds=0.05,
        cold=False,
        processes=2,
    )
    assert results.verb == "compare" and results.baseline == "fp32"
    for quality, path in zip(results.quality, (fp32, int8), strict=True):
        session = onnxruntime.InferenceSession(path)
        logits = session.run(None, {"x": images[1300:]})[0]
        assert quality.value == pytest.approx(
            accuracy_score(labels[1300:], logits.argmax(1)), abs=0.01
        )
        assert quality.value > 0.85 and len(quality.scores) == len(labels) - 1300
    (fidelity,) = results.fidelity["int8"]
    assert fidelity.sqnr_db > 25 and fidelity.samples == len(labels) - 1300
    derived = derive(results)
    assert {r.metric for r in derived.rows} >= {"file", "load.warm", "first", "latency"}
    assert (
        check(["file > 1TB", "fidelity.top1 < 50%", "quality.accuracy < -0.2"], results, derived)
        == []
    )
    assert [b.subject for b in check(["fidelity.sqnr_db < 200"], results, derived)] == ["int8"]
    assert Results.load(out).to_json() == results.to_json()
    assert json.loads(out.read_text())["derived"] == derived.to_json()
    again = compare([f"{out}[fp32]", f"{out}[int8]"])
    assert [s.name for s in again.subjects] == ["fp32", "int8"]
    ratio = {c.metric: c.ratio.value for c in derive(again).contrasts if c.metric == "file"}
    assert ratio["file"] == int8.stat().st_size / fp32.stat().st_size
    with pytest.raises(UsageError, match="--metric: saved results cannot be run"):
        compare([out], metric=["accuracy"])


def test_made_up_inputs_where_nobody_gave_any(
    pair: tuple[Path, Path], unmeasured: list[dict[str, Any]]
) -> None:
    results = compare(pair)
    (fidelity,) = results.fidelity["int8"]
    assert (fidelity.output, fidelity.samples) == ("y", 8)
    assert 30 < fidelity.sqnr_db < 60 and results.quality == ()
    assert "fp32" not in results.fidelity


def test_fidelity_is_of_the_answers(
    tmp_path: Path, pair: tuple[Path, Path], unmeasured: list[dict[str, Any]]
) -> None:
    x = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    (fidelity,) = compare(pair, data=str(tmp_path / "d.npz")).fidelity["int8"]
    rows = [
        [onnxruntime.InferenceSession(path).run(None, {"x": x[i : i + 1]})[0] for i in range(20)]
        for path in pair
    ]
    want, got = (np.concatenate(each).astype(np.float64) for each in rows)
    expected = 10 * math.log10((want**2).sum() / ((want - got) ** 2).sum())
    assert fidelity.sqnr_db == pytest.approx(expected, rel=1e-6)
    assert fidelity.top1 == (want.argmax(1) == got.argmax(1)).mean()


def test_layers_are_put_together_and_their_errors_are_the_codes(
    pair: tuple[Path, Path], unmeasured: list[dict[str, Any]]
) -> None:
    results = compare(pair)
    base, int8 = ({layer.name: layer for layer in s.layers} for s in results.subjects)
    assert list(base) == ["w0", "w1", "b"] and sorted(int8) == ["b", "w0", "w1"]
    stored = {i.name: i for i in onnx.load(pair[1]).graph.initializer}
    for name, part, transposed in (("w0", "w0", False), ("w1", "w1_Transposed", True)):
        codes, scale, zero = (
            onnx.numpy_helper.to_array(stored[f"{part}_{end}"]).astype(np.float64)
            for end in ("quantized", "scale", "zero_point")
        )
        made = (codes - zero) * scale
        made = made.T if transposed else made
        want = open_source(pair[0])
        clean = next(w for w in want.weights if w.name == name).array().astype(np.float64)
        expected = 10 * math.log10((clean**2).sum() / ((clean - made) ** 2).sum())
        assert int8[name].sqnr_db == pytest.approx(expected, abs=0.01)
        assert int8[name].nbytes == codes.size + 5 * scale.size
    assert int8["b"].sqnr_db == math.inf
    assert all(layer.sqnr_db is None for layer in base.values())


def test_layers_that_edgeopt_quantized(tmp_path: Path) -> None:
    from edgeopt.targets.packed.make import carry_out
    from edgeopt.targets.packed.plan import plan_weights

    rng = np.random.default_rng(0)
    weights = {"a.weight": rng.standard_normal((64, 96)).astype(np.float32)}
    safetensors.numpy.save_file(weights, tmp_path / "w.safetensors")
    source = open_source(tmp_path / "w.safetensors")
    carry_out(source, plan_weights(source, bits=4), tmp_path / "q.safetensors")
    (layer,) = tensors_of(open_source(tmp_path / "q.safetensors")).layers
    assert (layer.name, layer.dtype) == ("a.weight", "int4")
    assert 64 * 96 / 2 < layer.nbytes < 64 * 96


def test_names_alone_make_no_layer(tmp_path: Path) -> None:
    arrays = {
        "w_quantized": np.zeros((4, 6), np.int8),
        "w_scale": np.zeros(5, np.float32),  # of no axis
        "v_quantized": np.zeros((4, 6), np.float32),  # no codes
        "v_scale": np.zeros(4, np.float32),
        "u.codes": np.zeros((4, 6), np.int8),
        "u.scale": np.ones(1, np.float32),
        "u.shape": np.array([5, 5], np.int64),  # another size
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    found = tensors_of(open_source(tmp_path / "m.onnx"))
    assert [layer.name for layer in found.layers] == list(arrays)


# ---------------------------------------------------------------------------------------------
# task metrics


def labelled(tmp_path: Path, name: str = "label", **more: Any) -> str:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((30, 64)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, **{name: rng.integers(0, 32, 30)}, **more)
    return str(tmp_path / "d.npz")


def test_a_metric_of_ones_own(
    tmp_path: Path,
    pair: tuple[Path, Path],
    unmeasured: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metrics.py").write_text(
        "import numpy as np\n"
        "def error(outputs, targets):\n"
        "    assert outputs['y'].shape == (30, 32) and targets.shape == (30,)\n"
        "    return (outputs['y'].argmax(1) - targets) ** 2\n"
        "error.higher_is_better = False\n"
        "def one(outputs, targets): return outputs['y'].mean()\n"
        "def several(outputs, targets): return float(len(targets['label'] + targets['y']))\n"
        "def nothing(outputs, targets): return []\n"
        "def words(outputs, targets): return 'good'\n"
        "def table(outputs, targets): return np.zeros((2, 2))\n"
        "def nan(outputs, targets): return [1.0, float('nan'), 2.0]\n"
        "def broken(outputs, targets): return targets['nowhere']\n"
        "number = 3\n"
    )
    metrics = [f"own_metrics:{name}" for name in ("error", "one")]
    results = compare(pair, data=labelled(tmp_path), metric=metrics)
    error, one = results.quality[:2]
    assert (error.metric, error.higher_is_better, len(error.scores)) == ("error", False, 30)
    assert error.value == pytest.approx(np.mean(error.scores))
    assert (one.metric, one.scores, one.samples) == ("one", (), 30)
    bad = [f"own_metrics:{name}" for name in ("nothing", "words", "table", "nan", "broken", "one")]
    results = compare(pair, data=labelled(tmp_path), metric=bad)
    assert [(q.subject, q.metric) for q in results.quality] == [("fp32", "one"), ("int8", "one")]
    said = reasons(results)
    assert said["fp32", "quality.nothing"] == "it gave no scores; give samples that it counts"
    assert "gave str; a number or one number a sample" in said["fp32", "quality.words"]
    assert "gave ndarray; a number or one" in said["int8", "quality.table"]
    assert said["int8", "quality.nan"] == "it is nan (1 of 3 samples), no number to compare"
    assert "own_metrics:broken failed: IndexError" in said["int8", "quality.broken"]
    # what is lost is said once everything is shown, with exit code 2, and fidelity is there
    assert results.fidelity["int8"]
    with pytest.raises(UsageError, match=r"--metric nothing of fp32: it gave no scores.*\(and 9 m"):
        enforce([], results, derive(results))
    two = labelled(tmp_path, y=np.ones(30))
    assert compare(pair, data=two, metric=["own_metrics:several"]).quality[0].value == 30
    for spec, says in (
        ("accuracies", "use accuracy, spearman, perplexity, or module:callable"),
        ("own_metrics:missing", "own_metrics has no 'missing'"),
        ("own_metrics:number", "int cannot be called"),
        ("no_such_module:f", "importing no_such_module failed: ModuleNotFoundError"),
        (":f", "use accuracy"),
    ):
        with pytest.raises(UsageError, match=says):
            compare(pair, data=two, metric=[spec])


def test_metrics_that_the_data_cannot_give(
    tmp_path: Path, pair: tuple[Path, Path], unmeasured: list[dict[str, Any]]
) -> None:
    metric = ["accuracy", "spearman", "perplexity"]
    with pytest.raises(UsageError, match="--metric accuracy: needs --data with labels"):
        compare(pair, metric=metric)
    x = np.zeros((3, 64), np.float32)
    np.savez(tmp_path / "plain.npz", x=x)
    said = reasons(compare(pair, data=str(tmp_path / "plain.npz"), metric=metric))
    assert "no class numbers in plain.npz" in said["fp32", "quality.accuracy"]
    assert "it has inputs only; add an array 'labels'" in said["int8", "quality.accuracy"]
    assert "needs an input input_ids" in said["fp32", "quality.perplexity"]
    data = tmp_path / "odd.npz"
    np.savez(data, x=x, label=np.array([0.5, 1, 2]))
    assert (
        "accuracy needs class numbers"
        in reasons(compare(pair, data=str(data), metric=metric))["fp32", "quality.accuracy"]
    )
    np.savez(data, x=x, label=np.zeros((3, 7), np.int64))
    said = reasons(compare(pair, data=str(data), metric=metric))
    assert "has no classes for labels of shape [3, 7]" in said["fp32", "quality.accuracy"]
    assert "give every input NAME also as NAME_b" in said["fp32", "quality.spearman"]


def test_spearman_of_pairs_and_of_scores(
    tmp_path: Path, pair: tuple[Path, Path], unmeasured: list[dict[str, Any]]
) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 25, 64)).astype(np.float32)
    wanted = rng.random(25)
    np.savez(tmp_path / "pairs.npz", x=a, x_b=b, score=wanted)
    results = compare(pair, data=str(tmp_path / "pairs.npz"), metric=["spearman"])
    for path, quality in zip(pair, results.quality, strict=True):
        session = onnxruntime.InferenceSession(path)
        rows = [
            np.concatenate([session.run(None, {"x": v[i : i + 1]})[0] for i in range(25)])
            for v in (a, b)
        ]
        first, second = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows)
        expected = spearmanr((first * second).sum(1), wanted).statistic
        assert quality.value == pytest.approx(expected, abs=1e-6)
        assert quality.samples == 25 and quality.scores == ()
    one = small_onnx.mlp(tmp_path / "a.onnx", arrays=small_onnx.weights(w1=(1, 128), b=(1,)))
    two = quantized(one, tmp_path / "b.onnx")
    np.savez(tmp_path / "scores.npz", x=a, score=wanted)
    results = compare([one, two], data=str(tmp_path / "scores.npz"), metric=["spearman"])
    got = onnxruntime.InferenceSession(one).run(None, {"x": a})[0][:, 0]
    assert results.quality[0].value == pytest.approx(spearmanr(got, wanted).statistic, abs=1e-6)


def language_model(path: Path, seed: int = 0) -> Path:
    """Logits of the next of 16 tokens from the one before."""
    table = np.random.default_rng(seed).standard_normal((16, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "input_ids"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(table, "t")],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_perplexity_of_an_onnx_language_model(
    tmp_path: Path, unmeasured: list[dict[str, Any]]
) -> None:
    a, b = language_model(tmp_path / "a.onnx"), language_model(tmp_path / "b.onnx", 1)
    ids = np.random.default_rng(0).integers(0, 16, (5, 12))
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    results = compare([a, b], data=str(tmp_path / "ids.npz"), metric=["perplexity"])
    table = onnx.numpy_helper.to_array(onnx.load(a).graph.initializer[0]).astype(np.float64)
    log_p = table - np.log(np.exp(table).sum(1, keepdims=True))
    expected = math.exp(-log_p[ids[:, :-1], ids[:, 1:]].mean())
    assert results.quality[0].value == pytest.approx(expected, rel=1e-6)
    assert not results.quality[0].higher_is_better
    labels = np.where(np.arange(12) < 6, ids, -100)
    np.savez(tmp_path / "ids.npz", input_ids=ids, labels=labels)
    half = compare([a, b], data=str(tmp_path / "ids.npz"), metric=["perplexity"])
    expected = math.exp(-log_p[ids[:, :5], ids[:, 1:6]].mean())
    assert half.quality[0].value == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------------------
# what goes wrong


def test_one_that_does_not_load_and_the_others(
    tmp_path: Path, pair: tuple[Path, Path], unmeasured: list[dict[str, Any]]
) -> None:
    bad = tmp_path / "bad.onnx"
    proto = onnx.load(pair[0])
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, bad)
    narrow = small_onnx.mlp(
        tmp_path / "narrow.onnx", arrays=small_onnx.weights(w1=(8, 128), b=(8,))
    )
    results = compare([pair[0], bad, narrow, pair[1]], data=labelled(tmp_path), metric=["accuracy"])
    said = reasons(results)
    assert "NoSuchOperator" in said["bad", "fidelity"] == said["bad", "quality.accuracy"]
    assert "shape [1, 32] in the source and [1, 8]" in said["narrow", "fidelity"]
    assert list(results.fidelity) == ["int8"]
    assert [q.subject for q in results.quality] == ["fp32", "narrow", "int8"]
    results = compare([bad, pair[0], pair[1]])
    assert reasons(results)["int8", "fidelity"] == "bad, the baseline, gave no answers"


def test_a_runtime_that_crashes_takes_nothing_with_it(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for onnxruntime that ends the worker as native code does."""
    (tmp_path / "onnxruntime.py").write_text("import os; os.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    case = Case(pair[0], (pair[0],), "onnxruntime")
    died = pytest.raises(WorkerError, match="died from SIGABRT while loading onnxruntime")
    with workplace([{"x": np.zeros((1, 64), np.float32)}]) as place, died:
        take_answers(place, "a", case)


def test_data_that_does_not_fit_is_said_before_anything_is_measured(
    tmp_path: Path, pair: tuple[Path, Path], unmeasured: list[dict[str, Any]]
) -> None:
    data = tmp_path / "d.npz"
    np.savez(data, z=np.zeros((3, 64), np.float32))
    with pytest.raises(InputsError, match="lacks input x"):
        compare(pair, data=str(data))
    np.savez(data, x=np.zeros((3, 63), np.float32))
    with pytest.raises(InputsError, match="size 63 on axis 1 where the model needs 64"):
        list(verb.read_labelled(str(data), open_source(pair[0]).inputs).feeds())
    assert unmeasured == []


@pytest.mark.parametrize(
    ("items", "options", "says"),
    [
        ([0], {}, "1 artifact to compare; give two or more"),
        ([], {}, "0 artifact"),
        (
            [0, 1],
            {"text": "t.txt"},
            "--text has no meaning for onnxruntime: predictions are compared on a text for GGUF",
        ),
    ],
)
def test_what_cannot_be_compared(
    pair: tuple[Path, Path], items: list[int], options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        compare([pair[i] for i in items], **options)


# ---------------------------------------------------------------------------------------------
# other kinds


def test_torch_against_onnx(tmp_path: Path, unmeasured: list[dict[str, Any]]) -> None:
    torch = pytest.importorskip("torch")
    fp32 = small_onnx.mlp(tmp_path / "fp32.onnx")
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(fp32).graph.initializer}
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 128, bias=False), torch.nn.ReLU(), torch.nn.Linear(128, 32)
    )
    with torch.no_grad():
        for parameter, value in zip(
            net.parameters(), (arrays["w0"].T, arrays["w1"], arrays["b"]), strict=True
        ):
            parameter.copy_(torch.tensor(value))
    torch.jit.trace(net, torch.zeros(1, 64)).save(tmp_path / "net.pt")
    data = labelled(tmp_path)
    results = compare([fp32, tmp_path / "net.pt"], data=data, metric=["accuracy"])
    assert results.unavailable == ()
    (fidelity,) = results.fidelity["net"]
    assert fidelity.sqnr_db > 100 and fidelity.output == "y"
    assert results.quality[0].scores == results.quality[1].scores
    # labels in the data are no inputs of the torch file
    assert unmeasured[0]["inputs"] == ("x: float32[batch, 64]",)


def test_weights_are_compared_as_weights(tmp_path: Path, unmeasured: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(0)
    a = {"u": rng.standard_normal((8, 8)).astype(np.float32), "v": np.ones(4, np.float32)}
    b = {"u": a["u"].astype(np.float16), "v": a["v"], "w": np.ones(3, np.float32)}
    for name, tensors in (("a", a), ("b", b)):
        safetensors.numpy.save_file(tensors, tmp_path / f"{name}.safetensors")
    safetensors.numpy.save_file({"z": a["u"]}, tmp_path / "c.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    results = compare(files)
    (fidelity,) = results.fidelity["b"]
    assert fidelity.output == "weights, the worst: u" and fidelity.samples == 2
    noise = a["u"].astype(np.float64) - b["u"].astype(np.float64)
    expected = 10 * math.log10((a["u"].astype(np.float64) ** 2).sum() / (noise**2).sum())
    assert fidelity.sqnr_db == pytest.approx(expected, abs=0.01)
    said = reasons(results)
    assert said["c", "fidelity"] == "no tensor has a counterpart in the baseline"
    with pytest.raises(UsageError, match="--metric accuracy: weights without code cannot be run"):
        compare(files, metric=["accuracy"])
    known = {layer.name: layer.sqnr_db for layer in results.subject("b").layers}
    assert known == {"u": fidelity.sqnr_db, "v": math.inf, "w": None}


def test_an_onnx_file_against_gguf(tmp_path: Path, unmeasured: list[dict[str, Any]]) -> None:
    pytest.importorskip("gguf")
    from tests import tiny_gguf

    fp32 = small_onnx.mlp(tmp_path / "fp32.onnx")
    tiny = tiny_gguf.write(tiny_gguf.llama(layers=1), tmp_path / "tiny.gguf", "F32")
    results = compare([fp32, tiny], data=labelled(tmp_path), metric=["accuracy"])
    said = reasons(results)
    assert said["tiny", "fidelity"] == "no tensor has a counterpart in the baseline"
    assert "of GGUF files it needs --text" in said["tiny", "quality.accuracy"]
    assert [q.subject for q in results.quality] == ["fp32"]


def test_two_gguf_files(tmp_path: Path, unmeasured: list[dict[str, Any]]) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from tests import tiny_gguf

    a = tiny_gguf.write(tiny_gguf.llama(layers=1), tmp_path / "a.gguf", "F32")
    b = tiny_gguf.write(tiny_gguf.llama(layers=1), tmp_path / "b.gguf", "Q4_0")
    text = tmp_path / "words.txt"
    text.write_text("The weather there is thin, and then the heather thickens.\n" * 30)
    task = {"text": text, "chunks": 2, "context": 64}
    results = compare([a, b], metric=["perplexity"], **task)
    (fidelity,) = results.fidelity["b"]
    assert fidelity.output == "next token" and fidelity.samples == 62
    assert fidelity.kl is not None and fidelity.top1 is not None
    assert fidelity.kl > 0
    assert 0.2 < fidelity.top1 <= 1
    base, other = results.quality
    assert (base.subject, other.subject, base.metric) == ("a", "b", "perplexity")
    assert 0.5 < other.value / base.value < 2
    assert base.value > 1
    assert not base.higher_is_better
    assert results.unavailable == ()
    for metric, says in (("accuracy", "there is perplexity alone"), ("perplexity", "needs --text")):
        with pytest.raises(UsageError, match=f"--metric {metric}: of GGUF files .*{says}"):
            compare([a, b], metric=[metric])
    plain = compare([a, b])
    assert plain.fidelity["b"][0].output.startswith("weights, the worst: ")
    assert 15 < plain.fidelity["b"][0].sqnr_db < 25
    layers = {layer.name: layer for layer in plain.subject("b").layers}
    assert layers["blk.0.ffn_up.weight"].dtype == "Q4_0"
    assert layers["blk.0.ffn_up.weight"].sqnr_db == pytest.approx(20, abs=3)


def test_embedders_in_gguf(tmp_path: Path, unmeasured: list[dict[str, Any]]) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    from tests import tiny_gguf

    a = tiny_gguf.write(tiny_gguf.bert(), tmp_path / "a.gguf", "F32")
    b = tiny_gguf.write(tiny_gguf.bert(), tmp_path / "b.gguf", "Q8_0")
    text = tmp_path / "words.txt"
    text.write_text("the weather there\nand then the heather\n")
    results = compare([a, b], text=text, metric=["perplexity"])
    (fidelity,) = results.fidelity["b"]
    assert (fidelity.output, fidelity.samples) == ("embedding", 2)
    assert fidelity.cosine > 0.99
    assert reasons(results)["", "quality.perplexity"] == "embedders predict no next token"


# ---------------------------------------------------------------------------------------------
# saved


def test_artifacts_beside_saved_results(
    tmp_path: Path, pair: tuple[Path, Path], unmeasured: list[dict[str, Any]]
) -> None:
    old = verb.bench([pair[0]])
    latency = Measurement("fp32", "latency", "s", {}, ((0.1,) * 9,), ((9,),))
    old = dataclasses.replace(old, measurements=(latency,))
    saved, out = tmp_path / "old.json", tmp_path / "out.json"
    saved.write_text(json.dumps(old.to_json()))
    results = compare([saved, *pair], out=out)
    assert [s.name for s in results.subjects] == ["fp32", "fp32 (now)", "int8"]
    assert results.baseline == "fp32" and results.measurements == (latency,)
    # the same file, measured then and now: what was found against the one holds for the other
    assert list(results.fidelity) == ["int8"]
    assert any("not side by side" in w for w in results.warnings)
    assert Results.load(out).to_json() == results.to_json()
    results = compare([pair[1], saved])
    assert [s.name for s in results.subjects] == ["int8", "fp32"] and results.baseline == "int8"
