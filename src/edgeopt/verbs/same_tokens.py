"""Two graphs whose tokens are numbered differently, made comparable on the same numbers.

After vocabulary pruning a token has another number. The pruned graph is given a table of old to new
numbers in front of it, and where outputs have a score for every token, those of dropped tokens are
left out of the source's: then both take the same feeds and answer in one shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgeopt.train.vocabulary import VocabularyPlan

__all__ = ["keep_scores", "take_old_numbers"]

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
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == _IDS:
                node.input[i] = new
    graph.initializer.append(numpy_helper.from_array(table, f"{_IDS}_table"))
    front = helper.make_node("Gather", [f"{_IDS}_table", _IDS], [new], name=f"{_IDS}_renumber")
    graph.node.insert(0, front)
    return _saved(loaded, model, "old-numbers")


def keep_scores(model: Path, plan: VocabularyPlan, rows: int) -> Path:
    """A copy beside ``model`` whose outputs over ``rows`` tokens give those that are kept alone."""
    import onnx
    from onnx import helper, numpy_helper

    loaded = onnx.load(model, load_external_data=False)
    graph = loaded.graph
    wide = [
        value
        for value in graph.output
        if value.type.tensor_type.shape.dim
        and value.type.tensor_type.shape.dim[-1].dim_value == rows
    ]
    if not wide:
        return model
    kept = plan.kept[plan.kept < rows]
    graph.initializer.append(numpy_helper.from_array(kept.astype(np.int64), "kept_tokens"))
    for value in wide:
        whole = f"{value.name}_every_token"
        for node in graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == value.name:
                        names[i] = whole
        graph.node.append(helper.make_node("Gather", [whole, "kept_tokens"], [value.name], axis=-1))
        value.type.tensor_type.shape.dim[-1].dim_value = len(kept)
    return _saved(loaded, model, "kept-scores")


def _saved(loaded: object, model: Path, tag: str) -> Path:
    """Beside the original: what it keeps in a file of its own is found from there."""
    import onnx

    path = model.with_name(f"{model.stem}-{tag}.onnx")
    onnx.save(loaded, path)
    return path
