"""``verify`` on pairs that somebody else made, and on pairs that do not belong together."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tests.cpu_arithmetic import AVX2, VNNI, at_hand

from edgeopt.errors import SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.measure import pair
from edgeopt.targets.onnx import prove as proving
from edgeopt.targets.packed.make import carry_out
from edgeopt.targets.packed.plan import plan_weights
from edgeopt.verbs.verify import verify


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more latency blocks and processes than a verdict needs."""
    monkeypatch.setattr(proving, "_SECONDS", 0.1)
    monkeypatch.setattr(pair, "_alone", lambda place, job, progress: ([], []))


def write(
    path: Path,
    seed: int = 0,
    noise: float = 0.0,
    metadata: dict[str, str] | None = None,
    batch: int | str = "batch",
) -> Path:
    rng, spoil = np.random.default_rng(seed), np.random.default_rng(1)
    arrays = {}
    for name, shape in (("w0", (64, 256)), ("w1", (256, 32))):
        clean = rng.standard_normal(shape) / np.sqrt(shape[0])
        clean += noise * clean.std() * spoil.standard_normal(shape)
        arrays[name] = clean.astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["a"]),
            helper.make_node("Relu", ["a"], ["h"]),
            helper.make_node("MatMul", ["h", "w1"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 32])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source.onnx")


def failed(proof: object) -> list[str]:
    return [check.name for check in proof.verdict.checks if not check.passed]  # type: ignore[attr-defined]


def test_an_artifact_that_onnxruntime_quantized(source: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    logging.disable(logging.WARNING)
    made = tmp_path / "int8.onnx"
    quantize_dynamic(source, made, per_channel=True)
    before = made.read_bytes()
    proof = verify(source, made, prefer="size")
    logging.disable(logging.NOTSET)
    assert failed(proof) == []
    assert proof.verb == "verify"
    assert proof.coverage["share"] > 0.95
    # Its int8 weights saturate on CPUs without VNNI: 21 dB there.
    assert proof.fidelity[0].sqnr_db > (25 if at_hand() is VNNI else 20)
    said = [note for note in proof.notes if "2 int8 weights use all 8 bits" in note]
    assert len(said) == 1
    assert ("this CPU has no VNNI" in said[0]) == (at_hand() is AVX2)
    assert "synthetic" in proof.samples
    floors = [check.limit for check in proof.verdict.checks if check.name == "fidelity"]
    assert floors == ["20 dB or more"]
    assert made.read_bytes() == before
    json.dumps(proof.to_json())


def test_a_float_artifact_is_held_to_more(source: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "made.onnx", noise=0.1)  # about 17 dB
    assert "fidelity" in failed(verify(source, made, prefer="size"))
    assert failed(verify(source, made, prefer="size", min_sqnr=10.0)) == []


def test_an_artifact_of_another_model(source: Path, tmp_path: Path) -> None:
    claim = json.dumps({"source_sha256": "f" * 64, "options": {"prefer": "size", "bits": "x"}})
    stranger = write(tmp_path / "stranger.onnx", seed=5, metadata={"edgeopt": claim})
    proof = verify(source, stranger)
    assert failed(proof) == ["fidelity"]
    assert any("made from another file" in note for note in proof.notes)
    assert any("not asked" in check.limit for check in proof.verdict.checks)


def test_metadata_that_is_no_document_is_ignored(source: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "made.onnx", metadata={"edgeopt": "{"})
    assert failed(verify(source, made, prefer="size")) == []


def test_samples_are_taken_from_data(source: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "made.onnx", noise=0.001)
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(3).standard_normal((12, 64)).astype(np.float32))
    proof = verify(source, made, data=str(data), prefer="size")
    assert "held out" in proof.samples
    assert proof.fidelity[0].samples == 3


def test_an_artifact_of_fixed_size_gets_samples_of_that_size(source: Path, tmp_path: Path) -> None:
    made = write(tmp_path / "made.onnx", noise=0.001, batch=3)
    assert failed(verify(source, made, prefer="size")) == []
    data = tmp_path / "data.npz"
    np.savez(data, x=np.random.default_rng(3).standard_normal((24, 64)).astype(np.float32))
    proof = verify(source, made, data=str(data), prefer="size")
    assert failed(proof) == []
    assert proof.fidelity[0].samples == 2  # 24 rows are 8 batches of 3, a quarter held out


def test_packed_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": rng.standard_normal((64, 128)).astype(np.float32),
        "a.bias": rng.standard_normal(64).astype(np.float32),
    }
    source = tmp_path / "weights.safetensors"
    save_file(tensors, source)
    opened = open_source(source)
    for bits, floor in ((8, 35.0), (4, 15.0)):
        made = tmp_path / f"int{bits}.safetensors"
        carry_out(opened, plan_weights(opened, bits=bits), made)
        proof = verify(source, made)
        assert failed(proof) == []
        assert proof.tensors[0].tensor == "a.weight"
        assert proof.tensors[0].sqnr_db > floor
        assert proof.coverage["share"] == pytest.approx(1 - 64 / (64 * 128 + 64))
        assert "give --model" in proof.verdict.unproven[0]
        assert proof.notes == ()
        scope: dict[str, object] = {}
        exec(proof.usage, scope)
        assert np.shape(scope["array"]) in ((64,), (64, 128))
        assert failed(verify(source, made, min_sqnr=90.0)) == ["fidelity"]
    other = tmp_path / "other.safetensors"
    save_file({name: array[::-1].copy() for name, array in tensors.items()}, other)
    proof = verify(other, made)
    assert failed(proof) == ["fidelity"]
    assert any("made from another file" in note for note in proof.notes)
    with pytest.raises(SourceError, match="no packed weights"):
        verify(made, other)
    with pytest.raises(UsageError, match="give the code with --model"):
        verify(source, write(tmp_path / "m.onnx"))


def test_pairs_that_are_none(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the source itself"):
        verify(source, source)
    with pytest.raises(SourceError):
        verify(source, tmp_path / "missing.onnx")
    with pytest.raises(SourceError):
        verify(tmp_path / "missing.onnx", source)
