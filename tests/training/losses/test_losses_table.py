"""Losses by name: the command line's grammar, and what is chosen for a task."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeopt.errors import InputsError, UsageError
from edgeopt.training.losses import LOSSES, Batch, parse_losses
from edgeopt.training.losses.choice import KINDS, default_losses, kind_of


def test_the_grammar():
    soft, hard, hints = parse_losses(["soft=0.9,T=2.5", "hard = 0.1, target=label", "hints"])
    assert (soft.name, soft.weight, soft.temperature) == ("soft", 0.9, 2.5)
    assert (hard.weight, hard.target, hard.needs_teacher, hard.needs_targets) == (
        0.1,
        "label",
        False,
        True,
    )
    assert (hints.name, hints.weight, hints.needs_teacher) == ("hints", 1.0, True)
    (text,) = parse_losses(["next_token=1,T=2,kl=0,ce=1"])
    assert (text.kl, text.ce, text.needs_teacher) == (0.0, 1.0, False)
    (boxes,) = parse_losses(["mse,against=targets"])
    assert (boxes.name, boxes.needs_teacher, boxes.needs_targets) == ("mse-targets", False, True)
    assert "soft" in repr(soft) and "0.9" in repr(soft)


def test_two_of_a_kind_are_told_apart_by_their_outputs():
    names = [loss.name for loss in parse_losses(["mse,output=a", "mse=2,output=b", "soft"])]
    assert names == ["mse:a", "mse:b", "soft"]
    with pytest.raises(UsageError, match="--loss mse is given twice"):
        parse_losses(["mse", "mse=2"])
    with pytest.raises(UsageError, match="--loss mse:a is given twice"):
        parse_losses(["mse,output=a", "mse,output=a"])


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("sofd=1", "no loss 'sofd'; is soft meant"),
        ("xyzzy", "no loss 'xyzzy'; there are soft, hard, hints, attention, cosine, mse and 1"),
        ("", "no loss ''"),
        ("soft=0", "the weight '0' is no finite number above 0"),
        ("soft=-1", "the weight '-1'"),
        ("soft=nan", "the weight 'nan'"),
        ("soft=inf", "the weight 'inf'"),
        ("soft=", "the weight ''"),
        ("soft=1,t=4", "soft has no option 't'; there are T, output"),
        ("hard,T=4", "hard has no option 'T'; there are output, target"),
        ("soft,T=4,T=5", "T is given twice"),
        ("soft,T=0", "T=0 is not a finite number above 0"),
        ("soft,T=hot", "T=hot is not a number"),
        ("soft,T", "T= is not a number"),
        ("soft,output=", "output= is not a name"),
        ("cosine,similarity=-1", "similarity=-1 is not a finite number, 0 or above"),
        ("attention,heads=0", "heads=0 is not a whole number, 1 or above"),
        ("mse,against=me", "against=me is not teacher or targets"),
    ],
)
def test_what_cannot_be_read_is_refused(spec, told):
    with pytest.raises(UsageError) as caught:
        parse_losses([spec])
    assert told in str(caught.value) and f"--loss {spec}" in str(caught.value)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_made_by_name_alone(name):
    (loss,) = parse_losses([f"{name}=0.5"])
    assert (loss.name, loss.weight) == (name, 0.5)
    assert loss.needs_teacher or loss.needs_targets
    assert loss.prepare is not None and (type(loss).__doc__ or "").strip()


def _outputs(**shapes):
    return {name: torch.randn(shape) for name, shape in shapes.items()}


CHOSEN = [
    ("classifier", {"logits": (4, 10)}, {"label": torch.tensor([0, 1, 2, 9])}, ["soft", "hard"]),
    ("classifier", {"output": (4, 10)}, {}, ["soft"]),
    ("embedder", {"token_embeddings": (4, 3, 8), "sentence_embedding": (4, 8)}, {}, ["cosine"]),
    ("embedder", {"last_hidden_state": (4, 3, 8), "pooler_output": (4, 8)}, {}, ["cosine"]),
    ("regressor", {"output": (4, 1)}, {"y": torch.randn(4)}, ["mse", "mse-targets"]),
    ("regressor", {"output": (4,)}, {}, ["mse"]),
    ("other", {"boxes": (4, 5, 4), "scores": (4, 5)}, {}, ["mse:boxes", "mse:scores"]),
]


@pytest.mark.parametrize(("kind", "shapes", "targets", "names"), CHOSEN)
def test_a_choice_suits_the_task_and_can_be_computed(kind, shapes, targets, names):
    student, teacher = _outputs(**shapes), _outputs(**shapes)
    assert kind_of(nn.Linear(1, 1), student, targets) == kind
    losses, reason = default_losses(student, teacher, targets, kind)
    assert [loss.name for loss in losses] == names
    assert kind.partition("-")[0] in reason and "\n" not in reason
    total = sum(loss.weight * loss(Batch(student, teacher, targets)) for loss in losses)
    assert total.isfinite() and total > 0
    assert sum(loss.weight for loss in losses) == pytest.approx(1)


def test_a_language_model_is_known_by_its_class():
    class TinyForCausalLM(nn.Module): ...

    outputs = _outputs(logits=(2, 4, 9))
    assert kind_of(TinyForCausalLM(), outputs) == "causal-lm"
    (loss,), reason = default_losses(outputs, outputs, {}, "causal-lm")
    assert (loss.name, "language model" in reason) == ("next_token", True)


@pytest.mark.parametrize(
    ("name", "last", "kind"),
    [
        ("TinyForSequenceClassification", 1, "regressor"),
        ("TinyForSequenceClassification", 3, "classifier"),
        ("TinyForTokenClassification", 3, "classifier"),
        ("GPTTinyLMHeadModel", 9, "causal-lm"),
    ],
)
def test_other_classes_that_tell(name, last, kind):
    module = type(name, (nn.Module,), {})()
    assert kind_of(module, _outputs(logits=(2, last))) == kind


def test_choices_that_cannot_be_made():
    with pytest.raises(UsageError, match="no task 'clasifier'; is classifier meant"):
        default_losses({}, {}, {}, "clasifier")
    for kind in KINDS:
        with pytest.raises(InputsError, match=r"output a is \[2, 3\].*output b is \[2, 4\]"):
            default_losses(_outputs(a=(2, 3)), _outputs(b=(2, 4)), {}, kind)
        with pytest.raises(InputsError, match="gives a, b, the teacher c, d: no output that both"):
            default_losses(_outputs(a=(2,), b=(2,)), _outputs(c=(2,), d=(2,)), {}, kind)
