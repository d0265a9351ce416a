"""What settings refuse, and what they tell of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from edgeopt.errors import UsageError  # noqa: E402
from edgeopt.training.settings import TrainSettings  # noqa: E402


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "neither"),
        ({"epochs": 1, "steps": 1}, "both"),
        ({"epochs": 0}, "epochs 0"),
        ({"steps": 1.5}, "whole number"),
        ({"epochs": True}, "epochs True"),
        ({"epochs": 1, "batch_size": None}, "batch_size None"),
        ({"epochs": 1, "learning_rate": 0}, "above 0"),
        ({"epochs": 1, "learning_rate": float("nan")}, "learning_rate nan"),
        ({"epochs": 1, "weight_decay": -1}, "weight_decay -1"),
        ({"epochs": 1, "warmup": 0.7, "hold": 0.4}, "add up to 1.1"),
        ({"epochs": 1, "hold": 1.1}, "from 0 to 1"),
        ({"epochs": 1, "clip": 0}, "above 0"),
        ({"epochs": 1, "precision": "int8"}, "fp32, bf16, fp16"),
        ({"epochs": 1, "device": "toaster"}, "auto or cpu"),
        ({"epochs": 1, "batch_size": 2, "accumulation": 3}, "3 pieces"),
        ({"epochs": 1, "seed": -1}, "seed -1"),
        ({"epochs": 1, "augment": len, "cache_teacher": Path("x")}, "cached"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainSettings(**given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_field_that_matters_is_described_and_no_other() -> None:
    base = TrainSettings(epochs=3)
    assert TrainSettings(epochs=3, checkpoint=Path("a"), checkpoint_every=7).describe() == (
        base.describe()
    )
    for changed in (
        {"learning_rate": 2e-3},
        {"seed": 1},
        {"patience": 2},
        {"augment": len},
        {"hold": 0.1},
    ):
        assert TrainSettings(epochs=3, **changed).describe() != base.describe()  # type: ignore[arg-type]
