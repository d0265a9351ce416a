"""Masks against torch.nn.utils.prune, torch's semi-structured pattern, and sorting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt.numerics import masks

_SCORES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.integers(0, 5).map(float),  # few values: many ties
)
_RATIOS = st.floats(0, 1)


def _first_lowest(scores: np.ndarray, count: int) -> set[int]:
    flat = scores.reshape(-1)
    return set(sorted(range(flat.size), key=lambda i: (flat[i], i))[:count])


@settings(max_examples=40)
@given(_SCORES, _RATIOS)
def test_the_lowest_go_exactly_and_ties_by_index(scores: np.ndarray, ratio: float) -> None:
    pruned = ~masks.layerwise(scores, ratio)
    assert set(np.flatnonzero(pruned)) == _first_lowest(scores, round(ratio * scores.size))


@settings(max_examples=40)
@given(st.lists(_SCORES, min_size=1, max_size=4), _RATIOS)
def test_global_masks_are_those_of_one_long_vector(parts: list[np.ndarray], ratio: float) -> None:
    found = masks.globally(parts, ratio)
    assert [m.shape for m in found] == [p.shape for p in parts]
    flat = np.concatenate([p.reshape(-1) for p in parts])
    pruned = np.flatnonzero(~np.concatenate([m.reshape(-1) for m in found]))
    assert set(pruned) == _first_lowest(flat, round(ratio * flat.size))


@settings(max_examples=40)
@given(_SCORES, _RATIOS)
def test_rows_share_the_ratio_and_sum_to_it(scores: np.ndarray, ratio: float) -> None:
    pruned = ~masks.rowwise(scores, ratio)
    counts = pruned.sum(axis=1)
    assert counts.sum() == round(ratio * scores.size)
    assert counts.max() - counts.min() <= 1
    for row, gone, count in zip(scores, pruned, counts, strict=True):
        assert set(np.flatnonzero(gone)) == _first_lowest(row, count)


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_n_of_m_is_the_best_choice_of_each_group(rows: int, groups: int, data: st.DataObject):
    m = data.draw(st.integers(2, 8))
    n = data.draw(st.integers(1, m - 1))
    draw = hnp.arrays(np.float32, (rows, groups * m), elements=st.integers(0, 5).map(float))
    scores = data.draw(draw)
    kept = masks.n_of_m(scores, n, m).reshape(-1, m)
    for group, mask in zip(scores.reshape(-1, m), kept, strict=True):
        assert set(np.flatnonzero(~mask)) == _first_lowest(group, m - n)


def test_the_same_masks_as_torch_prunes() -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.utils import prune

    torch.manual_seed(0)
    layers = [torch.nn.Linear(31, 17), torch.nn.Conv2d(5, 7, 3), torch.nn.Conv1d(4, 6, 2)]
    weights = [layer.weight.detach().abs().numpy() for layer in layers]
    for ratio in (0.1, 0.5, 0.77):
        together = masks.globally([w.reshape(len(w), -1) for w in weights], ratio)
        copies = [(torch.nn.utils.skip_init(type(x), *a), "weight") for x, a in _arguments(layers)]
        for (copy, _), layer in zip(copies, layers, strict=True):
            copy.load_state_dict(layer.state_dict())
            prune.l1_unstructured(copy, "weight", ratio)
            alone = masks.layerwise(layer.weight.detach().abs().numpy(), ratio)
            assert np.array_equal(alone, copy.weight_mask.numpy() != 0)
            prune.remove(copy, "weight")
            copy.load_state_dict(layer.state_dict())
        prune.global_unstructured(copies, prune.L1Unstructured, amount=ratio)
        for (copy, _), mask in zip(copies, together, strict=True):
            assert np.array_equal(mask.reshape(copy.weight.shape), copy.weight_mask.numpy() != 0)


def _arguments(layers):  # type: ignore[no-untyped-def]
    return zip(layers, [(31, 17), (5, 7, 3), (4, 6, 2)], strict=True)


def test_2_of_4_is_what_torchs_own_sparsifier_keeps_and_its_sparse_tensors_store() -> None:
    torch = pytest.importorskip("torch")
    pruning = pytest.importorskip("torch.ao.pruning")
    stored = pytest.importorskip("torch.sparse._semi_structured_conversions")

    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    w = model[0].weight.detach().half()
    mask = torch.from_numpy(masks.n_of_m(w.float().abs().numpy(), 2, 4))
    sparsifier = pruning.WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
    )
    with torch.no_grad():
        model[0].weight.copy_(w.float())
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    assert torch.equal(mask, model[0].parametrizations.weight[0].mask != 0)
    # torch's compressed form holds two of every four: what it gives back is ours, whole
    pruned = w * mask
    values, meta = stored.sparse_semi_structured_from_dense_cutlass(pruned)
    assert values.shape == (32, 32)
    back = stored.sparse_semi_structured_to_dense_cutlass(values, meta)
    assert torch.equal(back, pruned)


def test_what_cannot_be_pruned_says_why() -> None:
    scores = np.ones((2, 27), np.float32)
    assert masks.misfit(scores.shape, 2, 4) == "27 columns are no multiple of 4"
    assert "no pattern" in masks.misfit(scores.shape, 4, 4)
    with pytest.raises(ValueError, match="27 columns"):
        masks.n_of_m(scores, 2, 4)
    scores[1, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        masks.layerwise(scores, 0.5)
    with pytest.raises(ValueError, match="not in 0"):
        masks.pruned_count(1.5, 10)
    with pytest.raises(ValueError, match="cannot be chosen"):
        masks.lowest(np.ones(3), 4)
    assert masks.globally([], 0.5) == []
