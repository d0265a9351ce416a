"""Sizes that nobody gave: which are tried first, and that all that fit are reached."""

from __future__ import annotations

import itertools

import pytest

from edgeopt.core import InputSpec, shown_shape, symbolic, unnamed
from edgeopt.data.hint import Hint
from edgeopt.data.settle import larger, settle
from edgeopt.data.sizes import batch_axes, candidates, typical_sizes


def spec(name: str, dtype: str, *shape: int | str | None) -> InputSpec:
    """None is a free dimension without a name."""
    return InputSpec(name, dtype, tuple(symbolic(dim, name, i) for i, dim in enumerate(shape)))


def shape_of(one: InputSpec, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in one.shape)


def test_dimensions_without_a_name_are_shown_alike_and_are_not_the_same():
    image = spec("x", "float32", None, 3, -1, "unk__4")
    assert str(image) == "x: float32[?, 3, ?, ?]"
    assert len(set(image.shape)) == 4
    assert shown_shape(image.shape) == ["?", 3, "?", "?"]
    assert symbolic(0, "x", 1) == 0
    assert symbolic("unk__x", "x", 1) == "unk__x"
    assert unnamed("x", 0) != unnamed("y", 0)


@pytest.mark.parametrize(
    ("specs", "axes"),
    [
        ([spec("x", "float32", "n", 8), spec("h", "float32", 2, "n", 8)], [0, 1]),
        ([spec("x", "float32", None, 8), spec("h", "float32", 2, None, 8)], [0, 1]),
        ([spec("x", "float32", "n", "t"), spec("s", "float32", 3)], [0, None]),
        ([spec("x", "float32", "n", "t"), spec("sr", "int64")], [0, None]),
        ([spec("h", "float32", 2, "batch", 8), spec("x", "float32", "batch", 8)], [1, 0]),
        ([spec("x", "float32", 1, 512), spec("h", "float32", 2, 1, 64)], [0, 1]),
        ([spec("h", "float32", 2, 1, 64), spec("x", "float32", 1, 512)], [1, 0]),
        ([spec("x", "float32", 4, 3, 8), spec("flag", "float32", 1)], [0, None]),
        ([spec("x", "float32", 4, 3), spec("y", "int64", 4)], [0, 0]),
        ([spec("x", "float32", "t", "n", 8), spec("h", "float32", 1, "n", 8)], [0, 1]),
    ],
)
def test_the_axis_that_counts_samples(specs, axes):
    assert [batch_axes(specs)[each.name] for each in specs] == axes


@pytest.mark.parametrize(
    ("specs", "hints", "shapes"),
    [
        ([spec("x", "float32", None, 3, None, None)], {}, [(1, 3, 64, 64)]),
        ([spec("x", "uint8", None, None, None, 3)], {}, [(1, 64, 64, 3)]),
        ([spec("x", "float32", "n", 3, "H", "W")], {"x": Hint(stride=32)}, [(1, 3, 64, 64)]),
        ([spec("x", "float32", "n", 3, "H", "W")], {"x": Hint(stride=128)}, [(1, 3, 256, 256)]),
        ([spec("x", "float32", "n", 3, "H", "W")], {"x": Hint(stride=24)}, [(1, 3, 72, 72)]),
        ([spec("x", "float32", None, 1, None)], {"x": Hint(stride=320)}, [(1, 1, 5120)]),
        ([spec("x", "float32", "sequence_length", 576)], {"x": Hint(stride=64)}, [(32, 576)]),
        (  # N counts samples of sound, not sounds
            [spec("waveforms", "float32", "batch_size", "N"), spec("lens", "int64", "batch_size")],
            {},
            [(1, 16000), (1,)],
        ),
        ([spec("x", "float32", "N", "M1", "M2", 3)], {}, [(1, 64, 64, 3)]),
        (
            [
                spec("input_ids", "int64", "b", "sequence_length"),
                spec("attention_mask", "int64", "b", "past_sequence_length + sequence_length"),
                spec("past.0.key", "float32", "b", 4, "past_sequence_length", 16),
            ],
            {},
            [(1, 32), (1, 64), (1, 4, 32, 16)],
        ),
        (
            [
                spec("input_ids", "int64", "b", "sequence_length"),
                spec("mask", "int64", "b", "total_length"),
                spec("past.0.key", "float32", "b", 4, "past_length", 16),
            ],
            {},
            [(1, 32), (1, 64), (1, 4, 32, 16)],
        ),
        (
            [
                spec("input", "float32", None, None),
                spec("state", "float32", 2, None, 128),
                spec("sr", "int64"),
            ],
            {},
            [(1, 576), (2, 1, 128), ()],
        ),
        ([spec("speech", "float32", "n", "len")], {}, [(1, 16000)]),
        ([spec("past_value", "float32", None, 8, None, None)], {}, [(1, 8, 32, 32)]),
    ],
)
def test_first_sizes_are_those_of_a_user(specs, hints, shapes):
    sizes = typical_sizes(specs, hints)
    assert [shape_of(each, sizes) for each in specs] == shapes


def test_every_combination_is_reached_and_none_twice():
    specs = [spec("x", "float32", None, 3, None, None)]
    taken = list(itertools.islice(candidates(specs), 400))
    shapes = [shape_of(specs[0], sizes) for sizes, _ in taken]
    assert len(set(shapes)) == len(shapes)
    assert shapes[0] == (1, 3, 64, 64)
    assert (1, 3, 48, 320) in shapes
    assert (1, 3, 32, 128) in shapes


def test_sizes_that_are_asked_for_are_kept():
    specs = [spec("ids", "int64", "n", "seq"), spec("mask", "int64", "n", "seq")]
    taken = list(itertools.islice(candidates(specs, {}, {"seq": 77, "n": 5}), 10))
    assert [sizes for sizes, _ in taken] == [{"n": 5, "seq": 77}]


@pytest.mark.parametrize(("sides", "rate"), [((28, 28), 16000), ((48, 320), 8000), ((7, 7), None)])
def test_the_model_is_the_judge(sides, rate):
    """A model of one size of picture, and one rate, alone."""
    specs = [spec("x", "float32", None, 1, None, None), spec("sr", "int64")]

    def runs(feed):
        found = feed["x"].shape[2:], int(feed["sr"])
        return None if found == (sides, rate) else f"no {found}"

    settled = settle(specs, {"sr": Hint(values=(16000,))}, runs)
    if rate is None:
        assert settled.feed is None
        assert settled.complaint == "no ((64, 64), 16000)"
        return
    assert settled.feed is not None
    assert settled.feed["x"].shape == (1, 1, *sides)
    assert settled.values == {"sr": rate}
    together = larger(specs, settled)
    assert together is not None
    assert together["x"].shape == (3, 1, *sides)
    assert int(together["sr"]) == rate
