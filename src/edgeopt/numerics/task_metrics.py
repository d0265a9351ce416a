"""How well a model does its task: accuracy, rank correlation, perplexity. Arrays in, scores out.

What is left out everywhere is a label below zero, which training code (-100) and segmentation
data (-1) use for "do not count".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["accuracy", "cosines", "negative_log_likelihoods", "ranks", "spearman"]


def accuracy(output: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """The share of right classes in each sample, ``[N]``.

    ``labels`` integers ``[N, ...]``; ``output`` scores ``[N, ..., C]`` or ``[N, C, ...]`` with
    the labels' shape otherwise, or integers of the labels' own shape, which are classes already.
    A sample without a label that counts is NaN. Raises ValueError where shapes do not fit.
    """
    classes = _classes(output, labels.shape)
    if classes is None:
        raise ValueError(
            f"an output of shape {list(output.shape)} has no classes for labels of shape "
            f"{list(labels.shape)}"
        )
    right = (classes == labels).reshape(len(labels), -1)
    counted = (labels >= 0).reshape(len(labels), -1)
    with np.errstate(invalid="ignore"):
        scores: NDArray[np.float64] = (right & counted).sum(axis=1) / counted.sum(axis=1)
    return scores


def _classes(output: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any] | None:
    if output.dtype.kind in "biu" and output.shape == shape:
        return output
    if output.ndim == len(shape) + 1:
        for axis in (-1, 1):
            if _without(output.shape, axis) == shape and output.shape[axis] > 1:
                found: NDArray[Any] = output.argmax(axis)
                # a row with NaN has no class: argmax would name the NaN
                return np.where(np.isnan(output).any(axis), -1, found)
    return None


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    shared: NDArray[np.float64] = (last - (counts - 1) / 2)[group.reshape(-1)]
    return shared


def spearman(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Rank correlation (Spearman 1904) of two vectors ``[N]``; NaN where one is constant, or
    holds NaN."""
    if np.isnan(found).any() or np.isnan(wanted).any():
        return float("nan")
    a, b = ranks(found), ranks(wanted)
    a, b = a - a.mean(), b - b.mean()
    power = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / power if power else float("nan")


def cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each pair of rows ``[N, D]``; NaN where one is all zeros."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = (a * b).sum(axis=1) / np.sqrt(
            (a * a).sum(axis=1) * (b * b).sum(axis=1)
        )
    return found


def negative_log_likelihoods(
    logits: NDArray[Any], targets: NDArray[Any], counted: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Nats of each next token that counts, flat, for one sample.

    ``logits`` ``[B, S, V]`` at position s predict ``targets`` ``[B, S]`` at s + 1; a target below
    zero does not count, nor one where ``counted`` ``[B, S]`` (an attention mask) is zero. Raises
    ValueError where shapes do not fit, or a target is no token of the vocabulary.
    """
    if logits.ndim != 3 or logits.shape[:2] != targets.shape:
        raise ValueError(
            f"logits of shape {list(logits.shape)} do not predict tokens of shape "
            f"{list(targets.shape)}; [batch, sequence, vocabulary] is needed"
        )
    wanted = targets[:, 1:].astype(np.int64)
    keep = wanted >= 0
    if counted is not None:
        keep &= counted[:, 1:] != 0
    if (wanted >= logits.shape[2]).any():
        raise ValueError(f"token {int(wanted.max())} is beyond the vocabulary of {logits.shape[2]}")
    found: list[NDArray[np.float64]] = []
    for rows, ids, kept in zip(logits[:, :-1], wanted, keep, strict=True):
        chosen = rows[kept].astype(np.float64)
        top = chosen.max(axis=-1, keepdims=True, initial=-np.inf)
        total = top[:, 0] + np.log(np.exp(chosen - top).sum(axis=-1))
        found.append(total - chosen[np.arange(len(chosen)), ids[kept]])
    return _joined(found)


def _joined(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.empty(0), *parts])
