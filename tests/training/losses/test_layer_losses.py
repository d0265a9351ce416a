"""Losses over inner layers, against the papers' formulas written out, and by gradcheck."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from edgeopt.errors import InputsError
from edgeopt.training.hidden_states import captured
from edgeopt.training.layer_pairs import Pair
from edgeopt.training.losses import Batch
from edgeopt.training.losses.attention import Attention
from edgeopt.training.losses.hints import Hints

PAIR = Pair("theirs", "ours")


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _batch(ours, theirs, mask=None) -> Batch:
    feed = {} if mask is None else {"attention_mask": mask}
    return Batch({}, feed=feed, student_hidden={"ours": ours}, teacher_hidden={"theirs": theirs})


def _prepared(loss, batch):
    loss.prepare(batch)
    return loss


# --- hints ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 4), (3, 4, 5, 6), (2, 3, 4, 2, 2)])
def test_hints_of_one_shape_are_torch_mse_and_learn_nothing_of_their_own(shape):
    batch = _batch(_random(*shape), _random(*shape, seed=1))
    loss = _prepared(Hints(pairs=[PAIR]), batch)
    assert not list(loss.parameters())
    torch.testing.assert_close(
        loss(batch), F.mse_loss(batch.student_hidden["ours"], batch.teacher_hidden["theirs"])
    )


def test_hints_of_maps_go_through_a_1x1_convolution_and_pooling():
    ours, theirs = _random(2, 3, 8, 6), _random(2, 5, 4, 6, seed=1)
    batch = _batch(ours, theirs)
    loss = _prepared(Hints(pairs=[PAIR]), batch)
    weight, bias = loss.maps["0"].weight, loss.maps["0"].bias
    assert weight.shape == (5, 3)
    pooled = F.avg_pool2d(ours, (2, 1))
    wanted = F.mse_loss(F.conv2d(pooled, weight[:, :, None, None], bias), theirs)
    torch.testing.assert_close(loss(batch), wanted)


def test_hints_of_tokens_leave_padding_out():
    ours, theirs = _random(2, 4, 3), _random(2, 4, 6, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]])
    batch = _batch(ours, theirs, mask)
    loss = _prepared(Hints(pairs=[PAIR]), batch)
    wanted = F.mse_loss(F.linear(ours, *loss.maps["0"].parameters())[mask == 1], theirs[mask == 1])
    torch.testing.assert_close(loss(batch), wanted)
    ours[mask == 0] = torch.nan
    assert loss(batch) == wanted


def test_maps_are_drawn_from_their_own_seed_and_learned():
    batch = _batch(_random(3, 4), _random(3, 6, seed=1))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (_prepared(Hints(pairs=[PAIR], seed=s), batch) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.maps["0"].weight, again.maps["0"].weight)
    assert not torch.equal(first.maps["0"].weight, other.maps["0"].weight)
    first(batch).backward()
    assert first.maps["0"].weight.grad.abs().sum() > 0
    again.load_state_dict(other.state_dict())
    assert again(batch) == other(batch)


def test_hints_are_the_mean_over_pairs():
    student = {"a": _random(2, 3), "b": _random(2, 3, seed=1)}
    teacher = {"c": _random(2, 3, seed=2)}
    batch = Batch({}, student_hidden=student, teacher_hidden=teacher)
    loss = Hints(pairs=[Pair("c", "a"), Pair("c", "b")])
    assert (loss.student_layers, loss.teacher_layers) == (("a", "b"), ("c",))
    loss.prepare(batch)
    wanted = (F.mse_loss(student["a"], teacher["c"]) + F.mse_loss(student["b"], teacher["c"])) / 2
    torch.testing.assert_close(loss(batch), wanted)


# --- attention ------------------------------------------------------------------------------------


def test_attention_maps_are_the_papers():
    ours, theirs = _random(3, 4, 6, 6), _random(3, 9, 6, 6, seed=1)
    total = 0.0
    for i in range(3):
        maps = [t[i].pow(2).sum(0).flatten() for t in (ours, theirs)]
        total += (maps[0] / maps[0].norm() - maps[1] / maps[1].norm()).pow(2).sum()
    torch.testing.assert_close(Attention(pairs=[PAIR])(_batch(ours, theirs)), total / 3)


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.floats(0.1, 9))
def test_attention_maps_are_blind_to_scale_and_to_the_order_of_channels(rows, wide, size, scale):
    theirs = _random(rows, wide, size, size)
    loss = Attention(pairs=[PAIR])
    assert loss(_batch(theirs.flip(1) * scale, theirs)).abs() < 1e-12
    assert 0 <= loss(_batch(_random(rows, 2, size, size, seed=1), theirs)) <= 2


def _relations_by_hand(ours, theirs, mask, heads):
    total, count = 0.0, 0
    for row in range(len(ours)):
        kept = mask[row] == 1
        for head in range(heads):
            logs = []
            for tokens in (ours[row][kept], theirs[row][kept]):
                width = tokens.shape[1] // heads
                part = tokens[:, head * width : (head + 1) * width]
                logs.append(F.log_softmax(part @ part.T / width**0.5, -1))
            total += F.kl_div(logs[0], logs[1], reduction="sum", log_target=True) / heads
        count += int(kept.sum())
    return total / count


def test_relations_are_those_among_tokens_that_are_no_padding():
    ours, theirs = _random(2, 5, 6), _random(2, 5, 12, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]])
    loss = Attention(pairs=[PAIR], heads=4)  # 3 is the most that divides 6 and 12
    wanted = _relations_by_hand(ours, theirs, mask, 3)
    torch.testing.assert_close(loss(_batch(ours, theirs, mask)), wanted)
    ours[mask == 0] = torch.nan
    ours.requires_grad_()
    got = loss(_batch(ours, theirs, mask))
    torch.testing.assert_close(got, wanted)
    got.backward()
    assert ours.grad.isfinite().all() and ours.grad[mask == 0].abs().sum() == 0


def test_a_row_that_is_all_padding_spoils_nothing():
    ours, theirs = _random(2, 3, 4), _random(2, 3, 4, seed=1)
    loss = Attention(pairs=[PAIR])
    alone = loss(_batch(ours[:1], theirs[:1]))
    ours.requires_grad_()
    got = loss(_batch(ours, theirs, torch.tensor([[1, 1, 1], [0, 0, 0]])))
    torch.testing.assert_close(got, alone)
    got.backward()
    assert ours.grad.isfinite().all()


def test_relations_of_equals_are_zero_and_nan_stays():
    tokens = _random(2, 3, 4)
    loss = Attention(pairs=[PAIR])
    assert loss(_batch(tokens, tokens)).abs() < 1e-12
    broken = tokens.clone()
    broken[0, 0, 0] = torch.nan
    assert loss(_batch(broken, tokens)).isnan() and loss(_batch(tokens, broken)).isnan()


# --- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Hints, Attention])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 2, 2)])
def test_gradients_are_right(kind, shape):
    ours, theirs = _random(*shape).requires_grad_(), _random(2, *shape[1:], seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    loss = _prepared(kind(pairs=[PAIR]), _batch(ours, theirs, mask))
    assert torch.autograd.gradcheck(lambda s: loss(_batch(s, theirs, mask)), (ours,))


def test_gradients_of_the_maps_are_right():
    batch = _batch(_random(2, 3), _random(2, 4, seed=1))
    loss = _prepared(Hints(pairs=[PAIR]), batch)
    names, tensors = zip(*loss.named_parameters(), strict=True)

    def value(*given):
        return torch.func.functional_call(loss, dict(zip(names, given, strict=True)), (batch,))

    assert torch.autograd.gradcheck(value, tensors)


@pytest.mark.parametrize("kind", [Hints, Attention])
@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        ((2, 3), (2, 3, 4), r"student layer ours gives \[2, 3\], teacher layer theirs \[2, 3, 4\]"),
        ((2, 3, 4), (3, 3, 4), r"\[2, 3, 4\], teacher layer theirs \[3, 3, 4\]"),
    ],
)
def test_layers_of_another_kind_are_refused(kind, ours, theirs, told):
    with pytest.raises(InputsError, match=told):
        _prepared(kind(pairs=[PAIR]), _batch(_random(*ours), _random(*theirs)))(
            _batch(_random(*ours), _random(*theirs))
        )


def test_layers_that_only_attention_or_only_hints_refuse():
    with pytest.raises(InputsError, match="as many tokens"):
        Attention(pairs=[PAIR])(_batch(_random(2, 3), _random(2, 3)))
    loss = _prepared(Hints(pairs=[PAIR]), _batch(_random(2, 3), _random(2, 4)))
    with pytest.raises(InputsError, match=r"features \[2, 4\].*\[2, 5\].*first batch"):
        loss(_batch(_random(2, 3), _random(2, 5)))
    with pytest.raises(InputsError, match="6 axes are not known"):
        Hints(pairs=[PAIR]).prepare(_batch(_random(1, 1, 1, 1, 1, 2), _random(1, 1, 1, 1, 1, 1)))


@pytest.mark.parametrize("kind", [Hints, Attention])
def test_a_layer_that_did_not_run_is_named(kind):
    with pytest.raises(InputsError, match="teacher layer theirs did not run"):
        kind(pairs=[PAIR])(Batch({}, student_hidden={"ours": _random(2, 3)}))
    with pytest.raises(InputsError, match="has no layers to compare"):
        kind()(Batch({}))


def test_layers_are_proposed_or_given():
    def net(depth):
        blocks = [nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()) for _ in range(depth)]
        return nn.Sequential(*blocks)

    for loss in (Hints(), Attention()):
        loss.choose_layers(net(4), net(2))
        assert loss.pairs == (Pair("1", "0"), Pair("3", "1"))
        loss.choose_layers(net(4), net(2), [Pair("0", "0")])
        assert (loss.teacher_layers, loss.student_layers) == (("0",), ("0",))
        loss.choose_layers(net(4), net(2))  # those that were given before stay
        assert loss.pairs == (Pair("0", "0"),)


def test_a_student_comes_to_see_as_its_teacher_does():
    def net(width):
        def stage(taken, given):
            return nn.Sequential(nn.Conv2d(taken, given, 3, padding=1), nn.Tanh())

        torch.manual_seed(width)
        return nn.Sequential(stage(1, width), stage(width, width), nn.Flatten(1))

    teacher, student = net(6), net(3)
    images = torch.randn(8, 1, 4, 4)
    losses = [Hints(), Attention()]
    for loss in losses:
        loss.choose_layers(teacher, student)
    watched = (losses[0].student_layers, losses[0].teacher_layers)
    with captured(student, watched[0]) as ours, captured(teacher, watched[1]) as theirs:

        def values():
            teacher(images), student(images)
            return [loss(Batch({}, student_hidden=ours, teacher_hidden=theirs)) for loss in losses]

        teacher(images), student(images)
        losses[0].prepare(Batch({}, student_hidden=ours, teacher_hidden=theirs))
        before = values()
        learned = [*student.parameters(), *losses[0].parameters()]
        optimizer = torch.optim.Adam(learned, lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            sum(values()).backward()
            optimizer.step()
        after = values()
    assert all(b < 0.5 * a for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in teacher.parameters())
