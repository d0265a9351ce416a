"""Data to train on: every row once, shards disjoint, and what cannot be trained on named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import InputsError, UsageError  # noqa: E402
from edgeopt.training.batches import ArrayData, StreamData  # noqa: E402

SPECS = (InputSpec("x", "float32", ("n", 2)),)


def arrays(rows: int, **more: Any) -> ArrayData:
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    return ArrayData({"x": x}, {"y": np.arange(rows) % 3}, **more)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), st.integers(0, 3))
def test_the_parts_of_all_processes_are_every_row_once(
    rows: int, size: int, of: int, epoch: int
) -> None:
    data = arrays(rows)
    seen: list[int] = []
    sizes = []
    for parts in data.parts(size, of, range(of), (0, epoch), 0):
        own = [part.rows for part in parts if part.share and part.rows is not None]
        batch = [int(row) for shard in own for row in shard]
        sizes.append(len(batch))
        seen += batch
        assert sum(part.share for part in parts) == pytest.approx(of)
        for part in parts:
            assert part.rows is not None and len(part.rows)  # an empty one borrows a row
            assert np.array_equal(part.inputs["x"][:, 0], 2.0 * part.rows)
    assert sorted(seen) == list(range(rows))
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    assert len(sizes) == data.count(size)


def test_each_process_asks_for_its_own_and_gets_the_same() -> None:
    data = arrays(23)
    whole = list(data.parts(8, 2, (0, 1), (5, 1), 0))
    for rank in (0, 1):
        alone = list(data.parts(8, 2, (rank,), (5, 1), 0))
        for (mine,), both in zip(alone, whole, strict=True):
            assert np.array_equal(mine.inputs["x"], both[rank].inputs["x"])
    later = list(data.parts(8, 2, (0, 1), (5, 1), 2))
    assert np.array_equal(later[0][0].inputs["x"], whole[2][0].inputs["x"])


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    data = arrays(40)

    def order(key: tuple[int, int] | None) -> list[int]:
        return [int(r) for (p,) in data.parts(40, 1, (0,), key, 0) for r in p.rows]  # type: ignore[union-attr]

    assert order((0, 0)) == order((0, 0))
    assert len({tuple(order(key)) for key in ((0, 0), (0, 1), (1, 0))}) == 3
    assert order(None) == list(range(40))


@settings(max_examples=40)
@given(st.integers(2, 50), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_is_two_disjoint_halves_of_all(rows: int, share: float, seed: int) -> None:
    train, held = arrays(rows).split(share, seed)
    assert train.rows is not None and held.rows is not None
    assert sorted([*train.rows, *held.rows]) == list(range(rows))
    assert len(train) and len(held)
    assert np.array_equal(arrays(rows).split(share, seed)[1].rows, held.rows)
    again = held.take(np.array([0]))
    assert again.rows is not None and again.rows[0] == held.rows[0]


def test_splits_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="validation share 1"):
        arrays(4).split(1.0)
    with pytest.raises(InputsError, match="one sample"):
        arrays(1).split(0.5)


def test_the_fingerprint_sees_every_change() -> None:
    base = arrays(5)
    assert base.fingerprint() == arrays(5).fingerprint()
    changed = np.array(base.inputs["x"])
    changed[4, 1] += 1
    others = [
        arrays(6),
        replace(base, inputs={"x": changed}),
        replace(base, inputs={"z": base.inputs["x"]}),
        base.take(np.array([0, 1, 2, 4, 3])),
    ]
    assert len({data.fingerprint() for data in [base, *others]}) == 5


def spoilt(name: str, row: int, value: float) -> ArrayData:
    data = arrays(6, label="d.npz", classes={"y": 3})
    side = dict(data.inputs if name == "x" else data.targets)
    side[name] = np.array(side[name])
    side[name][row] = value
    return replace(data, inputs=side) if name == "x" else replace(data, targets=side)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: spoilt("x", 4, np.nan), "d.npz, sample 4: input x holds NaN"),
        (lambda: spoilt("x", 2, np.inf), "sample 2: input x holds Inf"),
        (lambda: spoilt("y", 5, 3), "sample 5: y 3, the model has 3 classes; give labels from 0"),
        (lambda: spoilt("y", 1, -1), "sample 1: y -1"),
        (lambda: spoilt("y", 3, 9).take(np.array([0, 3])), "sample 3: y 9"),
        (lambda: ArrayData({"x": np.zeros((3, 5), np.float32)}), "a sample is [5], the model"),
        (lambda: ArrayData({"z": np.zeros((3, 2))}), "lacks input x: it gives z"),
        (lambda: ArrayData({"x": np.zeros((3, 2)).astype("U3")}), "no numbers"),
        (lambda: ArrayData({}), "no inputs"),
        (lambda: ArrayData({"x": np.zeros((0, 2))}), "no samples"),
        (lambda: ArrayData({"x": np.zeros((3, 2))}, {"y": np.zeros(2)}), "3 x, 2 y"),
        (lambda: ArrayData({"x": np.zeros((1, 2))}, {"y": np.full(1, np.nan)}), "target y holds"),
        (
            lambda: ArrayData({"x": np.zeros((1, 2))}, {"y": np.zeros(1)}, classes={"y": 2}),
            "give whole numbers",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_named(data: Any, words: str) -> None:
    with pytest.raises(InputsError) as caught:
        data().bind(SPECS)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_floats_for_whole_numbers_are_refused_and_ignored_labels_are_not() -> None:
    with pytest.raises(InputsError, match="the model takes int64"):
        arrays(2).bind((InputSpec("x", "int64", ("n", 2)),))
    spoilt("y", 5, -100).bind(SPECS)


def stream(*batches: dict[str, Any]) -> StreamData:
    return StreamData(lambda: iter(batches), ("x",), "gen")


def test_a_stream_is_cut_for_the_processes_and_begins_anew() -> None:
    data = stream(
        {"x": np.ones((5, 2), np.float32), "y": np.arange(5)},
        {"x": np.zeros((1, 2), np.float32), "y": np.arange(1)},
    ).bind(SPECS)
    for _ in range(2):
        first, second = data.parts(99, 2, (0, 1), (0, 0), 0)
        assert [p.targets["y"].tolist() for p in first] == [[0, 1, 2], [3, 4]]
        assert [p.share for p in second] == [2.0, 0.0]
    assert len(list(data.parts(99, 1, (0,), None, 1))) == 1


def test_what_a_stream_draws_depends_on_its_place_alone() -> None:
    def opener() -> Iterator[dict[str, Any]]:
        for _ in range(4):
            noise = torch.rand(2, 2) + float(np.random.rand())  # noqa: NPY002
            yield {"x": noise.numpy()}

    data = StreamData(opener, ("x",))
    whole = [p.inputs["x"] for (p,) in data.parts(1, 1, (0,), (3, 1), 0)]
    before = torch.get_rng_state()
    torch.rand(7)
    late = [p.inputs["x"] for (p,) in data.parts(1, 1, (0,), (3, 1), 2)]
    assert all(np.array_equal(a, b) for a, b in zip(whole[2:], late, strict=True))
    torch.set_rng_state(before)
    other = [p.inputs["x"] for (p,) in data.parts(1, 1, (0,), (3, 2), 0)]
    assert not np.array_equal(whole[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "no batches"),
        ([{"y": np.zeros(2)}], "batch 0 lacks input x"),
        ([{"x": np.zeros((2, 2)), "y": np.zeros(3)}], "2 x, 3 y"),
        ([{"x": np.zeros((0, 2))}], "at least one row"),
        ([{"x": np.full((2, 2), np.nan)}], "gen, batch 0, sample 0: input x holds NaN"),
        ([{"x": np.zeros((2, 3))}], "a sample is [3]"),
    ],
)
def test_streams_that_cannot_be_trained_on(batches: list[Any], words: str) -> None:
    with pytest.raises(InputsError) as caught:
        stream(*batches).bind(SPECS)
    assert words in str(caught.value)


def test_streams_are_told_apart_by_their_first_batch() -> None:
    a, b = {"x": np.zeros((1, 2))}, {"x": np.ones((1, 2))}
    assert stream(a).fingerprint() == stream(a).fingerprint() != stream(b).fingerprint()
