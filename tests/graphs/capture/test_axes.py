from __future__ import annotations

import numpy as np
import pytest

from edgeopt.core import InputSpec
from edgeopt.graphs.capture.axes import Axis, Inputs, alone, axis_for, feed, pin, settle, shapes


def _text() -> Inputs:
    specs = (
        InputSpec("input_ids", "int64", ("batch", "sequence")),
        InputSpec("attention_mask", "int64", ("batch", "sequence")),
    )
    axes = {"batch": Axis("batch", 2, 3), "sequence": Axis("sequence", 16, 11)}
    return Inputs(specs, axes, {"input_ids": 100}, {})


def test_feed_has_the_shapes_of_export_and_of_the_check():
    assert feed(_text())["input_ids"].shape == (2, 16)
    assert feed(_text(), True)["input_ids"].shape == (3, 11)
    assert feed(_text(), ("sequence",))["input_ids"].shape == (2, 11)


def test_token_ids_stay_below_the_vocabulary_and_the_mask_pads_the_last_row():
    made = feed(_text())
    assert made["input_ids"].min() >= 3 and made["input_ids"].max() < 100
    assert made["attention_mask"][0].all()
    assert made["attention_mask"][-1].tolist() == [1] * 12 + [0] * 4


def test_feed_is_reproducible_and_another_seed_is_another_feed():
    first, again, other = feed(_text()), feed(_text()), feed(_text(), seed=1)
    assert np.array_equal(first["input_ids"], again["input_ids"])
    assert not np.array_equal(first["input_ids"], other["input_ids"])


def test_pin_gives_the_size_that_was_asked_for():
    inputs = Inputs(
        (InputSpec("x", "float32", ("batch", 4)),), {"batch": Axis("batch", 2, 3, fixed=1)}, {}, {}
    )
    pinned = pin(inputs, ["batch"])
    assert pinned.specs[0].shape == (1, 4)
    assert not pinned.axes
    assert shapes(inputs)["x"] == (2, 4)


@pytest.mark.parametrize(("fixed", "size"), [(None, 1), (5, 5)])
def test_alone_is_a_batch_of_one_unless_another_was_asked_for(fixed, size):
    inputs = Inputs(
        (InputSpec("x", "float32", ("N", "sequence")),),
        {"N": Axis("N", 5, 6, fixed=fixed), "sequence": Axis("sequence", 16, 11)},
        {},
        {},
    )
    assert shapes(alone(inputs))["x"] == (size, 16)


def test_a_given_example_is_repeated_or_cut_to_size():
    example = np.arange(6, dtype=np.float32).reshape(1, 6)
    inputs = Inputs(
        (InputSpec("x", "float32", ("batch", "width")),),
        {"batch": Axis("batch", 3, 4), "width": Axis("width", 4, 9)},
        {},
        {"x": example},
    )
    made = feed(inputs)["x"]
    assert made.shape == (3, 4)
    assert np.array_equal(made[0], example[0, :4])
    assert not np.array_equal(made[0], made[1]), "rows of a grown batch differ"
    assert feed(inputs, True)["x"].shape == (4, 9)


def test_settle_pins_what_the_model_refuses_and_says_so():
    def works(fed):
        return None if fed["input_ids"].shape[1] == 16 else "position table ends"

    settled, notes = settle(_text(), works)
    assert settled.specs[0].shape == ("batch", 16)
    assert notes == ("sequence is fixed at 16: the model refuses 11: position table ends",)


def test_usual_names_have_aliases_and_a_last_candidate():
    assert axis_for("N") == Axis("N", 2, 3)
    assert axis_for("seq_len") == Axis("seq_len", 32, 24)
    assert axis_for("batch", 1) is None
    assert axis_for("anything") is not None


def test_booleans_and_scalars_can_be_fed():
    inputs = Inputs(
        (
            InputSpec("flag", "bool", (4,)),
            InputSpec("t", "float32", ()),
            InputSpec("k", "int32", ()),
        ),
        {},
        {},
        {},
    )
    made = feed(inputs)
    assert made["flag"].dtype == np.bool_
    assert made["t"].shape == () and made["k"].dtype == np.int32
