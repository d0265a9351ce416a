"""Two graphs whose tokens are numbered differently, made comparable on the same numbers.

After vocabulary pruning a token has another number. The pruned graph is given a table of old to new
numbers in front of it, so that both take the same feeds. Where outputs have a score for every
token, those of dropped tokens are left out of the source's to compare the two; to judge both by
old numbers (perplexity), the pruned graph gives dropped tokens no chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgeopt.pruning.vocabulary.prune import VocabularyPlan

__all__ = ["every_score", "keep_scores", "take_old_numbers"]

#: Inputs that are tokens.
_IDS = "input_ids"


def take_old_numbers(model: Path, plan: VocabularyPlan, rows: int) -> Path:
    """A copy beside ``model`` whose ``input_ids`` are the old numbers (0 to ``rows``)."""
    import onnx
    from onnx import helper, numpy_helper

    loaded = onnx.load(model, load_external_data=False)
    graph = loaded.graph
    if all(value.name != _IDS for value in graph.input):
        return model
    table = np.zeros(rows, np.int64)
    known = plan.kept[plan.kept < rows]
    table[:] = 0 if plan.unknown is None else int(np.flatnonzero(plan.kept == plan.unknown)[0])
    table[known] = np.arange(len(plan.kept))[plan.kept < rows]
    new = f"{_IDS}_renumbered"
    _renamed(graph, _IDS, new)
    graph.initializer.append(numpy_helper.from_array(table, f"{_IDS}_table"))
    front = helper.make_node("Gather", [f"{_IDS}_table", _IDS], [new], name=f"{_IDS}_renumber")
    graph.node.insert(0, front)
    return _saved(loaded, model, "old-numbers")


def keep_scores(model: Path, pruned: Path, plan: VocabularyPlan, rows: int) -> Path:
    """A copy beside ``model`` whose outputs over ``rows`` tokens give those that are kept alone.

    Those are the outputs that end in ``rows``, and in ``pruned`` in as many as are kept: a hidden
    layer may be as wide as the vocabulary by chance.
    """
    import onnx
    from onnx import helper, numpy_helper

    loaded = onnx.load(model, load_external_data=False)
    graph = loaded.graph
    kept = plan.kept[plan.kept < rows]
    wide = _over_tokens(model, pruned, rows, len(kept))
    if not wide:
        return model
    graph.initializer.append(numpy_helper.from_array(kept.astype(np.int64), "kept_tokens"))
    for value in (value for value in graph.output if value.name in wide):
        whole = _renamed(graph, value.name, f"{value.name}_every_token")
        graph.node.append(helper.make_node("Gather", [whole, "kept_tokens"], [value.name], axis=-1))
        value.type.tensor_type.shape.dim[-1].dim_value = len(kept)
    return _saved(loaded, model, "kept-scores")


def every_score(model: Path, pruned: Path, plan: VocabularyPlan, rows: int) -> Path:
    """A copy beside ``pruned`` that scores all ``rows`` tokens: dropped ones as low as can be."""
    import onnx
    from onnx import helper, numpy_helper

    loaded = onnx.load(pruned, load_external_data=False)
    graph = loaded.graph
    kept = plan.kept[plan.kept < rows]
    wide = _over_tokens(model, pruned, rows, len(kept))
    if not wide:
        return pruned
    table = np.full(rows, len(kept), np.int64)  # the score that is put behind the others
    table[kept] = np.arange(len(kept))
    graph.initializer.append(numpy_helper.from_array(table, "every_token"))
    for value in (value for value in graph.output if value.name in wide):
        tensor = value.type.tensor_type
        scores = _renamed(graph, value.name, f"{value.name}_kept_tokens")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        lowest, padding = f"{value.name}_lowest", f"{value.name}_padding"
        pads = np.zeros(2 * len(tensor.shape.dim), np.int64)
        pads[-1] = 1
        graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(np.finfo(dtype).min, dtype), lowest),
                numpy_helper.from_array(pads, padding),
            ]
        )
        padded = f"{value.name}_padded"
        graph.node.extend(
            [
                helper.make_node("Pad", [scores, padding, lowest], [padded]),
                helper.make_node("Gather", [padded, "every_token"], [value.name], axis=-1),
            ]
        )
        tensor.shape.dim[-1].dim_value = rows
    return _saved(loaded, pruned, "every-score")


def _over_tokens(model: Path, pruned: Path, rows: int, kept: int) -> frozenset[str]:
    """Names of outputs whose last axis is the vocabulary, in the one model and in the other."""
    return frozenset(_ending_in(model, rows)) & frozenset(_ending_in(pruned, kept))


def _ending_in(model: Path, size: int) -> Iterator[str]:
    import onnx

    for value in onnx.load(model, load_external_data=False).graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[-1].dim_value == size:
            yield value.name


def _renamed(graph: Any, old: str, new: str) -> str:
    """A tensor under another name, wherever a node makes or takes it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    return new


def _saved(loaded: object, model: Path, tag: str) -> Path:
    """Beside the original: what it keeps in a file of its own is found from there."""
    import onnx

    path = model.with_name(f"{model.stem}-{tag}.onnx")
    onnx.save(loaded, path)
    return path
