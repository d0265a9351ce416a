"""How far a model's next-token distributions are from another's: perplexity, KL divergence, Δp.

The statistics, their names and their standard errors are those that llama-perplexity prints with
``--kl-divergence`` (https://github.com/ggml-org/llama.cpp/tree/master/tools/perplexity). It reads
the base's distributions from a file of 16-bit numbers; here both are at hand in full, so the
divergence of a model from itself is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Divergence", "DivergenceMeter", "Statistic", "log_softmax"]

#: Logits taken at a time: float64 temporaries of 4 MB each, whatever the vocabulary.
_BLOCK = 1 << 19

_NATS, _PERCENT = "nats", "%"


@dataclass(frozen=True)
class Statistic:
    """One line: ``value`` with its standard ``error`` (None: it has none), in ``unit``."""

    name: str
    value: float
    error: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Divergence:
    """What was found over ``tokens`` predictions. ``finite``: neither side gave NaN or Inf."""

    statistics: tuple[Statistic, ...]
    tokens: int
    finite: bool

    def value(self, name: str) -> float:
        """The statistic of this name. KeyError where there is none."""
        return {each.name: each.value for each in self.statistics}[name]


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Log probabilities of each row, in float64."""
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values


class DivergenceMeter:
    """Takes both models' logits some rows at a time; keeps five numbers a prediction."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.float64]] = []

    def add(
        self, base: NDArray[np.float32], other: NDArray[np.float32], targets: NDArray[np.int32]
    ) -> None:
        """Logits ``[n, vocabulary]`` of the base and the other, and the n tokens that followed."""
        step = max(1, _BLOCK // base.shape[1])
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            self._parts.append(_compared(base[part], other[part], targets[part]))

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the base and the other so far; NaN before anything was added."""
        if not self._parts:
            return math.nan, math.nan
        table = np.concatenate(self._parts)
        return float(np.exp(table[:, 0].mean())), float(np.exp(table[:, 1].mean()))

    @property
    def divergences(self) -> NDArray[np.float64]:
        """KL divergence of every prediction so far, ``[n]``, in the order they were added: two
        meters that saw the same base can be compared prediction by prediction."""
        return np.concatenate([np.empty((0, 5)), *self._parts])[:, 2]

    def result(self) -> Divergence:
        """Every statistic. ValueError where nothing was added."""
        if not self._parts:
            raise ValueError("no predictions were compared")
        table = np.concatenate(self._parts)
        finite = bool(np.isfinite(table).all())
        with np.errstate(all="ignore"):
            found = (*_perplexities(table), *_divergences(table), *_probabilities(table))
        return Divergence(found, len(table), finite)


def _compared(
    base: NDArray[np.float32], other: NDArray[np.float32], targets: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Per prediction: both negative log likelihoods, KLD, Δp, and whether the top is the same."""
    row = np.arange(len(targets))
    with np.errstate(all="ignore"):  # what is not finite shows in the result
        p, q = log_softmax(base), log_softmax(other)
        nll_base, nll_other = -p[row, targets], -q[row, targets]
        same = p.argmax(axis=-1) == q.argmax(axis=-1)
        q -= p
        kld = -(np.exp(p, out=p) * q).sum(axis=-1)
        delta = np.exp(-nll_other) - np.exp(-nll_base)
    return np.stack([nll_base, nll_other, kld, delta, same.astype(np.float64)], axis=1)


# ---------------------------------------------------------------------------------------------
# the statistics: errors are of the mean over independent predictions, to first order


def _perplexities(table: NDArray[np.float64]) -> tuple[Statistic, ...]:
    base, other = table[:, 0], table[:, 1]
    mean_base, error_base = _mean(base)
    mean, error = _mean(other)
    covariance = _covariance(other, base)
    product = error * error_base
    correlation = covariance / product if product else 1.0
    ppl_base, ppl = float(np.exp(mean_base)), float(np.exp(mean))
    log_ratio = mean - mean_base
    log_error = _root(error**2 + error_base**2 - 2 * covariance)
    difference = _root(
        (ppl * error) ** 2 + (ppl_base * error_base) ** 2 - 2 * ppl * ppl_base * covariance
    )
    ratio = float(np.exp(log_ratio))
    return (
        Statistic("Mean PPL(Q)", ppl, ppl * error),
        Statistic("Mean PPL(base)", ppl_base, ppl_base * error_base),
        Statistic("Cor(ln(PPL(Q)), ln(PPL(base)))", 100 * correlation, None, _PERCENT),
        Statistic("Mean ln(PPL(Q)/PPL(base))", log_ratio, log_error),
        Statistic("Mean PPL(Q)/PPL(base)", ratio, ratio * log_error),
        Statistic("Mean PPL(Q)-PPL(base)", ppl - ppl_base, difference),
    )


def _divergences(table: NDArray[np.float64]) -> tuple[Statistic, ...]:
    kld = table[:, 2]
    mean, error = _mean(kld)
    at: Sequence[float] = np.quantile(kld, [1.0, 0.999, 0.99, 0.5, 0.0]).tolist()
    names = ("Maximum KLD", "99.9% KLD", "99.0% KLD", "Median KLD", "Minimum KLD")
    return (
        Statistic("Mean KLD", mean, error, _NATS),
        *(Statistic(name, value, None, _NATS) for name, value in zip(names, at, strict=True)),
    )


def _probabilities(table: NDArray[np.float64]) -> tuple[Statistic, ...]:
    delta, same = table[:, 3], table[:, 4]
    mean, error = _mean(delta)
    square, square_error = _mean(delta**2)
    rms = _root(square)
    rms_error = 0.5 * square_error / rms if rms else 0.0
    share = float(same.mean())
    share_error = _root(share * (1 - share) / max(len(same) - 1, 1))
    return (
        Statistic("Mean Δp", 100 * mean, 100 * error, _PERCENT),
        Statistic("RMS Δp", 100 * rms, 100 * rms_error, _PERCENT),
        Statistic("Same top p", 100 * share, 100 * share_error, _PERCENT),
    )


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """The mean, and the standard error of it."""
    count = len(values)
    spread = float(values.var()) / (count - 1) if count > 1 else 0.0
    return float(values.mean()), _root(spread)


def _covariance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of the two means."""
    if len(a) < 2:
        return 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / (len(a) - 1))


def _root(value: float) -> float:
    """Square root of what rounding may have pushed below zero; NaN stays NaN."""
    return math.sqrt(value) if value > 0 else value * 0.0
