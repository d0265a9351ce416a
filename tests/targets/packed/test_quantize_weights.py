"""Bare tensors to packed safetensors and back: sizes, values, memory, determinism, bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from edgeopt.core import Affine, Plan, Source, Storage, Weight
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.files.weights import load_weights
from edgeopt.numerics.affine import sqnr_db
from edgeopt.targets.base import Request, deliver
from edgeopt.targets.packed.make import (
    carry_out,
    predicted_bytes,
)
from edgeopt.targets.packed.plan import plan_weights
from edgeopt.targets.packed.prove import prove_weights
from edgeopt.verbs.quantize import quantize


def model(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.05).astype(np.float32)

    return {
        "embeddings.weight": normal(100, 48),
        "layer.weight": normal(48, 130),
        "layer.bias": normal(48),
        "conv.weight": normal(16, 3, 5, 5),
        "half.weight": normal(32, 64).astype(np.float16),
        "double.weight": normal(32, 65).astype(np.float64),
        "experts.weight": normal(4, 8, 64),
        "zeros.weight": np.zeros((40, 40), np.float32),
        "constant.weight": np.full((40, 40), 0.7, np.float32),
        "small.weight": normal(4, 4),
        "norm.weight": np.ones(64, np.float32),
        "running_mean": np.zeros((64, 64), np.float32),
        "position_ids": np.arange(2048).reshape(2, 1024),
        "empty.weight": np.zeros((0, 64), np.float32),
        "scalar": np.array(3.5, np.float32),
    }


def saved(folder: Path, tensors: Mapping[str, np.ndarray], name: str = "in.safetensors") -> Source:
    path = folder / name
    save_file(dict(tensors), path)
    return open_source(path)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale", ["bfloat16", "float16", "float32"])
def test_there_and_back(tmp_path, bits, symmetric, scale):
    tensors = model()
    source = saved(tmp_path, tensors)
    options = {"symmetric": symmetric, "scale": scale}
    plan = plan_weights(source, bits=bits, block_size=32, options=options)
    out = tmp_path / "out.safetensors"
    predicted = predicted_bytes(source, plan)
    changes = carry_out(source, plan, out)
    assert out.stat().st_size == predicted
    assert {c.decision.tensor for c in changes} == set(tensors)

    weights = load_weights(out)
    assert set(weights) == set(tensors)
    for change in changes:
        name, want = change.decision.tensor, tensors[change.decision.tensor]
        got = weights[name]
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        assert not got.flags.writeable
        if change.decision.scheme is None:
            assert change.decision.reason
            assert change.sqnr_db is None
            np.testing.assert_array_equal(got, want)
        else:
            assert change.after < change.before
            assert sqnr_db(want, got) > (15 if bits == 4 else 40)
            assert change.sqnr_db == pytest.approx(sqnr_db(want, got), abs=0.3)
    quantized = {c.decision.tensor for c in changes if c.decision.scheme}
    assert quantized == {
        "embeddings.weight", "layer.weight", "conv.weight", "half.weight", "double.weight",
        "experts.weight", "zeros.weight", "constant.weight",
    }  # fmt: skip
    assert not weights["zeros.weight"].any()


def test_parts_are_where_the_format_page_says(tmp_path):
    """Read with the reference reader, by hand, from docs/formats.md alone."""
    source = saved(tmp_path, model())
    plan = plan_weights(source, bits=4, block_size=32, options={"scale": "float16"})
    out = tmp_path / "out.safetensors"
    carry_out(source, plan, out)
    with safe_open(out, "np") as file:
        metadata = file.metadata()
        document = json.loads(metadata["edgeopt"])
        codes = file.get_tensor("layer.weight.codes")
        scale = file.get_tensor("layer.weight.scale")
        zero = file.get_tensor("layer.weight.zero")
    assert metadata["edgeopt_packed"] == "1"
    assert metadata["format"] == "pt"
    assert document["source_sha256"] == hashlib.sha256(source.path.read_bytes()).hexdigest()
    assert document["plan"] == plan.digest()
    entry = document["tensors"]["layer.weight"]
    assert (entry["dtype"], entry["shape"]) == ("float32", [48, 130])
    scheme = document["schemes"][entry["scheme"]]
    assert scheme == {"bits": 4, "block": 32, "symmetric": False, "scale": "float16"}
    assert (codes.shape, scale.shape, zero.shape) == ((48, 65), (48, 5), (48, 3))
    got = load_weights(out)["layer.weight"]
    for row, column in [(0, 0), (7, 1), (47, 129), (13, 100)]:
        q = (codes[row, column // 2] >> (4 * (column % 2))) & 15
        block = column // 32
        z = (zero[row, block // 2] >> (4 * (block % 2))) & 15
        value = (float(q) - float(z)) * float(scale[row, block])
        assert got[row, column] == pytest.approx(value, rel=1e-6)


def test_kept_tensors_open_with_any_reader_and_names_may_collide(tmp_path):
    rng = np.random.default_rng(0)
    big = rng.standard_normal((4, 64, 64)).astype(np.float32)
    tensors = {
        "a": big[0], "a_": big[1], "a.codes": big[2], "a.scale": np.ones(3, np.float32),
        "a.codes.codes": np.ones(2, np.float32), "a_.zero": big[3],
    }  # fmt: skip
    source = saved(tmp_path, tensors)
    plan = plan_weights(source, bits=8, options={"symmetric": False})
    out = tmp_path / "out.safetensors"
    carry_out(source, plan, out)
    assert out.stat().st_size == predicted_bytes(source, plan)
    with safe_open(out, "np") as file:
        np.testing.assert_array_equal(file.get_tensor("a.scale"), tensors["a.scale"])
    weights = load_weights(out)
    assert set(weights) == set(tensors)
    for name, want in tensors.items():
        assert sqnr_db(want, weights[name]) > 35


def memory_weight(name: str, array: np.ndarray, storage: Storage | None = None) -> Weight:
    return Weight(
        name, array.shape, array.dtype.name, array.nbytes, lambda lo, hi: array[lo:hi], "weight",
        storage,
    )  # fmt: skip


def memory_source(*weights: Weight) -> Source:
    return Source(Path("memory.pt"), "torch-state-dict", (), 0, weights)


def test_tied_tensors_are_stored_once(tmp_path):
    w = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    here = Storage("0", 0, w.nbytes)
    source = memory_source(
        memory_weight("head.weight", w, here),
        memory_weight("embeddings.weight", w, here),
        memory_weight("turned.weight", np.ascontiguousarray(w.T), here),
        memory_weight("norm.weight", w[0], here),
        memory_weight("other.norm.weight", w[0], here),
    )
    plan = plan_weights(source, bits=8, sha256="0" * 64)
    forms = {d.tensor: (d.form, d.nbytes) for d in plan.decisions}
    assert forms["embeddings.weight"] == ("tied", 0)
    assert forms["turned.weight"][0] == "packed"
    assert forms["other.norm.weight"] == ("tied", 0)
    out = tmp_path / "out.safetensors"
    carry_out(source, plan, out)
    assert out.stat().st_size == predicted_bytes(source, plan)
    weights = load_weights(out)
    np.testing.assert_array_equal(weights["embeddings.weight"], weights["head.weight"])
    assert sqnr_db(w.T, weights["turned.weight"]) > 40
    np.testing.assert_array_equal(weights["other.norm.weight"], w[0])
    assert min(prove_weights(source, out).values()) > 40


def test_a_torch_state_dict_with_tied_weights(tmp_path):
    torch = pytest.importorskip("torch")
    embeddings = torch.nn.Embedding(64, 64)
    head = torch.nn.Linear(64, 64)
    head.weight = embeddings.weight
    path = tmp_path / "m.pt"
    state = torch.nn.ModuleDict({"emb": embeddings, "head": head}).state_dict()
    state["turned"] = embeddings.weight.detach().t()
    torch.save(state, path)
    source = open_source(path)
    plan = plan_weights(source, bits=8)
    assert {d.tensor: d.form for d in plan.decisions} == {
        "emb.weight": "packed", "head.weight": "tied", "head.bias": "keep", "turned": "packed",
    }  # fmt: skip
    out = tmp_path / "out.safetensors"
    carry_out(source, plan, out)
    assert out.stat().st_size == predicted_bytes(source, plan)
    weights = load_weights(out)
    assert sqnr_db(state["turned"].numpy(), weights["turned"]) > 40
    assert sqnr_db(state["head.weight"].numpy(), weights["head.weight"]) > 40


def test_proof_reads_the_written_bytes(tmp_path):
    source = saved(tmp_path, model())
    plan = plan_weights(source, bits=4)
    out = tmp_path / "out.safetensors"
    changes = carry_out(source, plan, out)
    proven = prove_weights(source, out)
    for change in changes:
        want = change.sqnr_db if change.decision.scheme else math.inf
        assert proven[change.decision.tensor] == pytest.approx(want, abs=0.3)
    # A file that lost its scales' value, and one of another model, are found out.
    raw = bytearray(out.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + length])["layer.weight.scale"]["data_offsets"]
    raw[8 + length + begin : 8 + length + end] = bytes(end - begin)
    out.write_bytes(raw)
    damaged = prove_weights(source, out)
    assert damaged["layer.weight"] == pytest.approx(0, abs=0.1)
    other = saved(tmp_path, {"embeddings.weight": np.ones((3, 3), np.float32)}, "o.safetensors")
    assert prove_weights(source, other.path)["embeddings.weight"] == -math.inf
    assert prove_weights(source, other.path)["layer.weight"] == -math.inf


def test_plan_survives_json_and_reads_no_data(tmp_path):
    def explode(lo: int, hi: int) -> np.ndarray:
        raise AssertionError("read")

    weight = Weight("w", (1 << 20, 4096), "float32", 1 << 34, explode)
    source = memory_source(weight)
    plan = plan_weights(source, bits=4, sha256="0" * 64)
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again.digest() == plan.digest()
    assert predicted_bytes(source, plan) == predicted_bytes(source, again)
    assert predicted_bytes(source, plan) / (1 << 34) == pytest.approx(4.3125 / 32, rel=1e-3)
    small = memory_source(dataclasses.replace(weight, shape=(64, 4096)))
    assert Affine(4, 64, False, scale="bfloat16") == plan.decisions[0].scheme
    assert small.weights[0].size < weight.size


def test_memory_stays_small_beside_the_tensor(tmp_path):
    """A tensor of 200 MB that exists nowhere goes through in a fraction of that."""

    def rows(lo: int, hi: int) -> np.ndarray:
        i = np.arange(lo * 4096, hi * 4096, dtype=np.uint32)
        return ((i * np.uint32(2654435761)) >> 8).astype(np.float32).reshape(-1, 4096) - 2.0**23

    source = memory_source(Weight("w", (12800, 4096), "float32", 12800 * 4096 * 4, rows))
    plan = plan_weights(source, bits=8, sha256="0" * 64)
    out = tmp_path / "out.safetensors"
    tracemalloc.start()
    try:
        carry_out(source, plan, out, threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6
    assert out.stat().st_size == predicted_bytes(source, plan)


def test_same_bytes_whatever_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeopt.files.spans._CHUNK", 2048)
    source = saved(tmp_path, model())
    for bits in (4, 8):
        plan = plan_weights(source, bits=bits)
        digests = set()
        for threads in (1, 2, 5):
            out = tmp_path / f"{threads}.safetensors"
            carry_out(source, plan, out, threads=threads)
            digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
        assert len(digests) == 1


SCRIPT = """
import sys
from pathlib import Path
from edgeopt.files.open import open_source
from edgeopt.targets.packed.make import carry_out
from edgeopt.targets.packed.plan import plan_weights
source = open_source(sys.argv[1])
carry_out(source, plan_weights(source, bits=4), Path(sys.argv[2]))
"""


def test_same_bytes_whatever_the_hash_seed(tmp_path):
    source = saved(tmp_path, model())
    written = []
    for seed in ("0", "77"):
        out = tmp_path / f"{seed}.safetensors"
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(source.path), str(out)], check=True, env=environment
        )
        written.append(out.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["layer.weight", "layer.bias", "double.weight", "half.weight"])
def test_bad_weights_are_named(tmp_path, bad, name):
    tensors = model()
    tensors[name].reshape(-1)[-1] = bad
    source = saved(tmp_path, tensors)
    with pytest.raises(SourceError, match=f"tensor '{name}': weights hold NaN or Inf"):
        carry_out(source, plan_weights(source, bits=8), tmp_path / "out.safetensors")


def test_infinite_buffers_are_allowed(tmp_path):
    tensors = model()
    tensors["attn_mask"] = np.full((64, 64), -np.inf, np.float32)
    source = saved(tmp_path, tensors)
    out = tmp_path / "out.safetensors"
    carry_out(source, plan_weights(source, bits=8), out)
    np.testing.assert_array_equal(load_weights(out)["attn_mask"], tensors["attn_mask"])


def test_what_cannot_be_quantized_is_refused(tmp_path):
    ints = saved(tmp_path, {"ids": np.arange(4096).reshape(64, 64)}, "ints.safetensors")
    with pytest.raises(SourceError, match="only int64, and no float weights"):
        plan_weights(ints, bits=8)
    small = saved(tmp_path, {"b": np.ones(5000, np.float32)}, "small.safetensors")
    with pytest.raises(SourceError, match="no tensor can be quantized"):
        plan_weights(small, bits=8)
    source = saved(tmp_path, model())
    out = tmp_path / "out.safetensors"
    carry_out(source, plan_weights(source, bits=8), out)
    with pytest.raises(SourceError, match="already quantized"):
        plan_weights(open_source(out), bits=8)


def test_options_are_checked(tmp_path):
    source = saved(tmp_path, model())
    for bits, block, options, problem in [
        (3, None, {}, "3 bits"),
        (4, 100, {}, "block size 100 is not a power of two from 16 to 256"),
        (4, 512, {}, "block size 512"),
        (4, 32, {"method": "magic"}, "method 'magic'"),
        (4, 32, {"scale": "int8"}, "scale dtype 'int8'"),
    ]:
        with pytest.raises(UsageError, match=problem):
            plan_weights(source, bits=bits, block_size=block, options=options)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"method": "magic"}, "method 'magic' is unknown"),
        ({"scheme": Affine(5, 32)}, "unknown scheme"),
        ({"scheme": Affine(4, 32, axis=0)}, "unknown scheme"),
        ({"tensor": "layer.bias"}, "cannot be packed"),
        ({"tensor": "position_ids"}, "cannot be packed"),
    ],
)
def test_a_doctored_plan_is_refused(tmp_path, fields, problem):
    source = saved(tmp_path, model())
    plan = plan_weights(source, bits=8)
    layer = next(d for d in plan.decisions if d.tensor == "layer.weight")
    doctored = dataclasses.replace(layer, **fields)
    others = [d for d in plan.decisions if d.tensor != doctored.tensor]
    plan = dataclasses.replace(plan, decisions=(*others, doctored))
    with pytest.raises(UsageError, match=problem):
        predicted_bytes(source, plan)


def test_a_plan_for_another_file_is_refused(tmp_path):
    plan = plan_weights(saved(tmp_path, model()), bits=8)
    tensors = model()
    del tensors["layer.bias"]
    fewer = saved(tmp_path, tensors, "fewer.safetensors")
    with pytest.raises(UsageError, match=r"'layer\.bias' is only in the plan"):
        carry_out(fewer, plan, tmp_path / "out.safetensors")
    tying = dataclasses.replace(
        plan,
        decisions=tuple(
            dataclasses.replace(d, form="tied") if d.tensor == "scalar" else d
            for d in plan.decisions
        ),
    )
    with pytest.raises(UsageError, match="ties 'scalar'"):
        predicted_bytes(saved(tmp_path, model()), tying)


def delivered(source, out=None, **asked):
    return deliver(source, Request(verb="quantize", to="safetensors", out=out, **asked))


@pytest.mark.parametrize("bits", [8, 4])
def test_the_verb_writes_proves_and_replays(tmp_path, bits):
    source = saved(tmp_path, model())
    proof = delivered(source, bits=bits)
    out = tmp_path / f"in-int{bits}.safetensors"
    assert proof.proven
    assert proof.verb == "quantize"
    assert proof.artifact["path"] == str(out)
    assert proof.artifact["nbytes"] == out.stat().st_size
    assert str(out) in proof.usage
    assert any("give --model" in line for line in proof.verdict.unproven)
    assert proof.plan is not None
    again = delivered(source, tmp_path / "again.safetensors", plan=proof.plan)
    assert again.artifact["sha256"] == proof.artifact["sha256"]
    other = dataclasses.replace(proof.plan, source_sha256="0" * 64)
    with pytest.raises(UsageError, match="made for another source"):
        delivered(source, tmp_path / "no.safetensors", plan=other)
    assert not (tmp_path / "no.safetensors").exists()


def test_the_verb_keeps_nothing_that_fails(tmp_path):
    source = saved(tmp_path, model())
    out = tmp_path / "out.safetensors"
    proof = delivered(source, out, bits=4, min_sqnr=60)
    assert not proof.proven
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors"]
    assert delivered(source, out, bits=4, min_sqnr=60, force=True).proven is False
    assert out.exists()


def test_predicting_loads_nothing_heavy():
    code = (
        "import sys, edgeopt.targets.packed.make, edgeopt.files.weights;"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("bits", [8, 4])
def test_bits_are_read_from_the_written_header(tmp_path, bits):
    """Sizes of the parts in the file, as safetensors opens them, are the oracle."""
    rng = np.random.default_rng(0)
    tensors = {
        "w": rng.standard_normal((64, 128)).astype(np.float32),
        "tiny": rng.standard_normal((64, 64)).astype(np.float32) * np.float32(1e-30),
        "b": np.ones(64, np.float32),
    }
    source, out = tmp_path / "m.safetensors", tmp_path / "q.safetensors"
    save_file(tensors, source)
    proof = quantize(source, out, bits=bits)
    assert proof.proven
    stored = load_file(out)
    codes = sum(stored[f"{n}.codes"].nbytes * 8 // bits for n in ("w", "tiny"))
    assert proof.coverage["bits"] == {str(bits): codes, "float": 64}
