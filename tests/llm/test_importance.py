"""An importance matrix on its way into a file: checked before a weight is read, used expert by
expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.llm.mix_models import decoder, model_of, numbers, write_f32

from edgeopt.core import Plan
from edgeopt.errors import SourceError
from edgeopt.files.gguf import describe
from edgeopt.files.imatrix import Imatrix, ImatrixEntry
from edgeopt.files.open import open_source
from edgeopt.llm.plan import GgufAsked, layout_of, make_gguf_plan
from edgeopt.llm.read import read_model
from edgeopt.llm.stream import write_model
from edgeopt.numerics.ggml import encode

gguf = pytest.importorskip("gguf")
pytest.importorskip("numba", reason="encoders are compiled")

EXPERTS = "blk.0.ffn_down_exps.weight"
DENSE = "blk.0.attn_q.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A GGUF file with a tensor of four experts."""
    shapes = {**decoder(1), EXPERTS: (4, 3, 256)}
    write_f32(model_of("llama", shapes, **numbers(1)), tmp_path / "f32.gguf")
    return tmp_path / "f32.gguf"


def matrix(*, columns: int = 256) -> Imatrix:
    rng = np.random.default_rng(2)

    def entry(matrices: int) -> ImatrixEntry:
        sums = rng.uniform(0, 9, matrices * columns) ** 3
        return ImatrixEntry(sums.astype(np.float32), np.full(matrices, 8))

    return Imatrix({EXPERTS: entry(4), DENSE: entry(1)})


def plan_of(source: Path, importance: Imatrix | None, kind: str = "Q4_K") -> Plan:
    opened = open_source(source)
    return make_gguf_plan(opened, read_model(opened), GgufAsked(kind, (), importance))


def test_every_expert_is_encoded_by_its_own_importances(source: Path, tmp_path: Path) -> None:
    importance, out = matrix(), tmp_path / "out.gguf"
    opened = open_source(source)
    model = read_model(opened)
    plan = plan_of(source, importance)
    out.touch()
    layout = layout_of(model, plan, importance)
    write_model(opened, model, plan, layout, out, importance=importance, threads=1)
    kinds = {decision.tensor: decision.scheme.type for decision in plan.decisions}
    written = {weight.name: weight.array() for weight in describe(out).weights}
    weights = {weight.name: weight.array() for weight in model.tensors}
    values = importance.fitted(model.tensors).values
    for expert in range(4):
        own = values[EXPERTS][expert]
        wanted = encode(kinds[EXPERTS], weights[EXPERTS][expert], own)
        np.testing.assert_array_equal(written[EXPERTS][expert], wanted)
        assert (wanted != encode(kinds[EXPERTS], weights[EXPERTS][expert])).any()
    wanted = encode(kinds[DENSE], weights[DENSE], values[DENSE])
    np.testing.assert_array_equal(written[DENSE], wanted)


def test_a_plan_says_how_much_of_the_model_it_covers(source: Path) -> None:
    plan = plan_of(source, matrix())
    assert plan.calibration["tensors"] == 2
    # token table, output, and six matrices of the block
    assert plan.calibration["without"] == 8


def test_a_matrix_of_another_model_is_refused_with_the_plan(source: Path) -> None:
    with pytest.raises(SourceError, match="was it made for another model"):
        plan_of(source, matrix(columns=128))
    with pytest.raises(SourceError, match="none of its 1 tensors"):
        plan_of(source, Imatrix({"blk.9.attn_q.weight": matrix().entries[DENSE]}))


def test_what_is_never_quantized_keeps_the_type_it_has_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_uint32("gpt2.block_count", 1)
    writer.add_tensor("token_embd.weight", np.ones((8, 32), np.float32))
    writer.add_tensor("position_embd.weight", np.ones((4, 32), np.float16))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    kinds = {d.tensor: d.scheme.type for d in plan_of(path, None, "Q8_0").decisions}
    assert kinds == {
        "token_embd.weight": "Q8_0",
        "position_embd.weight": "F16",
        "blk.0.attn_norm.weight": "F32",
    }
