"""Graphs whose tokens were renumbered, run by ONNX Runtime on the numbers of before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="the plan is of a room that needs torch")

from edgeopt.pruning.vocabulary.prune import VocabularyPlan
from edgeopt.targets.program.same_tokens import every_score, keep_scores, take_old_numbers

ROWS, WIDTH = 10, 4

#: Token 7 is the unknown one; token 12 has no row, as in some tokenizers.
PLAN = VocabularyPlan(np.array([0, 2, 7, 9, 12]), {}, unknown=7)
KEPT = [0, 2, 7, 9]


def tables() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    embedding, head = rng.standard_normal((2, ROWS, WIDTH)).astype(np.float32)
    return embedding, head.T.copy()


def graph(
    path: Path, embedding: np.ndarray, head: np.ndarray | None, ids: str = "input_ids"
) -> Path:
    """Embeddings of tokens, and with ``head`` a score for every token."""
    dims = ["batch", "sequence"]
    tensors = [numpy_helper.from_array(embedding, "table")]
    nodes = [helper.make_node("Gather", ["table", ids], ["hidden"])]
    outputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [*dims, WIDTH])]
    if head is not None:
        tensors.append(numpy_helper.from_array(head, "head"))
        nodes.append(helper.make_node("MatMul", ["hidden", "head"], ["logits"]))
        # an output that another node takes too
        nodes.append(helper.make_node("ReduceMax", ["logits"], ["best"], keepdims=0))
        outputs += [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*dims, head.shape[1]]),
            helper.make_tensor_value_info("best", TensorProto.FLOAT, []),
        ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(ids, TensorProto.INT64, dims)],
        outputs,
        tensors,
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def run(path: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: ids}), strict=True))


def test_scores_of_both_are_of_the_same_tokens(tmp_path: Path) -> None:
    embedding, head = tables()
    source = graph(tmp_path / "source.onnx", embedding, head)
    pruned = graph(tmp_path / "pruned.onnx", embedding[KEPT], head[:, KEPT])
    ids = np.array([[0, 9, 2], [7, 7, 0]])
    old = take_old_numbers(pruned, PLAN, ROWS)
    ours = run(old, ids)
    theirs = run(keep_scores(source, old, PLAN, ROWS), ids)
    assert ours["logits"].shape == (2, 3, len(KEPT))
    for name in ("hidden", "logits"):
        assert np.array_equal(ours[name], theirs[name])
    assert np.allclose(theirs["logits"], (embedding[ids] @ head)[..., KEPT], atol=1e-6)
    # every node of the source sees every score, as before
    assert theirs["best"] == run(source, ids)["best"]


def test_judged_by_old_numbers_dropped_tokens_have_no_chance(tmp_path: Path) -> None:
    embedding, head = tables()
    source = graph(tmp_path / "source.onnx", embedding, head)
    pruned = graph(tmp_path / "pruned.onnx", embedding[KEPT], head[:, KEPT])
    old = take_old_numbers(pruned, PLAN, ROWS)
    ids = np.array([[0, 9, 2]])
    found = run(every_score(source, old, PLAN, ROWS), ids)["logits"]
    assert found.shape == (1, 3, ROWS)
    assert np.allclose(found[..., KEPT], (embedding[ids] @ head)[..., KEPT], atol=1e-6)
    dropped = np.delete(found, KEPT, axis=-1)
    assert (dropped == np.finfo(np.float32).min).all()


def test_a_dropped_token_is_the_unknown_one(tmp_path: Path) -> None:
    embedding, _ = tables()
    pruned = graph(tmp_path / "pruned.onnx", embedding[KEPT], None)
    old = take_old_numbers(pruned, PLAN, ROWS)
    assert np.array_equal(run(old, np.array([[1, 0]]))["hidden"], embedding[[[7, 0]]])


def test_without_scores_the_source_stays_as_it_is(tmp_path: Path) -> None:
    embedding, _ = tables()
    source = graph(tmp_path / "source.onnx", embedding, None)
    pruned = graph(tmp_path / "pruned.onnx", embedding[KEPT], None)
    assert keep_scores(source, pruned, PLAN, ROWS) == source
    assert every_score(source, pruned, PLAN, ROWS) == pruned


def test_a_hidden_layer_as_wide_as_the_vocabulary_is_none(tmp_path: Path) -> None:
    """Four rows of four numbers: only what became narrower was over tokens."""
    embedding, _ = tables()
    plan = VocabularyPlan(np.array([0, 2]), {}, unknown=None)
    source = graph(tmp_path / "source.onnx", embedding[:WIDTH], None)
    pruned = graph(tmp_path / "pruned.onnx", embedding[[0, 2]], None)
    assert keep_scores(source, pruned, plan, WIDTH) == source


def test_a_graph_that_takes_no_tokens_is_left_alone(tmp_path: Path) -> None:
    embedding, _ = tables()
    made = graph(tmp_path / "other.onnx", embedding, None, ids="codes")
    assert take_old_numbers(made, PLAN, ROWS) == made
