"""``quantize`` on small ONNX graphs: plans, replays, the artifact, and what is kept on disk.

Nothing here asks how fast anything is: ``force`` keeps an artifact whatever the clock said, and the
other checks of the verdict are looked at one by one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.graphs.nets import INT64, arrays, close_db, model, node, normal, ops, run, value
from tests.in_process import no_processes

from edgeopt.core import Choice, Plan, Proof
from edgeopt.errors import OutputError, SourceError, UsageError
from edgeopt.verbs.quantize import make_plan, quantize

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)


def text_model() -> Any:
    """A table, two products and a norm: 5000 ids of 32, hidden 128."""
    return model(
        [
            node("Gather", ["embed.weight", "ids"], ["e"]),
            node("MatMul", ["e", "up.weight"], ["u"]),
            node("Relu", ["u"], ["r"]),
            node("MatMul", ["r", "down.weight"], ["d"]),
            node("Add", ["d", "e"], ["s"]),
            node("LayerNormalization", ["s", "norm.weight", "norm.bias"], ["y"]),
        ],
        [value("ids", ["batch", 8], INT64)],
        [value("y", ["batch", 8, 64])],
        {
            "embed.weight": normal(5000, 64),
            "up.weight": normal(64, 128, seed=1, gain=0.125),
            "down.weight": normal(128, 64, seed=2, gain=0.09),
            "norm.weight": normal(64, seed=3),
            "norm.bias": normal(64, seed=4),
        },
    )


def image_model() -> Any:
    def kernel(*shape: int, seed: int) -> Any:
        return normal(*shape, seed=seed, gain=(2 / np.prod(shape[1:])) ** 0.5)

    return model(
        [
            node("Conv", ["x", "c1", "b1"], ["h1"], pads=[1, 1, 1, 1]),
            node("Relu", ["h1"], ["r1"]),
            node("Conv", ["r1", "c2", "b2"], ["h2"], pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", ["h2"], ["r2"]),
            node("GlobalAveragePool", ["r2"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "fc", "b3"], ["logits"], transB=1),
        ],
        {"x": ["batch", 3, 12, 12]},
        {"logits": ["batch", 10]},
        {
            "c1": kernel(32, 3, 3, 3, seed=1),
            "b1": normal(32, gain=0.1),
            "c2": kernel(64, 32, 3, 3, seed=2),
            "b2": normal(64, gain=0.1),
            "fc": kernel(10, 64, seed=3),
            "b3": normal(10, gain=0.1),
        },
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.onnx"
    onnx.save(text_model(), path)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.onnx"
    onnx.save(image_model(), path)
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, x=normal(24, 3, 12, 12, seed=9))
    return path


def failed(proof: Proof, *, but: tuple[str, ...] = ("not slower",)) -> list[str]:
    return [c.name for c in proof.verdict.checks if not c.passed and c.name not in but]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(folder: Path) -> dict[str, str]:
    return {p.name: digest(p) for p in sorted(folder.iterdir()) if p.is_file()}


# ---------------------------------------------------------------------------------------------
# what comes out


@pytest.mark.parametrize(
    ("prefer", "target"),
    [
        ("balanced", "here"),
        ("speed", "here"),
        ("size", "here"),
        ("memory", "here"),
        # Nothing is timed here, so that the others make no difference.
        ("balanced", "portable"),
        ("size", "portable"),
    ],
)
@pytest.mark.parametrize("bits", [8, 4])
def test_every_way_to_ask(text: Path, bits: int, prefer: str, target: str) -> None:
    before = digest(text)
    out = text.with_name("out.onnx")
    proof = quantize(text, out, bits=bits, prefer=prefer, target=target, force=True)
    assert failed(proof) == []
    assert digest(text) == before
    source, made = text.stat().st_size, out.stat().st_size
    # Where speed was preferred, it may take a larger form; never a larger file.
    assert made < source * (1 if prefer == "speed" else 0.35 if bits == 8 else 0.22)
    assert proof.artifact["nbytes"] == made and proof.artifact["sha256"] == digest(out)
    assert proof.coverage["share"] > 0.95
    assert {k["tensor"] for k in proof.coverage["kept"] if k["nbytes"] > 100} <= {
        "norm.weight",
        "norm.bias",
    }
    ids = np.random.default_rng(5).integers(0, 5000, (3, 8))
    want, got = run(text, ids=ids)[0], run(out, ids=ids)[0]
    assert close_db(want, got) > (20 if bits == 8 else 8)
    onnx.checker.check_model(onnx.load(out), check_custom_domain=False)


@pytest.mark.parametrize("bits", [8, 4])
def test_portable_files_hold_no_choice_of_this_machine(text: Path, bits: int) -> None:
    proof = quantize(text, text.with_name("o.onnx"), bits=bits, target="portable", force=True)
    assert proof.plan is not None
    assert all(not c.timings for c in proof.plan.choices)
    assert proof.plan.choice("weights") == "uint8"
    again = quantize(text, text.with_name("p.onnx"), bits=bits, target="portable", force=True)
    assert digest(text.with_name("o.onnx")) == digest(text.with_name("p.onnx"))
    assert again.plan is not None and again.plan.digest() == proof.plan.digest()


def test_default_name_and_the_plan_beside_it(text: Path) -> None:
    proof = quantize(text, prefer="size", force=True)
    made = {"text-int8.onnx", "text-int8.onnx.plan.json", "text-int8.plan.json"}
    assert set(listing(text.parent)) == {"text.onnx", *made}
    assert Path(proof.artifact["path"]).name == "text-int8.onnx"
    document = json.loads((text.parent / "text-int8.onnx.plan.json").read_text())
    assert proof.plan is not None
    assert Plan.from_json(document) == Plan.from_json(proof.plan.to_json())
    assert document["source_sha256"] == digest(text)
    assert {d["tensor"] for d in document["decisions"]} == set(arrays(text_model()))
    assert all(d["reason"] for d in document["decisions"])


def test_the_artifact_says_where_it_comes_from(text: Path) -> None:
    proof = quantize(text, prefer="size", bits=4, block_size=32, force=True)
    made = onnx.load(text.with_name("text-int4.onnx"))
    body = json.loads({p.key: p.value for p in made.metadata_props}["edgeopt"])
    assert proof.plan is not None
    assert body["source_sha256"] == digest(text)
    assert body["plan_sha256"] == proof.plan.digest()
    assert body["options"] == {"bits": 4, "prefer": "size", "target": "here", "block_size": 32}
    assert {"numpy", "onnx", "onnxruntime"} <= set(body["versions"])
    assert str(text.parent) not in made.SerializeToString().decode("latin-1"), "no paths inside"


def test_the_lines_of_python_run(text: Path) -> None:
    proof = quantize(text, prefer="size", force=True)
    assert len(proof.usage.strip().splitlines()) <= 6
    done = subprocess.run(
        [sys.executable, "-c", proof.usage], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_changes_carry_bytes_and_errors(text: Path) -> None:
    proof = quantize(text, prefer="size", force=True)
    by_name = {c.decision.tensor: c for c in proof.changes}
    assert set(by_name) == {"embed.weight", "up.weight", "down.weight"}
    for change in by_name.values():
        assert change.after < change.before
        assert change.sqnr_db is not None and 25 < change.sqnr_db < 60
    assert by_name["embed.weight"].before == 5000 * 64 * 4


# ---------------------------------------------------------------------------------------------
# plans: made, replayed, refused


def test_make_plan_writes_nothing(text: Path) -> None:
    before = listing(text.parent)
    plan = make_plan(text, bits=4, prefer="size")
    assert listing(text.parent) == before
    assert plan.source_sha256 == digest(text) and plan.options["bits"] == 4
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).digest() == plan.digest()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("prefer", ["balanced", "memory"])
def test_replay_gives_the_same_bytes(text: Path, bits: int, prefer: str) -> None:
    first, again = text.with_name("first.onnx"), text.with_name("again.onnx")
    proof = quantize(text, first, bits=bits, prefer=prefer, force=True)
    # The plan's own options count: what else is asked for here is not what it was made for.
    replayed = quantize(text, again, plan=text.with_name("first.plan.json"), force=True)
    assert digest(first) == digest(again)
    assert proof.plan is not None and replayed.plan is not None
    assert proof.plan.digest() == replayed.plan.digest()
    assert replayed.plan.choices == Plan.from_json(proof.plan.to_json()).choices


_REPLAY = """
import sys
from edgeopt.measure import pair, process, worker
from edgeopt.targets.onnx import prove as proving
from edgeopt.verbs.quantize import quantize
proving._SECONDS = 0.05
pair._alone = lambda place, job, progress: ([], [])
source, plan, out, threads = sys.argv[1:]
quantize(source, out, plan=plan, threads=int(threads), force=True)
"""


def test_replay_elsewhere_gives_the_same_bytes(text: Path) -> None:
    """Other hash seeds, other numbers of threads, another process."""
    first = text.with_name("first.onnx")
    quantize(text, first, bits=4, prefer="balanced", force=True)
    plan = str(text.with_name("first.plan.json"))
    jobs = []
    for seed, threads in (("0", "1"), ("4242", "2")):
        out = text.with_name(f"again{seed}.onnx")
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / "src")}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        command = [sys.executable, "-c", _REPLAY, str(text), plan, str(out), threads]
        jobs.append((out, subprocess.Popen(command, env=environment)))
    for out, job in jobs:
        assert job.wait(timeout=120) == 0
        assert digest(out) == digest(first)


def test_a_plan_for_another_source(text: Path, image: Path) -> None:
    plan = text.with_name("p.json")
    plan.write_text(json.dumps(make_plan(text, prefer="size").to_json()))
    before = listing(text.parent)
    with pytest.raises(UsageError, match="another source") as error:
        quantize(image, plan=plan)
    assert digest(text)[:12] in str(error.value) and digest(image)[:12] in str(error.value)
    assert listing(text.parent) == before


def broken_plans(good: dict[str, Any]) -> dict[str, str]:
    def changed(**values: Any) -> str:
        return json.dumps({**good, **values})

    decision = good["decisions"][0]
    return {
        "not JSON": "{",
        "binary": "\udcff\udcfe",
        "a list": "[]",
        "a number": "3",
        "null": "null",
        "empty": "",
        "another version": changed(edgeopt_plan=99),
        "no version": json.dumps({k: v for k, v in good.items() if k != "edgeopt_plan"}),
        "no decisions": json.dumps({k: v for k, v in good.items() if k != "decisions"}),
        "decisions of the wrong type": changed(decisions=3),
        "decision without a form": changed(
            decisions=[{k: v for k, v in decision.items() if k != "form"}]
        ),
        "unknown form": changed(decisions=[{**decision, "form": "magic"}]),
        "unknown method": changed(decisions=[{**decision, "method": "magic"}]),
        "form that does not fit": changed(decisions=[{**decision, "form": "matmul-nbits"}]),
        "bits that no form has": changed(
            decisions=[{**decision, "scheme": {**decision["scheme"], "bits": 3}}]
        ),
        "bits of a wrong type": changed(
            decisions=[{**decision, "scheme": {**decision["scheme"], "bits": "eight"}}]
        ),
        "block that does not divide": changed(
            decisions=[{**decision, "form": "folded", "scheme": {**decision["scheme"], "block": 7}}]
        ),
        "scale dtype unknown": changed(
            decisions=[{**decision, "scheme": {**decision["scheme"], "scale": "float3"}}]
        ),
        "another tensor": changed(decisions=[{**decision, "tensor": "nobody"}]),
        "no options": changed(options={}),
        "options of another type": changed(options=[]),
        "bits not known": changed(options={**good["options"], "bits": 5}),
        "choices without a name": changed(choices=[{}]),
        "accuracy level no number": changed(
            choices=[{"name": "accuracy_level", "value": "much", "reason": "", "timings": {}}]
        ),
        "calibration no mapping": changed(calibration=3),
        "ranges of nonsense": changed(calibration={"ranges": {"e": "wide"}}),
        "outliers of nonsense": changed(calibration={"outliers": {"e": ["x"]}}),
        "outliers out of range": changed(calibration={"outliers": {"e": [999]}}),
    }


_NAMES = sorted(
    broken_plans({"decisions": [{"scheme": {}, "form": ""}], "options": {}, "edgeopt_plan": 1})
)


@pytest.fixture(scope="module")
def good_plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("good") / "text.onnx"
    onnx.save(text_model(), path)
    return make_plan(path, bits=8, target="portable").to_json()


@pytest.mark.parametrize("name", _NAMES)
def test_broken_plans_are_refused_in_a_line(
    text: Path, good_plan: dict[str, Any], name: str
) -> None:
    plan = text.with_name("p.json")
    plan.write_bytes(broken_plans(good_plan)[name].encode("utf-8", "surrogateescape"))
    before = listing(text.parent)
    with pytest.raises(UsageError) as error:
        quantize(text, plan=plan)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert "plan" in str(error.value)
    assert listing(text.parent) == before


def test_a_missing_plan_file(text: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        quantize(text, plan=text.with_name("nowhere.json"))


# ---------------------------------------------------------------------------------------------
# what is kept, and what is not


def test_a_failed_artifact_is_not_kept(text: Path) -> None:
    before = listing(text.parent)
    proof = quantize(text, min_sqnr=200.0, prefer="size")
    assert not proof.proven and failed(proof) == ["fidelity"]
    assert listing(text.parent) == before


def test_a_failed_artifact_leaves_what_was_there(text: Path) -> None:
    out = text.with_name("text-int8.onnx")
    out.write_bytes(b"an earlier artifact")
    out.with_name("text-int8.onnx.plan.json").write_bytes(b"its plan")
    before = listing(text.parent)
    assert not quantize(text, min_sqnr=200.0, prefer="size").proven
    assert listing(text.parent) == before


def test_force_keeps_a_failed_artifact(text: Path) -> None:
    proof = quantize(text, min_sqnr=200.0, prefer="size", force=True)
    assert not proof.proven
    made = text.with_name("text-int8.onnx")
    assert run(made, ids=np.arange(8)[None])[0].shape == (1, 8, 64)
    assert made.with_name("text-int8.onnx.plan.json").exists()


def test_a_proven_artifact_replaces_an_older_one(text: Path) -> None:
    out = text.with_name("text-int8.onnx")
    out.write_bytes(b"an earlier artifact")
    proof = quantize(text, prefer="size")
    if proof.proven:  # --prefer size asks for no speed, so that only noise of fidelity could tell
        assert digest(out) == proof.artifact["sha256"]
    assert failed(proof, but=()) == []


def test_the_source_is_never_the_output(text: Path) -> None:
    before = listing(text.parent)
    with pytest.raises(OutputError, match="source"):
        quantize(text, text)
    assert listing(text.parent) == before


def test_nothing_is_written_when_planning_fails(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise SourceError("broken on purpose")

    monkeypatch.setattr("edgeopt.targets.onnx.target.build", fail)
    before = listing(text.parent)
    with pytest.raises(SourceError, match="on purpose"):
        quantize(text, prefer="size")
    assert listing(text.parent) == before


# ---------------------------------------------------------------------------------------------
# options that are not understood


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 5},
        {"prefer": "beauty"},
        {"target": "moon"},
        {"block_size": 100},
        {"block_size": 8},
        {"block_size": 512},
        {"bits": 4, "block_size": 256},
    ],
)
def test_options_that_cannot_be_honoured(text: Path, options: dict[str, Any]) -> None:
    before = listing(text.parent)
    with pytest.raises(UsageError) as error:
        quantize(text, **options)
    assert str(next(iter(reversed(options.values())))) in str(error.value)
    assert listing(text.parent) == before


# ---------------------------------------------------------------------------------------------
# static: ranges from data


@pytest.mark.parametrize("target", ["here", "portable"])
def test_with_data_convolutions_get_integer_kernels(
    image: Path, samples: Path, target: str
) -> None:
    out = image.with_name("q.onnx")
    proof = quantize(image, out, data=str(samples), prefer="speed", target=target, force=True)
    assert failed(proof) == []
    assert "held out" in proof.samples
    plan = proof.plan
    assert plan is not None
    if not plan.choice("kernel").startswith("static"):
        # Timing chose another form here: plan the static one by hand.
        assert target == "here"
        return
    forms = {d.tensor: d.form for d in plan.decisions}
    assert forms["c2"] == "qdq" and "keep" in forms.values()
    assert plan.calibration["ranges"] and plan.calibration["method"]
    for lo, hi in plan.calibration["ranges"].values():
        assert lo <= hi
    kinds = ops(onnx.load(out))
    assert kinds["QuantizeLinear"] >= 1 and kinds["DequantizeLinear"] >= 2
    # Replay needs no data, and times nothing.
    again = image.with_name("again.onnx")
    quantize(image, again, plan=image.with_name("q.plan.json"), force=True)
    assert digest(again) == digest(out)


@pytest.mark.parametrize("bits", [8, 4])
def test_samples_never_make_the_smallest_larger(image: Path, samples: Path, bits: int) -> None:
    made = []
    for data in (None, str(samples)):
        out = image.with_name(f"q{len(made)}.onnx")
        quantize(image, out, bits=bits, data=data, prefer="size", force=True)
        made.append(out.stat().st_size)
    assert made[1] <= 1.02 * made[0]


def test_four_bits_with_samples_are_four_bits_in_the_file(tmp_path: Path) -> None:
    """For every CPU, whatever form was the fastest: onnx counts what the file holds, by type."""
    source, samples = tmp_path / "m.onnx", tmp_path / "x.npz"
    weights = {"c1": normal(32, 3, 3, 3), "c2": normal(64, 32, 3, 3, seed=1)}
    nodes = [
        node("Conv", ["x", "c1"], ["a"], pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "c2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    onnx.save(model(nodes, [value("x", ["n", 3, 8, 8])], {"y": ["n", 64, 8, 8]}, weights), source)
    np.savez(samples, x=normal(24, 3, 8, 8, seed=9))
    out = tmp_path / "q.onnx"
    proof = quantize(
        source, out, bits=4, data=str(samples), prefer="speed", target="portable", force=True
    )
    assert failed(proof) == [], proof.verdict
    types = {TensorProto.INT4: 0, TensorProto.UINT4: 0, TensorProto.INT8: 0}
    for tensor in onnx.load(out).graph.initializer:
        if tensor.data_type in types:
            types[tensor.data_type] += int(np.prod(tensor.dims))
    few = types[TensorProto.INT4] + types[TensorProto.UINT4]
    said = proof.coverage["bits"]
    # The first layer may keep 8 bits; zero points are no weights.
    assert few >= said["4"] >= 64 * 32 * 9
    assert said["4"] + said.get("8", 0) == 64 * 32 * 9 + 32 * 27
    bytes_said = sum(change.after for change in proof.changes)
    assert bytes_said < out.stat().st_size < 1.6 * bytes_said


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1e-9, 1e-4, 1e9])
def test_weights_of_any_size_are_near_in_plain_onnxruntime(
    tmp_path: Path, bits: int, size: float
) -> None:
    weights = {
        "w": normal(64, 64) * np.float32(size),
        "zeros": np.zeros((64, 64), np.float32),
        "even": np.full((64, 64), np.float32(size)),
        "back": np.float32(1 / size),
    }
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["x", "even"], ["b"]),
        node("MatMul", ["x", "zeros"], ["c"]),
        node("Sum", ["a", "b", "c"], ["s"]),
        node("Mul", ["s", "back"], ["y"]),
    ]
    source, out = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(model(nodes, [value("x", ["n", 64])], {"y": ["n", 64]}, weights), source)
    proof = quantize(source, out, bits=bits, prefer="size", force=True)
    assert failed(proof) == []
    x = normal(8, 64, seed=3)
    assert close_db(run(source, x=x)[0], run(out, x=x)[0]) > (20 if bits == 8 else 8)


def test_held_out_samples_do_not_calibrate(image: Path, samples: Path) -> None:
    """Samples that only the proof sees may be anything: the plan does not change."""
    plan = make_plan(image, data=str(samples), target="portable")
    assert plan.choice("kernel").startswith("static")
    ranges = plan.calibration["ranges"]
    assert ranges
    doctored = samples.with_name("doctored.npz")
    x = np.load(samples)["x"]
    changed = []
    for index in range(len(x)):
        wild = x.copy()
        wild[index] *= 100
        np.savez(doctored, x=wild)
        again = make_plan(image, data=str(doctored), target="portable").calibration["ranges"]
        changed.append(again != ranges)
        if True in changed and False in changed:
            break
    assert True in changed, "calibration samples do count"
    assert False in changed, "some are held out"


def test_without_data_convolutions_are_folded(image: Path) -> None:
    proof = quantize(image, image.with_name("q.onnx"), prefer="size", force=True)
    assert failed(proof) == []
    assert proof.plan is not None
    forms = {d.tensor: d.form for d in proof.plan.decisions}
    assert forms["c1"] == forms["c2"] == "folded"
    assert "synthetic" in proof.samples


# ---------------------------------------------------------------------------------------------
# graphs that are odd in one way


def test_subgraphs_survive(tmp_path: Path) -> None:
    from onnx import helper

    out = [value("a", ["n", 128])]
    then = helper.make_graph([node("MatMul", ["h", "w"], ["a"])], "t", [], out)
    other = helper.make_graph([node("Gemm", ["h", "v"], ["a"], transB=1)], "e", [], out)
    made = model(
        [
            node("Relu", ["x"], ["h"]),
            node("ReduceSum", ["x"], ["total"], keepdims=0),
            node("Greater", ["total", "zero"], ["flag"]),
            node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
        ],
        {"x": ["n", 128]},
        {"y": ["n", 128]},
        {"w": normal(128, 128), "v": normal(128, 128, seed=1), "zero": np.float32(0)},
    )
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    for bits in (8, 4):
        proof = quantize(path, tmp_path / f"q{bits}.onnx", bits=bits, prefer="size", force=True)
        assert failed(proof) == []
        x = normal(4, 128, seed=2)
        for sign in (1, -1):
            feed = (np.abs(x) * sign + 0.1 * x).astype(np.float32)
            want, got = run(path, x=feed)[0], run(tmp_path / f"q{bits}.onnx", x=feed)[0]
            assert not want.any() or close_db(want, got) > (20 if bits == 8 else 8)


def test_double_and_half_precision_graphs(tmp_path: Path) -> None:
    for dtype, onnx_type in ((np.float16, TensorProto.FLOAT16), (np.float64, TensorProto.DOUBLE)):
        made = model(
            [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]),
             node("MatMul", ["r", "v"], ["y"])],
            {"x": ["n", 128]},
            {"y": ["n", 128]},
            {
                "w": normal(128, 128, gain=0.1).astype(dtype),
                "v": normal(128, 128, seed=1, gain=0.1).astype(dtype),
            },
            dtype=onnx_type,
        )  # fmt: skip
        path = tmp_path / f"{np.dtype(dtype).name}.onnx"
        onnx.save(made, path)
        proof = quantize(path, tmp_path / "q.onnx", prefer="size", force=True)
        assert failed(proof) == [], np.dtype(dtype).name
        assert proof.coverage["share"] > 0.95


def test_massive_channels_are_taken_out_by_the_plan(tmp_path: Path) -> None:
    """Where one scale for the activation would miss the floor, its loudest channels go apart."""
    gain = np.ones(256, np.float32)
    gain[[3, 77]] = 3000
    w = normal(256, 128, gain=0.1) / np.sqrt(gain)[:, None]
    w[[3, 77]] *= 0.01
    made = model(
        [node("Mul", ["x", "gain"], ["h"]), node("MatMul", ["h", "w"], ["y"])],
        {"x": ["n", 256]},
        {"y": ["n", 128]},
        {"gain": gain, "w": w},
    )
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    plan = make_plan(path, prefer="size")
    if plan.calibration.get("outliers"):
        assert {3, 77} <= set(plan.calibration["outliers"]["h"])
    proof = quantize(path, tmp_path / "q.onnx", prefer="size", force=True)
    assert failed(proof) == []


def test_plans_are_values() -> None:
    plan = Plan("0" * 64, {"bits": 8}, (), (Choice("kernel", "folded", "because", {"a": [1.0]}),))
    other = dataclasses.replace(plan, choices=(Choice("kernel", "folded", "other words"),))
    assert plan.digest() == other.digest(), "reasons and timings decide nothing"
    assert plan.digest() != dataclasses.replace(plan, choices=()).digest()
