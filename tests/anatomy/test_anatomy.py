"""The parts of `inspect`: attribution of bytes, layer groups, and what values tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeopt.anatomy.attribution import ROLES, attribute
from edgeopt.anatomy.groups import group
from edgeopt.anatomy.scan import HEAD, scan
from edgeopt.core import Source, Storage, Weight


def weight(
    name: str, array: NDArray[Any], role: str = "weight", storage: Storage | None = None
) -> Weight:
    return Weight(
        name,
        array.shape,
        array.dtype.name,
        array.nbytes,
        lambda lo, hi: array[lo:hi] if array.ndim else array,
        role,
        storage,
    )


def source(*weights: Weight, extras: tuple[Weight, ...] = ()) -> Source:
    nbytes = sum(w.nbytes for w in weights + extras)
    return Source(Path("m.pt"), "torch-state-dict", (), nbytes, weights, extras)


# --- attribution -----------------------------------------------------------------------------


def test_tied_weights_count_once_and_for_the_more_important() -> None:
    array = np.zeros((4, 8), np.float32)
    place = Storage("0", 0, array.nbytes)
    found = attribute(
        source(
            weight("buffer", array, "buffer", place),
            weight("a", array, storage=place),
            weight("b", array, storage=place),
            extras=(weight("ema", array, "ema", place),),
        )
    )
    assert found.own == (0, array.nbytes, 0, 0)
    assert found.slack == {}


def test_a_view_keeps_its_whole_storage() -> None:
    view = weight("view", np.zeros(10, np.float32), storage=Storage("0", 40, 400))
    found = attribute(source(view))
    assert found.own == (40,)
    assert found.slack == {"view": 360}


spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 40), st.sampled_from(ROLES)), min_size=1
)


@given(spans)
def test_every_covered_byte_has_one_owner(drawn: list[tuple[int, int, str]]) -> None:
    tensors = [
        weight(f"t{i}", np.zeros(size, np.uint8), role, Storage("0", offset, 100))
        for i, (offset, size, role) in enumerate(drawn)
    ]
    found = attribute(source(*tensors))
    # The oracle: paint the storage, the least important first.
    painted = np.full(100, -1)
    order = sorted(range(len(drawn)), key=lambda i: (ROLES.index(drawn[i][2]), i), reverse=True)
    for i in order:
        offset, size, _ = drawn[i]
        painted[offset : offset + size] = i
    assert found.own == tuple(int((painted == i).sum()) for i in range(len(drawn)))
    assert sum(found.own) + sum(found.slack.values()) == found.total == 100


# --- groups ----------------------------------------------------------------------------------


def test_equal_blocks_are_one_row() -> None:
    names = [
        f"encoder.layer.{i}.{part}.weight" for i in range(6) for part in ("query", "key", "value")
    ]
    found = group([(name, 100) for name in names] + [("embeddings.word.weight", 5000)])
    rows = {g.name: (g.count, g.tensors, g.nbytes) for g in found}
    assert rows == {
        "encoder.layer.*.query": (6, 6, 600),
        "encoder.layer.*.key": (6, 6, 600),
        "encoder.layer.*.value": (6, 6, 600),
        "embeddings.word": (1, 1, 5000),
    }


def test_few_unequal_blocks_stay_apart() -> None:
    found = group([("layers.0.weight", 10), ("layers.1.weight", 1000), ("head.weight", 500)])
    assert [g.name for g in found] == ["layers.0", "layers.1", "head"]


names = st.lists(
    st.sampled_from(["a", "b", "0", "1", "2", "3", "4", "5", "query"]), max_size=4
).map(".".join)


@given(st.lists(st.tuples(names, st.integers(0, 1000))))
def test_groups_hold_every_byte_and_tensor(tensors: list[tuple[str, int]]) -> None:
    found = group(tensors)
    assert sum(g.nbytes for g in found) == sum(nbytes for _, nbytes in tensors)
    assert sum(g.tensors for g in found) == len(tensors)
    assert len(found) <= 24


def test_many_names_without_structure_are_cut_to_the_largest() -> None:
    found = group([(f"tensor_{chr(97 + i)}", i) for i in range(26)] + [("onnx::MatMul_12", 99)])
    assert len(found) == 12
    assert "onnx::MatMul_*" in [g.name for g in found]
    assert found[-1].name == "(others)"


# --- values ----------------------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
NORMAL = RANDOM.standard_normal((50, 40)).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "lowest"),
    [
        (NORMAL, "float32"),
        (NORMAL.astype(np.float16).astype(np.float32), "float16"),
        ((NORMAL.view(np.uint32) & 0xFFFF0000).view(np.float32) * 2.0**-60, "bfloat16"),
        (np.rint(NORMAL * 30), "int8"),
        (np.rint(NORMAL * 30).astype(np.float16), "int8"),
        (NORMAL.astype(np.float64), "float32"),
        (NORMAL.astype(np.float64) / 3, "float64"),
        (np.full((3, 3), 70000, np.float32), "bfloat16" if 70000 % 512 == 0 else "float32"),
        (np.zeros((3, 3), np.float32), "float32"),
        (np.array([[1.1, np.nan]], np.float32), "float32"),
    ],
)
def test_lowest_dtype_that_holds_every_value(values: NDArray[Any], lowest: str) -> None:
    found = scan([weight("w", values)], [values.nbytes]).facts[0]
    assert found.lowest == lowest
    if lowest != values.dtype and lowest != "bfloat16":
        assert np.array_equal(values.astype(lowest).astype(values.dtype), values)


def test_counts_of_zeros_rows_and_non_finite() -> None:
    values = NORMAL.copy()
    values[10] = 3.0
    values[45:] = 0.0
    values[0, 0] = np.inf
    found = scan([weight("w", values)], [values.nbytes]).facts[0]
    assert found.zeros == 5 * 40
    assert found.empty == 6
    assert found.trailing == 5
    assert found.not_finite == 1
    assert found.whole


def test_copies_are_found_among_equal_shapes_only() -> None:
    other = NORMAL.copy()
    other[-1, -1] += 1
    tensors = [
        weight("a", NORMAL),
        weight("almost", other),
        weight("b", NORMAL.copy()),
        weight("reshaped", NORMAL.reshape(40, 50)),
        weight("average", NORMAL.copy(), "ema"),
    ]
    found = scan(tensors, [w.nbytes for w in tensors])
    assert found.copies == {2: 0, 4: 0}
    assert found.likely_copies == {}


def test_a_large_model_is_read_in_part_unless_deep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeopt.anatomy.scan.WHOLE_BUDGET", 100_000)
    monkeypatch.setattr("edgeopt.anatomy.scan.HEAD_BUDGET", 3 * HEAD + 1)
    values = RANDOM.standard_normal((1000, 100)).astype(np.float32)
    values[500:] = np.rint(values[500:])
    values[:500] = values[:500].astype(np.float16)
    late = values.copy()
    late[-1, -1] = 0.1
    touched: list[int] = []

    def rows(lo: int, hi: int) -> NDArray[Any]:
        touched.append(hi - lo)
        return late[lo:hi]

    tensors = [
        weight("a", values),
        Weight("late", late.shape, "float32", late.nbytes, rows),
    ]
    own = [w.nbytes for w in tensors]
    part = scan(tensors, own)
    assert not part.whole
    assert part.facts[1].lowest == "float16"
    assert not part.facts[1].whole
    assert sum(touched) * 400 <= 3 * HEAD
    assert part.copies == {}
    deep = scan(tensors, own, deep=True)
    assert deep.whole
    assert deep.facts[0].lowest == "float16"
    assert deep.facts[1].lowest == "float32"
    assert deep.copies == {}
    assert deep.likely_copies == {}


def test_values_that_repeat_pack_well() -> None:
    few = RANDOM.choice(np.float32([0.1, 0.2, 0.3]), (200, 100))
    repeated = scan([weight("w", few)], [few.nbytes]).packed
    random = scan([weight("w", NORMAL)], [NORMAL.nbytes]).packed
    assert repeated is not None
    assert random is not None
    assert repeated < 0.3 < 0.8 < random
