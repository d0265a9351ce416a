"""Sets of rows: in another order, in another number, against what numpy says of them."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.measure.fidelity import FidelityMeter
from edgeopt.measure.matching import RowMatcher, unequal

RNG = np.random.default_rng(0)


def boxes(count: int) -> np.ndarray:
    """Boxes of 10 by 10, far from one another."""
    corner = np.stack([np.arange(count) * 20.0, np.arange(count) % 5 * 20.0], axis=-1)
    return np.concatenate([corner, corner + 10], axis=-1).astype(np.float32)


def detections(count: int) -> dict[str, np.ndarray]:
    return {
        "boxes": boxes(count),
        "labels": (np.arange(count) % 3).astype(np.int64),
        "scores": np.linspace(0.9, 0.5, count, dtype=np.float32),
    }


def shuffled(found: dict[str, np.ndarray], order: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array[order] for name, array in found.items()}


@pytest.mark.parametrize("batched", [False, True], ids=["[n, 4]", "[1, n, 4]"])
def test_boxes_are_found_again_in_any_order_and_by_their_overlap(batched):
    ours = detections(12)
    order = RNG.permutation(12)
    theirs = shuffled({**ours, "boxes": ours["boxes"] + np.float32(0.7)}, order)
    if batched:
        ours, theirs = ({n: a[None] for n, a in each.items()} for each in (ours, theirs))
    matcher = RowMatcher(frozenset(ours))
    a, b = matcher.pair(ours, theirs)
    rows = matcher.result()
    assert (rows.source, rows.artifact, rows.matched, rows.share) == (12, 12, 12, 1.0)
    np.testing.assert_array_equal(a["labels"], b["labels"])
    np.testing.assert_array_equal(a["scores"], b["scores"])
    np.testing.assert_allclose(b["boxes"] - a["boxes"], 0.7, rtol=1e-4)


def test_what_is_missing_and_what_is_new_is_counted():
    ours = detections(10)
    theirs = detections(12)
    theirs["boxes"][3] += 500  # one that is somewhere else
    theirs = shuffled(theirs, RNG.permutation(12))
    matcher = RowMatcher()  # the number differs: no graph has to tell
    a, b = matcher.pair(ours, theirs)
    rows = matcher.result()
    assert set(rows.outputs) == {"boxes", "labels", "scores"}
    assert (rows.source, rows.artifact, rows.matched) == (10, 12, 9)
    assert rows.share == pytest.approx(9 / 12)
    np.testing.assert_array_equal(a["boxes"], b["boxes"])
    assert len(a["labels"]) == 9


def test_a_box_of_another_class_is_found_with_its_own_class_first():
    """Two boxes in one place: each keeps to its own kind."""
    ours = {"boxes": np.tile(boxes(1), (2, 1)), "labels": np.array([4, 7])}
    theirs = {"boxes": np.tile(boxes(1), (2, 1)), "labels": np.array([7, 4])}
    a, b = RowMatcher(frozenset(ours)).pair(ours, theirs)
    assert (a["labels"] == b["labels"]).all()


@pytest.mark.parametrize("start", [0, 1], ids=["box, score, class", "picture, box, class, score"])
def test_rows_that_hold_a_box_among_others(start):
    rest = RNG.uniform(0, 1, (8, 2)).astype(np.float32)
    parts = [np.zeros((8, start), np.float32), boxes(8), rest]
    rows = np.concatenate(parts, axis=1)
    order = RNG.permutation(8)
    a, b = RowMatcher(frozenset({"out"})).pair({"out": rows[None]}, {"out": rows[order][None]})
    np.testing.assert_array_equal(a["out"], b["out"])


def test_whole_numbers_are_matched_exactly():
    """As NonMaxSuppression gives them: (picture, class, place)."""
    ours = np.array([[0, 0, 5], [0, 0, 9], [0, 1, 2]])
    theirs = np.array([[0, 1, 2], [0, 0, 5], [0, 2, 2], [0, 0, 8]])
    matcher = RowMatcher(frozenset({"picked"}))
    a, b = matcher.pair({"picked": ours}, {"picked": theirs})
    np.testing.assert_array_equal(a["picked"], [[0, 0, 5], [0, 1, 2]])
    np.testing.assert_array_equal(a["picked"], b["picked"])
    assert matcher.result().matched == 2


def test_values_go_with_their_indices():
    """As TopK gives them, in a batch of two."""
    values = np.float32([[5, 4.01, 4], [3, 2, 1]])
    other = np.float32([[5, 4.02, 4.01], [3, 2, 1]])
    ours = {"v": values, "i": np.array([[7, 3, 8], [1, 2, 3]])}
    theirs = {"v": other, "i": np.array([[7, 8, 3], [1, 2, 6]])}
    matcher = RowMatcher(frozenset(ours))
    a, b = matcher.pair(ours, theirs)
    np.testing.assert_array_equal(a["i"], [7, 3, 8, 1, 2])
    np.testing.assert_array_equal(a["i"], b["i"])
    np.testing.assert_allclose(b["v"], np.float32([5, 4.01, 4.02, 3, 2]))
    assert matcher.result().matched == 5


def test_rows_of_floats_go_to_the_nearest():
    rows = RNG.standard_normal((20, 8)).astype(np.float32)
    order = RNG.permutation(20)[:17]
    noise = 0.01 * RNG.standard_normal((17, 8)).astype(np.float32)
    a, b = RowMatcher().pair({"x": rows}, {"x": rows[order] + noise})
    np.testing.assert_array_equal(a["x"], rows[np.sort(order)])
    np.testing.assert_allclose(a["x"], b["x"], atol=0.1)


def test_what_is_no_set_stays_as_it_is():
    ours = {"y": RNG.standard_normal((4, 10)), "n": np.array([3])}
    theirs = {"y": ours["y"][::-1], "n": np.array([4])}
    matcher = RowMatcher()
    a, b = matcher.pair(ours, theirs)
    assert matcher.result() is None
    np.testing.assert_array_equal(b["y"], theirs["y"])
    assert unequal(a, b) == []


def test_no_rows_at_all():
    empty = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    matcher = RowMatcher(frozenset(empty))
    matcher.pair(empty, empty)
    matcher.pair(empty, {name: detections(2)[name] for name in empty})
    rows = matcher.result()
    assert (rows.source, rows.artifact, rows.matched, rows.share) == (0, 2, 0, 0.0)


def test_shapes_that_differ_in_more_than_rows_are_named():
    ours, theirs = {"y": np.zeros((2, 3, 4))}, {"y": np.zeros((3, 3, 5))}
    a, b = RowMatcher(frozenset({"y"})).pair(ours, theirs)
    assert unequal(a, b) == ["y [2, 3, 4] in the source and [3, 3, 5] in the artifact"]


def test_a_box_is_no_distribution_over_four_classes():
    meter = FidelityMeter("boxes", classes=False)
    assert meter.add(boxes(5), boxes(5)) is None
    found = meter.result()
    assert (found.top1, found.kl) == (None, None)


def test_sets_of_other_sizes_are_matched_each_for_itself():
    ours = {**detections(6), "best": np.arange(3)}
    theirs = shuffled(detections(6), RNG.permutation(6)) | {"best": np.array([2, 0, 1])}
    matcher = RowMatcher(frozenset(ours))
    a, b = matcher.pair(ours, theirs)
    assert all((a[name] == b[name]).all() for name in ours)
    assert matcher.result().matched == 9
