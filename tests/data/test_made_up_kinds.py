"""Made-up inputs are of many kinds, as a user's are: silence, voices, dark and busy pictures."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.core import InputSpec
from edgeopt.data.pictures import PICTURES, picture
from edgeopt.data.sounds import SOUNDS, sound
from edgeopt.data.synthetic import Hint, synthetic

SIZES = [(1, 3, 64, 64), (2, 1, 33, 48), (1, 3, 8, 8), (3, 224, 224)]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("index", range(len(PICTURES)), ids=list(PICTURES))
def test_every_kind_of_picture_is_one_at_any_size(index, shape):
    made = picture(index, shape, np.random.default_rng(0))
    assert made.shape == shape
    assert np.isfinite(made).all()
    assert np.abs(made).max() < 6
    again = picture(index, shape, np.random.default_rng(0))
    assert np.array_equal(made, again)


def test_pictures_differ_in_light_contrast_and_structure():
    made = {name: make((8, 3, 64, 64), np.random.default_rng(0)) for name, make in PICTURES.items()}
    assert made["dark"].mean() < -1
    assert made["pale writing"].mean() > 0.7
    assert made["dark"].std() < 0.3 < made["things"].std()
    for name in ("photo", "things", "dark"):  # neighbours are alike, as in photographs
        right = np.corrcoef(made[name][..., :-1].ravel(), made[name][..., 1:].ravel())[0, 1]
        assert right > 0.8, name
    power = np.abs(np.fft.rfft2(made["photo"]))[..., :16, 1:17].mean((0, 1))
    assert power[0, 0] > 5 * power[15, 15]  # amplitude falls with frequency


@pytest.mark.parametrize("shape", [(1, 16000), (2, 1, 512), (1, 4000, 1), (1, 1)])
@pytest.mark.parametrize("index", range(len(SOUNDS)), ids=list(SOUNDS))
def test_every_kind_of_sound_is_within_full_scale(index, shape):
    made = sound(index, shape, np.random.default_rng(0))
    assert made.shape == shape
    assert np.isfinite(made).all()
    assert np.abs(made).max() <= 1
    assert np.array_equal(made, sound(index, shape, np.random.default_rng(0)))


def test_sounds_go_from_silence_to_loud():
    loud = {
        name: float(make(16000, np.random.default_rng(0)).std()) for name, make in SOUNDS.items()
    }
    assert loud["silence"] < 1e-3 < loud["quiet voice"] < 0.05 < loud["voice"] < loud["sweep"]
    voice = SOUNDS["voice"](16000, np.random.default_rng(0))
    spectrum = np.abs(np.fft.rfft(voice)) ** 2
    assert spectrum[:4000].sum() > 0.95 * spectrum.sum()  # of a second: below 4 kHz


@pytest.mark.parametrize(
    ("specs", "first", "some"),
    [
        ([InputSpec("x", "float32", (1, 3, 64, 64))], "patches", "dark"),
        ([InputSpec("x", "uint8", ("n", "h", "w", 3))], "patches", "photo"),
        ([InputSpec("audio", "float32", ("n", "samples"))], "voice", "silence"),
        ([InputSpec("input_ids", "int64", ("batch", "seq"))], "any ids", "rare ids"),
        ([InputSpec("x", "float32", ("n", 12))], "usual", "edge"),
    ],
)
def test_feeds_are_of_one_kind_after_another(specs, first, some):
    made = synthetic(specs, count=8)
    assert made.kinds[0] == first
    assert some in made.kinds
    assert len(made.kinds) == len(list(made)) == 8
    assert made.take(3).kinds == made.kinds  # by place: what is left out has none


def test_what_has_no_kinds_says_none():
    assert synthetic([InputSpec("x", "float32", (4,))]).kinds == ()
    assert synthetic([InputSpec("x", "float32", (1, 4))], {"x": Hint(0, 1)}).kinds == ()


def test_a_stream_starts_with_nothing_behind_it():
    specs = [
        InputSpec("input", "float32", ("n", 512)),
        InputSpec("state", "float32", (2, "n", 8)),
        InputSpec("sr", "int64", ()),
    ]
    states = [feed["state"] for feed in synthetic(specs, count=6)]
    assert not states[0].any()
    assert any(state.any() for state in states)
    assert all(np.abs(state).max() <= 1 for state in states)


def test_ids_are_frequent_rare_and_repeated():
    spec = [InputSpec("input_ids", "int64", ("batch", "seq"))]
    made = synthetic(spec, {"input_ids": Hint(0, 10_000)}, count=6)
    by_kind = dict(zip(made.kinds, (f["input_ids"] for f in made), strict=True))
    assert np.median(by_kind["frequent ids"]) < 1000
    assert by_kind["rare ids"].min() >= 8998
    assert len(np.unique(by_kind["repeated ids"])) <= 3
    for ids in by_kind.values():
        assert (ids.min() >= 0) and (ids.max() < 10_000)
