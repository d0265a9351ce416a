"""Losses over outputs, against torch's own functions written out, and by gradcheck."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from edgeopt.errors import InputsError, UsageError
from edgeopt.training.losses import Batch
from edgeopt.training.losses.cosine import Cosine
from edgeopt.training.losses.hard_labels import HardLabels
from edgeopt.training.losses.mse import MeanSquared
from edgeopt.training.losses.next_token import NextToken
from edgeopt.training.losses.soft_labels import SoftLabels

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(2, 7))


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _batch(student, teacher=None, name="logits", **more) -> Batch:
    return Batch({name: student}, {} if teacher is None else {name: teacher}, **more)


def _mask(rows: int, tokens: int) -> torch.Tensor:
    """Row i lacks its last i tokens, but never its first two."""
    lengths = (tokens - torch.arange(rows)).clamp(min=min(2, tokens))
    return (torch.arange(tokens)[None] < lengths[:, None]).long()


def _gradient(loss, student, teacher, **more) -> torch.Tensor:
    student = student.clone().requires_grad_()
    loss(_batch(student, teacher, **more)).backward()
    return student.grad


# --- soft labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_labels_are_torch_kl_div_times_t_squared(temperature):
    student, teacher = _random(6, 5), _random(6, 5, seed=1)
    wanted = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.softmax(teacher / temperature, 1),
        reduction="batchmean",
    )
    got = SoftLabels(temperature=temperature)(_batch(student, teacher))
    torch.testing.assert_close(got, wanted * temperature**2)


@settings(max_examples=25)
@given(SHAPES, st.integers(0, 99))
def test_soft_labels_of_tokens_are_the_mean_over_those_that_are_no_padding(shape, seed):
    student, teacher = _random(*shape, seed=seed), _random(*shape, seed=seed + 100)
    mask = _mask(*shape[:2])
    loss = SoftLabels(temperature=2.0)
    got = loss(_batch(student, teacher, feed={"attention_mask": mask}))
    by_hand = [
        loss(_batch(student[i, j][None], teacher[i, j][None])) for i, j in mask.nonzero().tolist()
    ]
    torch.testing.assert_close(got, torch.stack(by_hand).mean())
    student[mask == 0] = torch.nan  # padding is never looked at
    assert loss(_batch(student, teacher, feed={"attention_mask": mask})) == got


@settings(max_examples=20)
@given(st.integers(1, 5), st.integers(2, 6), st.floats(0.5, 8), st.integers(0, 99))
def test_soft_labels_are_zero_for_equals_and_above_for_others(rows, classes, temperature, seed):
    teacher = _random(rows, classes, seed=seed)
    loss = SoftLabels(temperature=temperature)
    shifted = teacher + 3.0  # the same shares
    assert loss(_batch(shifted, teacher)).abs() < 1e-9
    assert loss(_batch(teacher + _random(rows, classes, seed=seed + 1), teacher)) > 1e-9


def test_temperature_squared_keeps_the_size_of_gradients():
    # At high T the gradient tends to (student - teacher) / classes over rows, both centred
    # (Hinton et al. 2015, equation 4), whatever T is.
    student, teacher = _random(3, 4), _random(3, 4, seed=1)
    centred = [t - t.mean(1, keepdim=True) for t in (student, teacher)]
    limit = (centred[0] - centred[1]) / (4 * 3)
    for temperature in (200.0, 2000.0):
        got = _gradient(SoftLabels(temperature=temperature), student, teacher)
        torch.testing.assert_close(got, limit, rtol=0.05, atol=1e-3)


def test_soft_labels_have_classes_on_axis_one_of_maps():
    student, teacher = _random(2, 3, 4, 5), _random(2, 3, 4, 5, seed=1)
    rows = [t.permute(0, 2, 3, 1).reshape(-1, 3) for t in (student, teacher)]
    loss = SoftLabels()
    torch.testing.assert_close(loss(_batch(student, teacher)), loss(_batch(*rows)))


def test_a_class_that_is_ruled_out_adds_nothing_and_nan_stays():
    student, teacher = _random(2, 3), _random(2, 3, seed=1)
    without = SoftLabels()(_batch(student, teacher))
    out = torch.full((2, 1), -torch.inf, dtype=torch.float64)
    both = [torch.cat([t, out], 1).requires_grad_() for t in (student, teacher)]
    got = SoftLabels()(_batch(*both))
    torch.testing.assert_close(got, without)
    got.backward()
    assert both[0].grad.isfinite().all()
    for broken in range(2):
        pair = [student.clone(), teacher.clone()]
        pair[broken][0, 0] = torch.nan
        assert SoftLabels()(_batch(*pair)).isnan()


def test_one_logit_has_no_soft_labels():
    with pytest.raises(InputsError, match=r"two classes or more.*\[4, 1\]; use mse"):
        SoftLabels()(_batch(_random(4, 1), _random(4, 1)))


# --- hard labels ----------------------------------------------------------------------------------


def test_hard_labels_are_torch_cross_entropy():
    logits, labels = _random(6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    for given_ in (labels, labels.int(), labels[:, None], labels.double()):
        got = HardLabels()(_batch(logits, targets={"label": given_}))
        torch.testing.assert_close(got, F.cross_entropy(logits, labels))
    maps, pixels = _random(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    got = HardLabels()(_batch(maps, targets={"y": pixels}))
    torch.testing.assert_close(got, F.cross_entropy(maps, pixels))


def test_hard_labels_of_pixels_may_have_an_axis_of_one():
    logits, labels = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6))
    expected = F.cross_entropy(logits, labels)
    for labels_ in (labels, labels[:, None]):
        found = HardLabels()(Batch({"output": logits}, targets={"labels": labels_}))
        torch.testing.assert_close(found, expected)


def test_hard_labels_of_tokens_leave_out_padding_and_minus_100():
    logits, labels = _random(2, 4, 3), torch.tensor([[0, 1, 2, 2], [-100, 0, 1, 7]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])  # the 7 is padding
    got = HardLabels()(_batch(logits, targets={"labels": labels}, feed={"attention_mask": mask}))
    counted = (mask == 1) & (labels != -100)
    torch.testing.assert_close(got, F.cross_entropy(logits[counted], labels[counted]))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.tensor([0, 5]), "label 5; the model has 5 classes.*0 to 4"),
        (torch.tensor([-1, 0]), "label -1"),
        (torch.tensor([-100, 0]), "label -100"),
        (torch.tensor([0.5, 0.0]), "label 0.5"),
        (torch.tensor([torch.nan, 0.0]), "label nan"),
        (torch.tensor([0, 1, 2]), r"label is \[3\], output logits is \[2, 5\]"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels, told):
    with pytest.raises(InputsError, match=told):
        HardLabels()(_batch(_random(2, 5), targets={"label": labels}))


def test_no_label_left_is_refused():
    labels = torch.full((2, 3), -100)
    with pytest.raises(InputsError, match="-100 throughout"):
        HardLabels()(_batch(_random(2, 3, 4), targets={"labels": labels}))


# --- mean squared error and cosine ----------------------------------------------------------------


def test_mse_is_torch_mse_against_either():
    student, teacher = _random(6, 3), _random(6, 3, seed=1)
    got = MeanSquared()(_batch(student, teacher, "price"))
    torch.testing.assert_close(got, F.mse_loss(student, teacher))
    targets = {"y": _random(6, seed=2).float()}
    got = MeanSquared(against="targets")(_batch(student[:, :1], None, "price", targets=targets))
    torch.testing.assert_close(got, F.mse_loss(student[:, 0], targets["y"].double()))
    with pytest.raises(InputsError, match=r"y is \[6\], output price is \[6, 3\]"):
        MeanSquared(against="targets")(_batch(student, None, "price", targets=targets))


def test_cosine_is_torch_cosine_similarity():
    student, teacher = _random(6, 8), _random(6, 8, seed=1)
    batch = _batch(student, teacher, "sentence_embedding")
    wanted = 1 - F.cosine_similarity(student, teacher).mean()
    torch.testing.assert_close(Cosine()(batch), wanted)
    ours, theirs = (F.cosine_similarity(t[:, None], t[None], dim=-1) for t in (student, teacher))
    got = Cosine(similarity=2.0)(batch)
    torch.testing.assert_close(got, wanted + 2 * F.mse_loss(ours, theirs))


@settings(max_examples=15)
@given(SHAPES, st.integers(0, 99))
def test_cosine_is_blind_to_length_and_a_rotation_keeps_the_similarities(shape, seed):
    rows, _, width = shape
    teacher = _random(rows, width, seed=seed)
    assert Cosine()(_batch(teacher * 7, teacher)).abs() < 1e-12
    rotation, _ = torch.linalg.qr(_random(width, width, seed=seed + 1))
    turned = _batch(teacher @ rotation, teacher)
    pointwise = Cosine()(turned)
    torch.testing.assert_close(Cosine(similarity=5.0)(turned), pointwise)


@pytest.mark.parametrize("loss", [MeanSquared(), Cosine(similarity=3.0)], ids=["mse", "cosine"])
def test_padding_changes_neither(loss):
    student, teacher = _random(2, 3, 4), _random(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    got = loss(_batch(student, teacher, "last_hidden_state", feed={"attention_mask": mask}))
    padded = torch.cat([student, torch.full((2, 2, 4), torch.nan, dtype=torch.float64)], 1)
    longer = torch.cat([teacher, _random(2, 2, 4, seed=2)], 1)
    mask = F.pad(mask, (0, 2))
    again = loss(_batch(padded, longer, "last_hidden_state", feed={"attention_mask": mask}))
    assert again == got


# --- next token -----------------------------------------------------------------------------------


def _texts(logits, teacher=None, ids=None, mask=None, **more):
    feed = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
    return _batch(logits, teacher, feed=feed, **more)


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(2, 5), st.integers(2, 6), st.integers(0, 99))
def test_next_token_written_out_position_by_position(rows, tokens, vocabulary, seed):
    student, teacher = (_random(rows, tokens, vocabulary, seed=seed + i) for i in (0, 100))
    ids = torch.randint(
        0, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed)
    )
    mask = _mask(rows, tokens)
    kl, ce = [], []
    for i in range(rows):
        for j in range(tokens - 1):
            if mask[i, j] and mask[i, j + 1]:
                ours = F.log_softmax(student[i, j] / 2, 0)
                kl.append(F.kl_div(ours, F.softmax(teacher[i, j] / 2, 0), reduction="sum") * 4)
                ce.append(F.cross_entropy(student[i, j][None], ids[i, j + 1][None]))
    batch = _texts(student, teacher, ids, mask)
    got = NextToken(temperature=2.0, kl=0.5, ce=2.0)(batch)
    torch.testing.assert_close(got, 0.5 * torch.stack(kl).mean() + 2 * torch.stack(ce).mean())
    alone = NextToken(kl=0, ce=1)
    assert not alone.needs_teacher
    torch.testing.assert_close(alone(_texts(student, None, ids, mask)), torch.stack(ce).mean())


def test_next_token_is_the_same_padded_on_either_side():
    student, teacher = _random(1, 4, 5), _random(1, 4, 5, seed=1)
    ids, loss = torch.tensor([[1, 2, 3, 4]]), NextToken(ce=1.0)
    plain = loss(_texts(student, teacher, ids))
    for before, after in ((0, 2), (3, 0)):
        sides = (0, 0, before, after)
        padded = loss(
            _texts(
                F.pad(student, sides, value=torch.nan),
                F.pad(teacher, sides, value=9.0),
                F.pad(ids, sides[2:], value=99),  # not even in the vocabulary
                F.pad(torch.ones_like(ids), sides[2:]),
            )
        )
        torch.testing.assert_close(padded, plain)


def test_a_prompt_counts_for_nothing():
    student, teacher = _random(1, 4, 5), _random(1, 4, 5, seed=1)
    ids = torch.tensor([[1, 2, 3, 4]])
    labels = torch.tensor([[-100, -100, 3, 4]])
    got = NextToken(ce=1.0)(_texts(student, teacher, ids, targets={"labels": labels}))
    wanted = NextToken(ce=1.0)(_texts(student[:, 1:], teacher[:, 1:], ids[:, 1:]))
    torch.testing.assert_close(got, wanted)


def test_next_token_refuses_what_it_cannot_learn_from():
    ids = torch.tensor([[1, 2], [3, 4]])
    logits = _random(2, 2, 5)
    with pytest.raises(InputsError, match="needs input_ids"):
        NextToken()(_batch(logits, logits))
    with pytest.raises(InputsError, match=r"output logits is \[2, 5\], input_ids is \[2, 2\]"):
        NextToken()(_texts(logits[:, 0], logits[:, 0], ids))
    with pytest.raises(InputsError, match="two tokens or more"):
        NextToken()(_texts(logits, logits, ids, torch.tensor([[1, 0], [1, 0]])))
    with pytest.raises(InputsError, match="input_ids holds the label 5; the model has 5"):
        NextToken(ce=1.0)(_texts(logits, logits, ids + 3))
    with pytest.raises(UsageError, match="learns nothing"):
        NextToken(kl=0)


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "batch"),
    [
        (SoftLabels(temperature=3.0), {}),
        (HardLabels(), {"targets": {"label": torch.tensor([0, 2, 1])}}),
        (MeanSquared(), {}),
        (Cosine(similarity=1.0), {}),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_gradients_are_right(loss, batch):
    student, teacher = _random(3, 4).requires_grad_(), _random(3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda s: loss(_batch(s, teacher, **batch)), (student,))


def test_gradients_of_next_token_are_right():
    student, teacher = _random(2, 3, 4).requires_grad_(), _random(2, 3, 4, seed=1)
    ids, mask = torch.tensor([[0, 1, 2], [3, 1, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    loss = NextToken(temperature=2.0, ce=0.5)
    assert torch.autograd.gradcheck(lambda s: loss(_texts(s, teacher, ids, mask)), (student,))


@pytest.mark.parametrize("loss", [SoftLabels(), MeanSquared(), Cosine()], ids=lambda v: v.name)
def test_outputs_that_differ_in_shape_are_both_named(loss):
    batch = Batch({"logits": _random(2, 10)}, {"scores": _random(2, 12)})
    with pytest.raises(InputsError) as told:
        loss(batch)
    for part in ("output logits", "[2, 10]", "output scores", "[2, 12]"):
        assert part in str(told.value)


@pytest.mark.parametrize("loss", [SoftLabels(), MeanSquared(), Cosine()], ids=lambda v: v.name)
def test_the_teacher_is_never_given_a_gradient_and_halves_are_reckoned_in_float32(loss):
    student = _random(3, 4).bfloat16().requires_grad_()
    teacher = _random(3, 4, seed=1).bfloat16().requires_grad_()
    found = loss(_batch(student, teacher))
    found.backward()
    assert found.dtype == torch.float32
    assert teacher.grad is None and student.grad is not None
    wanted = loss(_batch(student.float(), teacher.float()))
    torch.testing.assert_close(found, wanted)


def test_which_output_is_meant():
    outputs = {"a": _random(2, 3), "b": _random(2, 3, seed=1), "ids": torch.tensor([1, 2])}
    with pytest.raises(InputsError, match="outputs are a, b: choose one with output=NAME"):
        SoftLabels()(Batch(outputs, outputs))
    with pytest.raises(UsageError, match="no output bb; is b meant"):
        SoftLabels(output="bb")(Batch(outputs, outputs))
    other = {"a": outputs["b"], "b": outputs["b"]}
    assert SoftLabels(output="b")(Batch(outputs, other)) == 0
    assert SoftLabels(output="a")(Batch(outputs, other)) > 0
    with pytest.raises(InputsError, match="outputs are none of floating point"):
        SoftLabels()(Batch({"ids": outputs["ids"]}, outputs))


def test_which_target_is_meant():
    logits = {"logits": _random(2, 3)}
    ids, wrong = torch.tensor([1, 2]), torch.tensor([9, 9])
    HardLabels()(Batch(logits, targets={"weather": wrong, "label": ids}))
    HardLabels(target="weather")(Batch(logits, targets={"weather": ids, "label": wrong}))
    with pytest.raises(InputsError, match="the data has none"):
        HardLabels()(Batch(logits))
    with pytest.raises(InputsError, match=r"several \(p, q\)"):
        HardLabels()(Batch(logits, targets={"p": ids, "q": ids}))
    with pytest.raises(UsageError, match="the data has no lable; is label meant"):
        HardLabels(target="lable")(Batch(logits, targets={"label": ids}))


def test_all_padding_is_refused():
    logits = _random(2, 3, 4)
    with pytest.raises(InputsError, match="0 throughout"):
        SoftLabels()(_batch(logits, logits, feed={"attention_mask": torch.zeros(2, 3)}))
