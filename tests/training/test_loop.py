"""The training loop: against a loop written by hand, and everything that ends or refuses it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tests.training.loop_nets import (  # noqa: E402
    SPECS,
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
from edgeopt.errors import InputsError, OutputError, SourceError, UsageError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.training import log  # noqa: E402
from edgeopt.training.batches import ArrayData, StreamData  # noqa: E402
from edgeopt.training.divergence import DivergenceGuard  # noqa: E402
from edgeopt.training.loop import train  # noqa: E402
from edgeopt.training.losses.base import Batch, Loss  # noqa: E402
from edgeopt.training.schedule import multiplier  # noqa: E402
from edgeopt.training.settings import TrainSettings  # noqa: E402


@pytest.fixture(autouse=True)
def _still() -> Iterator[None]:
    with one_thread():
        yield


def settings(**more: Any) -> TrainSettings:
    given: dict[str, Any] = {"steps": 8, "batch_size": 16, "learning_rate": 0.01, "log_every": 1}
    if "epochs" in more:
        del given["steps"]
    return TrainSettings(**{**given, **more})


def test_as_a_plain_torch_loop_trains() -> None:
    student, teacher = model(1), model(2, width=12)
    rows = data(50)
    chosen = settings(epochs=2, weight_decay=0.1, clip=0.5)
    by_hand = copy.deepcopy(student.module)
    trained = train(student, [Hard(0.7), Soft(0.3)], rows, teacher=teacher, settings=chosen)

    x, y = torch.from_numpy(rows.inputs["x"]), torch.from_numpy(rows.targets["y"])
    named = dict(by_hand.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named.items() if n in ("inner.weight", "head.weight")]},
            {
                "params": [p for n, p in named.items() if "bias" in n or "norm" in n],
                "weight_decay": 0.0,
            },
        ],
        weight_decay=0.1,
    )
    losses = []
    for epoch in range(2):
        for (part,) in rows.parts(16, 1, (0,), (0, epoch), 0):
            chosen_rows = torch.from_numpy(part.rows)
            ours, theirs = by_hand(x[chosen_rows])["logits"], teacher.module(x[chosen_rows])
            hard = nn.functional.cross_entropy(ours, y[chosen_rows])
            soft = nn.functional.mse_loss(ours, theirs["logits"].detach())
            loss = 0.7 * hard + 0.3 * soft
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * multiplier(len(losses), 8, 0.05, 0.45)
            optimizer.step()
            losses.append([loss.item(), hard.item(), soft.item()])
    told = [[r.loss, r.parts["hard"], r.parts["soft"]] for r in trained.history[1:]]
    assert np.allclose(told, losses, rtol=1e-5)
    for name, tensor in by_hand.state_dict().items():
        assert torch.allclose(student.module.state_dict()[name], tensor, atol=1e-6), name
    assert [r.epoch for r in trained.history][-1] == 2.0
    assert trained.stopped == "finished" and trained.steps == trained.best_step == 8


def test_accumulation_changes_nothing_but_memory() -> None:
    whole, pieces = model(1), model(1)
    train(whole, [Hard()], data(50), settings=settings())
    train(pieces, [Hard()], data(50), settings=settings(accumulation=3))
    for name, tensor in whole.module.state_dict().items():
        assert torch.allclose(pieces.module.state_dict()[name], tensor, atol=1e-5), name


def test_the_same_call_gives_the_same_weights_and_leaves_the_callers_randomness() -> None:
    def once(seed: int) -> dict[str, Any]:
        student, teacher = model(1, dropout=0.3), model(2)
        torch.rand(seed)  # what was drawn before does not matter
        before = torch.get_rng_state()
        train(student, [Hard(), Hint()], data(), teacher=teacher, settings=settings(steps=4))
        assert torch.equal(torch.get_rng_state(), before)
        return weights(student)

    assert same(once(1), once(5))
    assert not torch.are_deterministic_algorithms_enabled()


def test_modes_hooks_and_teacher_are_as_they_were(tmp_path: Path) -> None:
    student, teacher = model(1, norm=nn.BatchNorm1d), model(2, dropout=0.5, norm=nn.BatchNorm1d)
    student.module.eval()
    student.module.drop.train()
    teacher.module.train()
    kept, statistics = weights(teacher), student.module.norm.running_mean.clone()
    train(student, [Soft(), Hint()], data(), teacher=teacher, settings=settings(steps=3))
    assert same(weights(teacher), kept)
    assert not torch.equal(student.module.norm.running_mean, statistics)  # it learned in training
    assert not student.module.training and student.module.drop.training
    assert teacher.module.training
    assert not student.module.inner._forward_hooks and not teacher.module.inner._forward_hooks
    assert "forward" not in vars(student.module)


def test_the_best_weights_come_back_and_are_what_was_judged() -> None:
    train_on, held = data(60).split(0.3)
    student = model(3)
    trained = train(
        student,
        [Hard()],
        train_on,
        validation=held,
        metric=accuracy,
        settings=settings(steps=12, learning_rate=0.3, evaluate_every=2),
    )
    judged = {r.step: r.metric for r in trained.history if r.metric is not None}
    assert set(judged) == {0, 2, 4, 6, 8, 10, 12}
    assert trained.best_metric == max(judged.values())
    assert trained.best_step == next(s for s, m in judged.items() if m == trained.best_metric)
    assert held.rows is not None
    x = torch.from_numpy(held.inputs["x"][held.rows])
    with torch.no_grad():
        answers = student.module.eval()(x)["logits"].argmax(-1).numpy()
    assert float((answers == held.targets["y"][held.rows]).mean()) == trained.best_metric


def test_without_a_metric_the_loss_judges_weighed_by_rows() -> None:
    train_on, held = data(50).split(0.36)  # 18 rows: batches of 9
    student, teacher = model(3), model(4)
    trained = train(
        student,
        [Soft(2.0)],
        train_on,
        teacher=teacher,
        validation=held,
        settings=settings(epochs=1),
    )
    x = torch.from_numpy(held.inputs["x"][held.rows])
    with torch.no_grad():
        distance = nn.functional.mse_loss(
            student.module.eval()(x)["logits"], teacher.module.eval()(x)["logits"]
        )
    assert trained.best_metric == pytest.approx(2 * float(distance), rel=1e-5)
    assert trained.best_metric == min(r.metric for r in trained.history if r.metric is not None)


@pytest.mark.parametrize("falls", [True, False], ids=["falling", "level"])
def test_patience_ends_it_early(falls: bool) -> None:
    """Of weights that are judged alike the later are kept, and wait for a gain all the same."""
    train_on, held = data(40).split(0.5)
    judged = iter(range(100))
    trained = train(
        model(1),
        [Hard()],
        train_on,
        validation=held,
        metric=lambda outputs, targets: -float(next(judged)) if falls else 1.0,
        settings=settings(steps=50, evaluate_every=2, patience=3),
    )
    assert (trained.stopped, trained.steps, trained.best_step) == ("early", 6, 0 if falls else 6)
    assert "3 evaluations brought no gain" in trained.notes[-1]


class Blows(Hard):
    """Becomes NaN at its fifth call in training."""

    calls = 0

    def forward(self, batch: Batch) -> Any:
        self.calls += self.training
        return super().forward(batch) * (float("nan") if self.calls == 5 else 1.0)


@pytest.mark.parametrize("held_out", [True, False])
def test_a_loss_that_diverges_stops_and_keeps_the_best(held_out: bool) -> None:
    train_on, held = data(60).split(0.3)
    student = model(1)
    trained = train(
        student,
        [Blows()],
        train_on,
        validation=held if held_out else None,
        metric=accuracy if held_out else None,
        settings=settings(steps=50, evaluate_every=2),
    )
    assert (trained.stopped, trained.steps) == ("diverged", 4)
    assert trained.history[-1].loss != trained.history[-1].loss
    assert "the loss is nan; kept the weights after" in trained.notes[-1]
    assert all(torch.isfinite(t).all() for t in weights(student).values())
    shorter = model(1)
    again = train(
        shorter,
        [Hard()],
        train_on,
        settings=settings(steps=50, evaluate_every=2),
        after_step=None,
        progress=_stop_at(trained.best_step),
    )
    assert again.stopped == "interrupted"
    assert same(weights(shorter), weights(student))


def _stop_at(step: int) -> Any:
    def progress(text: str, share: float | None) -> None:
        if text.startswith(f"step {step}/"):
            raise KeyboardInterrupt

    return progress


def test_what_counts_as_divergence() -> None:
    watch = DivergenceGuard(factor=2.0, patience=3, settling=2)
    assert not any(watch.diverged(loss) for loss in (1.0, 3.0, 6.5, 6.5, 5.0, 6.5, 6.5))
    assert "above 2 times the first ones (3)" in watch.diverged(7.0)
    assert "inf" in DivergenceGuard(2.0, 1).diverged(float("inf"))
    assert "gradient" in DivergenceGuard(2.0, 1).diverged(1.0, float("nan"))
    assert not DivergenceGuard(2.0, 1).diverged(1.0, None)


def test_a_student_that_begins_as_good_as_its_teacher_has_not_diverged() -> None:
    watch = DivergenceGuard(factor=10.0, patience=3)
    assert not any(watch.diverged(loss) for loss in [1e-12] * 20 + [1e-3] * 20)
    assert any(watch.diverged(loss) for loss in [1.0] * 3)


def test_pruned_weights_stay_zero() -> None:
    student = model(1)
    mask = torch.rand(8, 6) > 0.5

    def keep() -> None:
        with torch.no_grad():
            student.module.inner.weight.mul_(mask)

    keep()
    train(student, [Hard()], data(), settings=settings(), after_step=keep)
    assert not student.module.inner.weight[~mask].any()
    assert student.module.inner.weight[mask].all()


def test_progress_and_log_say_how_it_goes(tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    path = tmp_path / "log.jsonl"
    path.write_text("of another run\n")
    train_on, held = data(40).split(0.5)
    trained = train(
        model(1),
        [Hard(), Hard(0.5)],
        train_on,
        validation=held,
        metric=accuracy,
        settings=settings(),
        log=path,
        progress=lambda text, share: told.append((text, share)),
    )
    assert log.read(path) == trained.history
    assert set(trained.history[1].parts) == {"hard", "hard 2"}
    assert [share for _, share in told] == [step / 8 for step in range(1, 9)]
    assert told[3][0].startswith("step 4/8, loss ") and ", metric 0." in told[3][0]
    assert told[3][0].endswith(" left")


def test_augmentation_sees_its_own_randomness() -> None:
    seen: list[float] = []

    def noisy(inputs: Mapping[str, Any], rng: np.random.Generator) -> Mapping[str, Any]:
        seen.append(float(rng.random()))
        return {name: array + 1 for name, array in inputs.items()}

    plain, changed = model(1), model(1)
    train(plain, [Hard()], data(), settings=settings(steps=2))
    train(changed, [Hard()], data(), settings=settings(steps=2, augment=noisy))
    assert not same(weights(plain), weights(changed))
    assert len(set(seen)) == 2


def test_streams_go_round_and_run_out() -> None:
    batches = [{"x": np.ones((4, 6), np.float32) * i, "y": np.zeros(4, int)} for i in range(3)]
    stream = StreamData(lambda: iter(batches), ("x",), "gen")
    trained = train(model(1), [Hard()], stream, settings=settings(steps=7))
    assert [r.epoch for r in trained.history] == [0, 0, 0, 0, 1, 1, 1, 2]
    with pytest.raises(UsageError, match="give steps"):
        train(model(1), [Hard()], stream, settings=settings(epochs=1))
    bound = replace(stream, batches=3)
    assert train(model(1), [Hard()], bound, settings=settings(epochs=2)).steps == 6
    runs = iter(range(4))  # opened to check, to prepare, for one pass, and then no more
    once = StreamData(lambda: iter(batches if next(runs) < 3 else []), ("x",), "gen")
    with pytest.raises(InputsError, match="gen ran out: pass 2 yields no batch, and 5 updates"):
        train(model(1), [Hard()], once, settings=settings())


def frozen() -> TorchModel:
    made = model(1)
    made.module.requires_grad_(False)
    return made


class Constant(Loss):
    kind = "constant"

    def __init__(self) -> None:
        super().__init__(needs_teacher=False)

    def forward(self, batch: Batch) -> Any:
        return torch.ones(())


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: train(model(), [], data(), settings=settings()), UsageError, "no loss"),
        (lambda: train(model(), [Soft()], data(), settings=settings()), UsageError, "loss soft"),
        (
            lambda: train(model(), [Hard()], data(), settings=settings(patience=1)),
            UsageError,
            "validate",
        ),
        (
            lambda: train(
                model(), [Hard()], data(), settings=settings(precision="bf16", device="cpu")
            ),
            UsageError,
            "precision bf16 needs a GPU",
        ),
        (
            lambda: train(
                model(), [Hard()], data(), settings=settings(cache_teacher=Path("/nowhere"))
            ),
            UsageError,
            "no teacher",
        ),
        (
            lambda: train(
                model(),
                [Soft()],
                data(),
                teacher=replace(model(), inputs=(InputSpec("ids", "int64", ("n",)),)),
                settings=settings(),
            ),
            SourceError,
            "the teacher takes ids, the student only x",
        ),
        (lambda: train(frozen(), [Hard()], data(), settings=settings()), UsageError, "unfreeze"),
        (
            lambda: train(model(), [Constant()], data(), settings=settings()),
            UsageError,
            "no loss depends",
        ),
        (
            lambda: train(
                model(),
                [Hard()],
                ArrayData({"x": np.full((4, 6), np.nan, np.float32)}, {"y": np.zeros(4, int)}),
                settings=settings(),
            ),
            InputsError,
            "sample 0: input x holds NaN",
        ),
        (
            lambda: train(
                model(), [Hard()], data(), settings=settings(), log=Path("/no/such/folder/log")
            ),
            OutputError,
            "does not exist",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(call: Any, kind: Any, words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batch_normalization_of_single_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="from 1 row at a time; give a larger batch_size"):
        train(
            model(norm=nn.BatchNorm1d), [Hard()], data(3), settings=settings(steps=1, batch_size=1)
        )


def test_teacher_and_student_are_two_modules() -> None:
    one = model(1)
    with pytest.raises(UsageError, match="one and the same"):
        train(one, [Soft()], data(), teacher=one, settings=settings())


def test_a_metric_of_answers_that_change_their_shape_is_refused() -> None:
    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Any) -> Any:
            return {"logits": x * self.scale}

    class Mean(Constant):
        def forward(self, batch: Batch) -> Any:
            return batch.student["logits"].mean()

    spec = (replace(SPECS[0], shape=("n", "tokens")),)
    student = TorchModel(Echo(), spec, {"x": np.zeros((2, 3), np.float32)})
    ragged = StreamData(lambda: iter({"x": np.ones((2, n), np.float32)} for n in (3, 4)), ("x",))
    with pytest.raises(InputsError, match="logits changes its shape"):
        train(
            student,
            [Mean()],
            ragged,
            validation=ragged,
            metric=lambda outputs, targets: 0.0,
            settings=settings(),
        )
    assert train(student, [Mean()], ragged, validation=ragged, settings=settings(steps=1)).steps
