"""The teacher's answers on disk: the same as it gives, computed once, and told from others'."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tests.training.loop_nets import Hint, Soft, data, model, one_thread, same, weights  # noqa: E402
from torch import nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import OutputError, SourceError, UsageError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.training.batches import ArrayData, Data, StreamData  # noqa: E402
from edgeopt.training.loop import train  # noqa: E402
from edgeopt.training.settings import TrainSettings  # noqa: E402
from edgeopt.training.teacher_cache import CachedTeacher, cached_answers, weights_digest  # noqa: E402
from edgeopt.training.tensors import to_tensors  # noqa: E402


@pytest.fixture(autouse=True)
def _still() -> Iterator[None]:
    with one_thread():
        yield


def cached(folder: Path, teacher: TorchModel, rows: Data, layers: tuple[str, ...] = ()) -> Path:
    return cached_answers(
        folder,
        teacher,
        rows,
        layers,
        nullcontext,
        lambda part: to_tensors(part, teacher, torch.device("cpu"))[0],
        lambda text, share: None,
    )


def test_answers_are_those_of_the_rows_asked_for(tmp_path: Path) -> None:
    rows, teacher = data(150).take(np.arange(149, 20, -1)), model(2, norm=nn.BatchNorm1d)
    kept = CachedTeacher.open(cached(tmp_path, teacher, rows, ("inner",)), rows)
    assert isinstance(kept.outputs["logits"], np.memmap)
    for (part,) in rows.parts(40, 1, (0,), (1, 1), 0):
        feed = {"x": torch.from_numpy(part.inputs["x"])}
        outputs, hidden = kept.answers(part, feed)
        with torch.no_grad(), teacher.mode(False):
            inner = teacher.module.inner(feed["x"])
            logits = teacher.module(feed["x"])["logits"]
        assert torch.allclose(outputs["logits"], logits, atol=1e-5)
        assert torch.allclose(hidden["inner"], inner, atol=1e-5)


def test_computed_once_for_each_teacher_data_and_layers(tmp_path: Path) -> None:
    rows, teacher = data(20), model(2)
    first = cached(tmp_path, teacher, rows)
    before = first.joinpath("outputs-0.npy").stat().st_mtime_ns
    assert cached(tmp_path, model(2), data(20)) == first
    assert first.joinpath("outputs-0.npy").stat().st_mtime_ns == before
    others = {
        cached(tmp_path, model(3), rows),
        cached(tmp_path, teacher, data(20, seed=1)),
        cached(tmp_path, teacher, rows.take(np.arange(19))),
        cached(tmp_path, teacher, rows, ("inner",)),
    }
    assert len(others | {first}) == 5


def test_a_folder_that_was_never_finished_is_made_anew(tmp_path: Path) -> None:
    rows, teacher = data(20), model(2)
    folder = cached(tmp_path, teacher, rows)
    whole = (folder / "outputs-0.npy").read_bytes()
    (folder / "answers.json").unlink()
    (folder / "outputs-0.npy").write_bytes(whole[:100])
    assert cached(tmp_path, teacher, rows) == folder
    assert (folder / "outputs-0.npy").read_bytes() == whole


@pytest.mark.parametrize("name", ["outputs-0.npy", "answers.json"])
def test_spoilt_answers_are_refused(tmp_path: Path, name: str) -> None:
    rows = data(20)
    folder = cached(tmp_path, model(2), rows)
    whole = (folder / name).read_bytes()
    for cut in (0, 9, len(whole) - 1):
        (folder / name).write_bytes(whole[:cut])
        with pytest.raises(SourceError, match="remove the folder"):
            CachedTeacher.open(folder, rows)
    (folder / name).write_bytes(whole)
    with pytest.raises(SourceError, match="20 rows for 21 samples"):
        CachedTeacher.open(folder, data(21))
    (folder / "answers.json").write_text(json.dumps([1]))
    with pytest.raises(SourceError):
        CachedTeacher.open(folder, rows)


class Answers(nn.Module):
    """Anything but one row a sample."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Any) -> Any:
        width = 1 + int(x.flatten()[0] > 63)  # in the second batch, another one
        return {"all": x.sum() if self.how == "scalar" else x[:, :width]}


@pytest.mark.parametrize(("how", "words"), [("scalar", "not one row each"), ("wide", "shape")])
def test_answers_without_rows_of_one_shape_are_refused(
    tmp_path: Path, how: str, words: str
) -> None:
    x = np.arange(200, dtype=np.float32).reshape(100, 2)
    spec = (InputSpec("x", "float32", ("n", 2)),)
    teacher = TorchModel(Answers(how), spec, {"x": x[:2]}, positional=True)
    with pytest.raises(UsageError, match=words):
        cached(tmp_path, teacher, ArrayData({"x": x}))


def test_streams_and_folders_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a stream has none"):
        cached(tmp_path, model(), StreamData(lambda: iter(()), ("x",)))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="another folder"):
        cached(tmp_path / "file", model(), data(4))


def test_the_digest_sees_names_and_every_bit() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    assert weights_digest(one) == weights_digest(other)
    with torch.no_grad():
        other.bias[1] = torch.nextafter(other.bias[1], torch.tensor(9.0))
    assert weights_digest(one) != weights_digest(other)
    assert weights_digest(nn.Sequential(one)) != weights_digest(one)


def test_training_with_the_cache_is_training_with_the_teacher(tmp_path: Path) -> None:
    train_on, held = data(60).split(0.3)
    chosen = TrainSettings(steps=8, batch_size=10, learning_rate=0.02)

    def once(settings: TrainSettings, teacher: TorchModel) -> dict[str, Any]:
        student = model(1, dropout=0.1)
        losses = [Soft(), Hint()]
        train(student, losses, train_on, teacher=teacher, validation=held, settings=settings)
        return weights(student)

    live = once(chosen, model(2, width=12))
    kept = replace(chosen, cache_teacher=tmp_path)
    first = once(kept, model(2, width=12))
    assert len(list(tmp_path.iterdir())) == 2  # for training, and for judging by the loss
    assert all(torch.allclose(first[name], live[name], atol=1e-5) for name in live)
    teacher = model(2, width=12)

    def refuses(*_: Any) -> None:
        raise AssertionError("the teacher was run")

    teacher.module.register_forward_pre_hook(refuses)
    assert same(once(kept, teacher), first)
