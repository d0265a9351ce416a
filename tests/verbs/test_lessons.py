"""What prune and distill train on: rows with their own labels, whatever forms both come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core import InputSpec
from edgeopt.errors import InputsError, UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.training.batches import ArrayData, StreamData
from edgeopt.verbs.training import TrainOptions, lessons, teach

X = InputSpec("x", "float32", ("batch", 4))
ROWS = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
LABELS = np.arange(60) % 3


def model(outputs: int = 3, module: nn.Module | None = None, spec: InputSpec = X) -> TorchModel:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, outputs))
    shape = [2, *(4 for _ in spec.shape[1:])]
    return TorchModel(module or made, (spec,), {"x": np.ones(shape, spec.dtype)}, positional=True)


def taught(tmp_path: Path, outputs: int = 3, **targets: Any) -> dict[str, Any]:
    np.savez(tmp_path / "d.npz", x=ROWS, **targets)
    material = lessons(str(tmp_path / "d.npz"), model(outputs), hold_out=True)
    options = TrainOptions(steps=2, losses=targets.pop("losses", ()))
    return teach(model(outputs), model(outputs), material, options, fine=False)[1]


def test_batches_of_other_sizes_keep_their_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sized.py").write_text(
        "import numpy as np\n"
        "def batches(widths=(4, 4, 4, 4, 4)):\n"
        "    at = 0\n"
        "    for n, width in zip((20, 7, 13, 11, 9), widths):\n"
        "        rows = np.arange(at, at + n)\n"
        "        at += n\n"
        "        yield {'x': np.repeat(rows[:, None], width, 1).astype('f'), 'label': rows % 3}\n"
        "def wider(): return batches((4, 5, 6, 4, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    data = lessons("sized:batches", model(), hold_out=True)
    assert isinstance(data.train, ArrayData) and data.validation is not None
    assert data.count == 49  # the fourth batch judges
    seen = []
    for side in (data.train, data.validation):
        for (part,) in side.parts(8, 1, (0,), None, 0):
            assert np.array_equal(part.inputs["x"][:, 0] % 3, part.targets["label"])
            seen += part.inputs["x"][:, 0].tolist()
    assert sorted(seen) == [*range(40), *range(51, 60)]

    free = InputSpec("x", "float32", ("batch", "length"))
    stream = lessons("sized:wider", model(spec=free), hold_out=True).train
    assert isinstance(stream, StreamData) and stream.batches == 4
    for (part,) in stream.parts(8, 1, (0,), None, 0):
        assert np.array_equal(part.inputs["x"][:, 0] % 3, part.targets["label"])


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y.astype(np.uint16),
        lambda y: y.astype(np.uint64),
        lambda y: y.astype(np.float64),
        lambda y: y[:, None],
        lambda y: np.eye(3, dtype=np.float32)[y],
        lambda y: np.eye(3, dtype=np.int32)[y],
    ],
)
def test_labels_of_any_form_are_classes(
    form: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    plain = taught(tmp_path / "plain", label=LABELS)
    other = taught(tmp_path, label=form(LABELS))
    assert other["losses"].startswith("soft 0.9, hard 0.1") and other["metric"] == "accuracy"
    losses = [record["loss"] for record in plain["history"]]
    assert [record["loss"] for record in other["history"]] == losses


def test_whole_numbers_of_a_regressor_are_no_classes(tmp_path: Path) -> None:
    said = taught(tmp_path, outputs=1, age=LABELS + 40)
    assert said["losses"].startswith("mse 0.5, mse-targets 0.5") and said["metric"] == "loss"


def test_an_array_beside_the_labels_is_no_label(tmp_path: Path) -> None:
    said = taught(tmp_path, label=LABELS, index=np.arange(60))
    assert said["losses"].startswith("soft 0.9, hard 0.1") and said["metric"] == "accuracy"


def test_a_wrong_label_is_named_by_its_own_row(tmp_path: Path) -> None:
    labels = LABELS.copy()
    labels[13] = 3
    with pytest.raises(InputsError, match="sample 13: label 3, the model has 3 classes"):
        taught(tmp_path, label=labels)


def test_pairs_that_no_loss_compares(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ROWS)
    material = lessons(str(tmp_path / "d.npz"), model(), hold_out=False)
    options = TrainOptions(steps=1, pairs="0=0")
    with pytest.raises(UsageError, match="--pairs has no meaning without --loss hints"):
        teach(model(), model(), material, options, fine=False)
