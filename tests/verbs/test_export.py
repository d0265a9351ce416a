"""``export``: the written file against the source's own, both run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tests.in_process import no_processes
from tests.verbs.small_onnx import conv_net, mlp, tied, weights, write

from edgeopt.core import Change, Proof
from edgeopt.errors import CaptureError, OutputError, SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.verbs.export import export
from edgeopt.verbs.verify import verify


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more processes and latency blocks than a verdict needs."""
    no_processes(monkeypatch)


def failed(proof: Proof) -> list[str]:
    return [check.name for check in proof.verdict.checks if not check.passed]


def run(path: Path, x: NDArray[np.generic]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result


def stored(path: Path) -> dict[str, str]:
    """numpy dtypes of the initializers by name, as the onnx package reads them."""
    return {t.name: str(numpy_helper.to_array(t).dtype) for t in onnx.load(path).graph.initializer}


def opset(path: Path) -> int:
    return max(o.version for o in onnx.load(path).opset_import if not o.domain)


def change(proof: Proof, tensor: str) -> Change:
    return next(c for c in proof.changes if c.decision.tensor == tensor)


def floor(proof: Proof) -> str:
    return next(c.limit for c in proof.verdict.checks if c.name == "fidelity")


X = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)


def test_an_onnx_source(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx", opset=18)
    before = source.read_bytes()
    proof = export(source, prefer="size")
    made = tmp_path / "m-fp32.onnx"
    assert (failed(proof), proof.verb, proof.plan) == ([], "export", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m-fp32.onnx", "m.onnx"]
    assert source.read_bytes() == before
    onnx.checker.check_model(onnx.load(made), full_check=True)
    assert opset(made) == 18  # its own: nothing asked for another
    np.testing.assert_array_equal(run(made, X), run(source, X))
    origin = json.loads({p.key: p.value for p in onnx.load(made).metadata_props}["edgeopt"])
    assert origin["source_sha256"] == open_source(source).sha256()
    assert origin["options"] == {"to": "onnx", "half": False, "opset": None}
    assert {"onnx", "numpy"} <= set(origin["versions"])
    again = tmp_path / "again.onnx"
    export(source, again, prefer="size")
    assert again.read_bytes() == made.read_bytes()
    json.dumps(proof.to_json())


def test_batch_normalisation_goes_into_the_convolution(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "c.onnx")
    proof = export(source, prefer="size")
    assert failed(proof) == []
    made = onnx.load(tmp_path / "c-fp32.onnx")
    assert "BatchNormalization" not in {node.op_type for node in made.graph.node}
    assert proof.fidelity[0].sqnr_db > 100


def test_half(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx")
    proof = export(source, half=True, prefer="size")
    made = tmp_path / "m-fp16.onnx"
    assert failed(proof) == []
    assert floor(proof) == "40 dB or more"
    assert 0.5 < made.stat().st_size / source.stat().st_size < 0.6
    assert stored(made) == {"w0.half": "float16", "w1.half": "float16", "b": "float32"}
    session = onnxruntime.InferenceSession(str(made))
    assert {v.type for v in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}
    # What float16 weights give, computed by numpy, to float32's own rounding.
    w = {k: v.astype(np.float16).astype(np.float32) for k, v in weights_of(source).items()}
    expected = np.maximum(X @ w["w0"], 0) @ w["w1"].T + weights_of(source)["b"]
    np.testing.assert_allclose(run(made, X), expected, rtol=1e-4, atol=1e-5)
    assert proof.coverage["stored"] == "in float16"
    assert proof.coverage["share"] == pytest.approx(1 - 128 / (4 * (64 * 128 + 32 * 128 + 32)))
    halved = change(proof, "w0")
    assert not halved.decision.kept
    assert (halved.before, halved.after) == (64 * 128 * 4, 64 * 128 * 2)
    assert halved.sqnr_db is not None
    assert halved.sqnr_db == pytest.approx(73.5, abs=2)
    assert change(proof, "b").decision.kept
    checked = verify(source, made, prefer="size")
    assert failed(checked) == []
    assert floor(checked) == "40 dB or more"
    assert checked.coverage["share"] == proof.coverage["share"]


def weights_of(path: Path) -> dict[str, NDArray[np.float32]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_half_keeps_what_float16_cannot_hold(tmp_path: Path) -> None:
    arrays = weights(w0=(64, 128), w1=(32, 128))
    arrays["w0"][3, 5] = 7e4  # overflows
    arrays["w1"] *= 1e-6  # among the subnormals
    proof = export(mlp(tmp_path / "a.onnx", arrays={"w0": arrays["w0"]}), half=True, prefer="size")
    assert failed(proof) == []
    assert "7e+04 overflows float16" in change(proof, "w0").decision.reason
    assert stored(tmp_path / "a-fp16.onnx") == {
        "w0": "float32",
        "w1.half": "float16",
        "b": "float32",
    }
    proof = export(mlp(tmp_path / "b.onnx", arrays={"w1": arrays["w1"]}), half=True, prefer="size")
    assert failed(proof) == []
    assert "normal range" in change(proof, "w1").decision.reason
    assert stored(tmp_path / "b-fp16.onnx")["w1"] == "float32"
    both = mlp(tmp_path / "c.onnx", arrays=arrays)
    with pytest.raises(SourceError, match=r"nothing to store in float16 .*leave out --half"):
        export(both, half=True)
    assert not (tmp_path / "c-fp16.onnx").exists()


def test_half_tables_stay_half_until_gathered(tmp_path: Path) -> None:
    source = tied(tmp_path / "t.onnx")
    proof = export(source, half=True, prefer="size")
    made = tmp_path / "t-fp16.onnx"
    assert failed(proof) == []
    assert set(stored(made).values()) == {"float16", "int64"}
    assert "gathered rows are cast" in change(proof, "s").decision.reason
    assert "when the session loads" in change(proof, "t").decision.reason  # tied: a product too
    tokens = np.arange(12).reshape(4, 3)
    np.testing.assert_allclose(run(made, tokens), run(source, tokens), atol=0.01)


def test_half_of_a_model_that_is_half_already(tmp_path: Path) -> None:
    arrays = {k: v.astype(np.float16) for k, v in weights(w0=(64, 128), w1=(32, 128)).items()}
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w0"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    source = write(tmp_path / "m.onnx", nodes, {"w0": arrays["w0"]}, (TensorProto.FLOAT, ["n", 64]))
    with pytest.raises(SourceError, match="w0: is float16 already"):
        export(source, half=True)


@pytest.mark.parametrize(("have", "asked"), [(21, 17), (17, 22), (21, 21)])
def test_opset(tmp_path: Path, have: int, asked: int) -> None:
    source = mlp(tmp_path / "m.onnx", opset=have)
    proof = export(source, tmp_path / "out.onnx", opset=asked, prefer="size")
    assert failed(proof) == []
    assert opset(tmp_path / "out.onnx") == asked
    np.testing.assert_allclose(run(tmp_path / "out.onnx", X), run(source, X), rtol=1e-5)


def test_opsets_that_cannot_be(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx", act="Gelu")  # no such operator before opset 20
    with pytest.raises(CaptureError, match=r"not to be had at opset 17 .*to get opset 21"):
        export(source, opset=17)
    with pytest.raises(UsageError, match="--opset 99"):
        export(source, opset=99)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_state_dict_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    code = """
        from torch import nn
        def make():
            return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    """
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "exported_net.py").write_text("\n".join(ln[8:] for ln in code.splitlines()))
    monkeypatch.syspath_prepend(folder)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    source = tmp_path / "net.pt"
    torch.save(net.state_dict(), source)
    with pytest.raises(UsageError, match=r"--model package\.module:callable"):
        export(source)
    # torch's newer exporter begins at 18.
    proof = export(source, half=True, opset=17, model="exported_net:make", prefer="size")
    assert failed(proof) == []
    made = tmp_path / "net-fp16.onnx"
    assert opset(made) == 17
    session = onnxruntime.InferenceSession(str(made))
    got = session.run(None, {session.get_inputs()[0].name: X})[0]
    np.testing.assert_allclose(got, net(torch.from_numpy(X)).detach().numpy(), atol=0.01)


def test_sources_and_outputs_that_are_refused(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx")
    before = source.read_bytes()
    with pytest.raises(OutputError):
        export(source, source)
    assert source.read_bytes() == before
    with pytest.raises(UsageError, match="--to safetensors: use onnx, gguf"):
        export(source, to="safetensors")
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, tmp_path / "q.onnx")
    with pytest.raises(SourceError, match="already quantized"):
        export(tmp_path / "q.onnx")
    assert not (tmp_path / "q-fp32.onnx").exists()


def test_what_fails_is_kept_only_by_force(tmp_path: Path) -> None:
    source = mlp(tmp_path / "m.onnx")
    out = tmp_path / "out.onnx"
    proof = export(source, out, half=True, min_sqnr=200.0, prefer="size")
    assert failed(proof) == ["fidelity"]
    assert not out.exists()
    export(source, out, half=True, min_sqnr=200.0, prefer="size", force=True)
    assert out.exists()
