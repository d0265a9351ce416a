from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from edgeopt.core import InputSpec
from edgeopt.data.synthetic import Hint, concrete_shape, synthetic
from edgeopt.errors import InputsError

BERT = [
    InputSpec("input_ids", "int64", ("batch", "sequence")),
    InputSpec("attention_mask", "int64", ("batch", "sequence")),
    InputSpec("token_type_ids", "int64", ("batch", "sequence")),
    InputSpec("position_ids", "int64", ("batch", "sequence")),
]


def test_the_same_arguments_give_the_same_numbers():
    hints = {"input_ids": Hint(0, 50)}
    one, two = (list(synthetic(BERT, hints)) for _ in range(2))
    assert len(one) == 8
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(one[0]["input_ids"], one[1]["input_ids"])
    other = next(iter(synthetic(BERT, hints, seed=1)))
    assert not np.array_equal(one[0]["input_ids"], other["input_ids"])
    label = "8 synthetic inputs (seed 0): input_ids [1, 32], attention_mask [1, 32]"
    assert synthetic(BERT).label == f"{label}, token_type_ids [1, 32], ..."
    assert synthetic([InputSpec("x", "float32", (1, 4))]).label == "8 synthetic inputs (seed 0)"


def test_text_inputs_are_plausible():
    hints = {"input_ids": Hint(3, 7), "token_type_ids": Hint(0, 1), "position_ids": Hint(0, 4)}
    feeds = list(synthetic(BERT, hints, sizes={"sequence": 12}))
    ids = np.concatenate([f["input_ids"] for f in feeds])
    assert ids.shape == (8, 12)
    assert (ids.min(), ids.max()) == (3, 6)
    masks = np.concatenate([f["attention_mask"] for f in feeds])
    assert set(np.unique(masks)) == {0, 1}
    assert (masks[:, 0] == 1).all()
    assert (np.diff(masks) <= 0).all()  # padding is a tail
    assert all(f["token_type_ids"].max() == 0 for f in feeds)
    assert feeds[0]["position_ids"].tolist() == [[0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3]]
    free = next(iter(synthetic(BERT)))
    assert free["token_type_ids"].tolist() == [[0] * 16 + [1] * 16]


def test_images_are_smooth_and_of_unit_variance():
    images = np.concatenate(
        [f["x"] for f in synthetic([InputSpec("x", "float32", (1, 3, 64, 64))])]
    )
    assert images.dtype == np.float32
    assert 0.8 < images.std() < 1.2
    right = np.corrcoef(images[..., :-1].ravel(), images[..., 1:].ravel())[0, 1]
    assert right > 0.4


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 64, 48, 3), (1, 1, 9, 9), (1, 3, 16, 16)])
def test_pictures_hold_shapes_too(shape):
    """Every other one is of marks, as letters are: two tones, the same in all channels."""
    plain, marked = itertools.islice(synthetic([InputSpec("x", "float32", shape)]), 2)
    for feed in (plain, marked):
        assert np.isfinite(feed["x"]).all()
        assert 0.5 < feed["x"].std() < 1.5
    if min(shape[1:3]) >= 16 or shape[2] >= 16:
        tones = np.unique(np.round(marked["x"] / marked["x"].max(), 1))
        assert len(tones) < len(np.unique(np.round(plain["x"] / plain["x"].max(), 1)))


def test_other_kinds():
    specs = [
        InputSpec("flag", "bool", ("n",)),
        InputSpec("pixel_mask", "float32", (1, 8, 8)),
        InputSpec("scale", "float32", ()),
        InputSpec("x", "float16", (2, 5)),
        InputSpec("bits", "int32", (4,)),
    ]
    feed = next(iter(synthetic(specs, {"x": Hint(2, 3), "bits": Hint(kind="mask")})))
    assert {s.name: str(feed[s.name].dtype) for s in specs} == {s.name: s.dtype for s in specs}
    assert (feed["pixel_mask"] == 1).all()
    assert feed["scale"].shape == ()
    assert ((feed["x"] >= 2) & (feed["x"] <= 3)).all()
    assert (feed["bits"] == 1).all()
    assert np.dtype("bfloat16") == ml_dtypes.bfloat16  # numpy knows the name by now
    with pytest.raises(InputsError, match="takes bfloat16"):
        synthetic([InputSpec("x", "bfloat16", (1,))])
    with pytest.raises(InputsError, match="takes str"):
        synthetic([InputSpec("x", "str", (1,))])


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (InputSpec("pixel_values", "float32", ("batch", 3, "height", "width")), (1, 3, 64, 64)),
        (InputSpec("x", "float32", ("s0", 1, "s1", "s2")), (1, 1, 64, 64)),
        (InputSpec("input_values", "float32", ("b", "sequence_length")), (1, 16000)),
        (InputSpec("x", "float32", ("b", "c")), (1, 32)),
        (InputSpec("input_ids", "int64", ("batch_size", "sequence_length")), (1, 32)),
        (InputSpec("h", "float32", (2, "batch", 8)), (2, 1, 8)),
        (InputSpec("x", "float32", ()), ()),
    ],
)
def test_free_dimensions_get_typical_sizes(spec, shape):
    assert concrete_shape(spec) == shape
