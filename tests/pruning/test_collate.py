"""Samples joined: every row once, in order, in batches as even as asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from torch import nn

from edgeopt.core import InputSpec
from edgeopt.modules.model import TorchModel
from edgeopt.pruning.collate import collate, row_count


def _model(batch: int | str) -> TorchModel:
    specs = (InputSpec("x", "int64", (batch, "s")), InputSpec("y", "int64", (batch,)))
    return TorchModel(nn.Identity(), specs, {})


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 2))), st.integers(1, 6))
def test_every_row_comes_once_in_order(sizes: list[tuple[int, int]], rows: int) -> None:
    """``sizes`` are rows and the length of the sequence, which splits runs."""
    feeds, at = [], 0
    for count, length in sizes:
        y = np.arange(at, at + count)
        feeds.append({"x": np.repeat(y[:, None], length, 1), "y": y, "label": y})
        at += count
    found = list(collate(_model("b"), feeds, rows))
    assert [i for f in found for i in f["y"]] == list(range(at))
    assert all((f["x"] == f["y"][:, None]).all() and set(f) == {"x", "y"} for f in found)
    assert all(row_count(f) < 2 * rows for f in found)
    # short only where what follows is of another shape
    for one, after in itertools.pairwise(found):
        assert row_count(one) >= rows or one["x"].shape[1] != after["x"].shape[1]
    fixed = list(collate(_model(3), feeds, rows))
    assert [row_count(f) for f in fixed] == [count for count, _ in sizes]
