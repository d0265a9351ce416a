"""Checkpoints: a training that was killed ends as if it had not been, and only its own goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tests.training.loop_nets import (  # noqa: E402
    Hard,
    Hint,
    Soft,
    accuracy,
    data,
    model,
    one_thread,
    same,
    weights,
)
from torch import nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import OutputError, SourceError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.training import checkpoint, log  # noqa: E402
from edgeopt.training.batches import ArrayData, StreamData  # noqa: E402
from edgeopt.training.loop import Trained, train  # noqa: E402
from edgeopt.training.losses.hard_labels import HardLabels  # noqa: E402
from edgeopt.training.settings import TrainSettings  # noqa: E402

STEPS = 9


@pytest.fixture(autouse=True)
def _still() -> Iterator[None]:
    with one_thread():
        yield


def noisy(inputs: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Draws from the generator it is given, and from everybody's."""
    noise = rng.normal(size=inputs["x"].shape) + np.random.normal()  # noqa: NPY002
    return {"x": (inputs["x"] + 0.1 * noise).astype(np.float32)}


def run(
    folder: Path | None,
    *,
    every: int = 2,
    after_step: Callable[[], None] | None = None,
    path: Path | None = None,
    **more: Any,
) -> tuple[TorchModel, Trained]:
    """Dropout, running statistics, a learned projection, augmentation, evaluation: all there is."""
    student = model(1, dropout=0.2, norm=nn.BatchNorm1d)
    train_on, held = data(60).split(0.4)
    chosen = TrainSettings(
        steps=STEPS,
        batch_size=10,
        learning_rate=0.05,
        evaluate_every=3,
        log_every=1,
        augment=noisy,
        accumulation=2,
        checkpoint=folder,
        checkpoint_every=every,
    )
    trained = train(
        student,
        [Hard(), Soft(0.3), Hint()],
        train_on,
        teacher=model(2, width=12),
        validation=held,
        metric=accuracy,
        settings=replace(chosen, **more),
        after_step=after_step,
        log=path,
    )
    return student, trained


class Killed(BaseException):
    """As abrupt as an exception can be."""


def dies_at(step: int, how: Callable[[], None]) -> Callable[[], None]:
    calls = iter(range(1, 1000))

    def after_step() -> None:
        if next(calls) == step:
            how()

    return after_step


def _raise() -> None:
    raise Killed


def plain(trained: Trained) -> list[Any]:
    return [replace(record, seconds=0.0) for record in trained.history]


def test_stopped_after_any_step_and_taken_up_again_ends_bit_for_bit_the_same(
    tmp_path: Path,
) -> None:
    whole, told = run(None)
    for step in range(1, STEPS + 1):
        folder, path = tmp_path / str(step), tmp_path / f"{step}.jsonl"
        with pytest.raises(Killed):
            run(folder, every=2, after_step=dies_at(step, _raise), path=path)
        again, resumed = run(folder, every=2, path=path)
        assert same(weights(again), weights(whole)), step
        assert plain(resumed) == plain(told)
        assert [r.step for r in log.read(path)] == list(range(STEPS + 1))
        assert (resumed.best_step, resumed.best_metric) == (told.best_step, told.best_metric)
        done = 2 * ((step - 1) // 2)
        assert any(f"after {done} updates" in note for note in resumed.notes) == (done > 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that uses a GPU cannot be forked")
def test_killed_and_taken_up_again(tmp_path: Path) -> None:
    whole, _ = run(None)
    child = os.fork()
    if not child:
        run(tmp_path, every=1, after_step=dies_at(6, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    again, resumed = run(tmp_path, every=1)
    assert any("after 5 updates" in note for note in resumed.notes)
    assert same(weights(again), weights(whole))


def test_a_training_that_ended_is_not_done_again(tmp_path: Path) -> None:
    first, told = run(tmp_path)
    second, again = run(tmp_path, after_step=_raise)
    assert same(weights(first), weights(second))
    assert (again.stopped, again.steps, again.best_step) == ("finished", STEPS, told.best_step)
    assert plain(again) == plain(told)


def test_a_stream_goes_on_where_it_was(tmp_path: Path) -> None:
    def opener() -> Iterator[dict[str, Any]]:
        for _ in range(4):
            x = torch.randn(6, 6).numpy()  # from the default generator
            yield {"x": x, "y": np.arange(6) % 3}

    def once(folder: Path | None, after_step: Callable[[], None] | None = None) -> TorchModel:
        student = model(1, dropout=0.5)
        chosen = TrainSettings(steps=7, batch_size=6, checkpoint=folder, checkpoint_every=1)
        train(
            student,
            [Hard()],
            StreamData(opener, ("x",)),
            settings=chosen,
            after_step=after_step,
        )
        return student

    whole = once(None)
    with pytest.raises(Killed):
        once(tmp_path, dies_at(6, _raise))
    assert same(weights(once(tmp_path)), weights(whole))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"learning_rate": 0.06}, "learning_rate was 0.05, is 0.06"),
        ({"steps": 20}, "steps was 9, is 20"),
        ({"augment": None}, "augment was "),
        ({"seed": 3, "clip": 2.0, "floor": 0.1, "hold": 0.0}, "and 1 more"),
    ],
)
def test_other_settings_are_another_run(tmp_path: Path, more: Any, words: str) -> None:
    run(tmp_path)
    with pytest.raises(SourceError) as caught:
        run(tmp_path, **more)
    assert words in str(caught.value) and "another run" in str(caught.value)
    assert "\n" not in str(caught.value)


def _small(folder: Path, student: TorchModel, losses: list[Any], rows: Any, **more: Any) -> Trained:
    chosen = TrainSettings(steps=2, batch_size=16, checkpoint=folder)
    return train(student, losses, rows, settings=chosen, **more)


def test_other_data_losses_teachers_and_shapes_are_another_run(tmp_path: Path) -> None:
    _small(tmp_path, model(1), [Soft()], data(), teacher=model(2))
    for losses, rows, teacher, student, words in (
        ([Soft()], data(seed=1), model(2), model(1), "data was"),
        ([Soft()], data(), model(3), model(1), "teacher was"),
        ([Soft(0.5)], data(), model(2), model(1), "loss 1 was Soft("),
        ([Soft(), Hard()], data(), model(2), model(1), "loss 2 was not there, is Hard("),
        (
            [Soft()],
            data(),
            model(2),
            model(1, width=9),
            "what the student began with was",
        ),
    ):
        with pytest.raises(SourceError) as caught:
            _small(tmp_path, student, losses, rows, teacher=teacher)
        assert words in str(caught.value)


def test_a_file_cut_anywhere_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    _small(tmp_path, model(1), [Hard()], data())
    path = tmp_path / checkpoint.NAME
    whole = path.read_bytes()
    for cut in (0, 5, 8, 100, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match="truncated"):
            _small(tmp_path, model(1), [Hard()], data())
    save_file({"student/inner.weight": torch.zeros(8, 6)}, path)
    with pytest.raises(SourceError, match="no checkpoint of a training"):
        _small(tmp_path, model(1), [Hard()], data())
    torch.save({"student": 1}, path)  # a pickle is never read
    with pytest.raises(SourceError, match="truncated, or no checkpoint"):
        _small(tmp_path, model(1), [Hard()], data())


def _altered(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["edgeopt.training"])
    tensors = load_file(path)
    change(document, tensors)
    save_file(tensors, path, {"edgeopt.training": json.dumps(document)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d, t: d["state"]["course"].pop("watch"), "where the training stood ('watch')"),
        (lambda d, t: d["state"]["course"].update(history=[{}]), "no record of a training"),
        (lambda d, t: d["state"].pop("processes"), "where the training stood"),
        (lambda d, t: d.update(format=2), "format 2"),
        (lambda d, t: d.update(fingerprint=3), "no checkpoint"),
        (lambda d, t: t.pop("student/head.bias"), "tensor head.bias was not there"),
        (lambda d, t: t.update({"optimizer/99/step": torch.ones(())}), "optimizer's 99/step"),
        (lambda d, t: t.update({"optimizer/0/exp_avg": torch.ones(7)}), "optimizer's 0/exp_avg"),
    ],
)
def test_a_file_that_does_not_add_up_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    _small(tmp_path, model(1), [Hard()], data())
    _altered(tmp_path / checkpoint.NAME, change)
    with pytest.raises(SourceError) as caught:
        _small(tmp_path, model(1), [Hard()], data())
    assert words in str(caught.value)


def test_the_folder_is_made_and_holds_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    _small(folder, model(1), [Hard()], data())
    assert [p.name for p in folder.iterdir()] == [checkpoint.NAME]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="another folder"):
        _small(blocked / "x", model(1), [Hard()], data())


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    _small(tmp_path, model(1), [Hard()], data())
    left = tmp_path / ".checkpoint.0123456789ab.tmp.safetensors"
    left.write_bytes(b"half")
    _small(tmp_path, model(1), [Hard()], data())
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.NAME]


def test_the_network_for_digits_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    from models.digits import build

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 200)
    images = rng.random((10, 1, 8, 8))[labels] + 0.1 * rng.normal(size=(200, 1, 8, 8))
    rows = ArrayData({"image": images[:160]}, {"label": labels[:160]}, classes={"label": 10})
    held = ArrayData({"image": images[160:200]}, {"label": labels[160:200]})
    spec = (InputSpec("image", "float32", ("n", 1, 8, 8)),)

    def once(folder: Path | None, after_step: Callable[[], None] | None = None) -> Any:
        student = TorchModel(build(), spec, {"image": images[:2].astype(np.float32)})
        trained = train(
            student,
            [HardLabels()],
            rows,
            settings=TrainSettings(
                steps=5, batch_size=32, learning_rate=4e-3, checkpoint=folder, checkpoint_every=2
            ),
            validation=held,
            metric=lambda o, t: float((o["output"].argmax(-1) == t["label"]).mean()),
            after_step=after_step,
        )
        return student, trained

    whole, trained = once(None)
    assert trained.history[-1].loss < 0.8 * trained.history[1].loss
    with pytest.raises(Killed):
        once(tmp_path, dies_at(4, _raise))
    again, _ = once(tmp_path)
    assert same(weights(again), weights(whole))


def test_tensors_that_share_memory_are_saved_whole(tmp_path: Path) -> None:
    one = torch.arange(6.0)
    saved = checkpoint.Checkpoint({"student": {"a": one, "b": one, "c": one[2:4]}}, {"step": 1})
    checkpoint.save(tmp_path, saved, {"k": "v"})
    back = checkpoint.load(tmp_path, {"k": "v"})
    assert back is not None and back.state == {"step": 1}
    assert all(
        torch.equal(back.tensors["student"][n], t) for n, t in saved.tensors["student"].items()
    )
    assert checkpoint.load(tmp_path / "none", {}) is None
