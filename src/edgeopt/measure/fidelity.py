"""How close an artifact's outputs are to the source's: sums over samples, never the samples.

One :class:`FidelityMeter` an output. It takes a pair of arrays at a time and keeps float64 sums, so
memory is bounded by one sample's output whatever their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Fidelity, OfKind

__all__ = ["FidelityMeter"]

#: Elements taken at a time: float64 temporaries of a few megabytes, whatever an output's size.
_CHUNK = 1 << 19

#: A float output whose values spread less than this, relative to their size, is constant: what
#: differs is the rounding of float32, and nothing can be proven by it.
_FLAT = 1e-6

#: A probability that stays this near to nought or to one throughout is constant too.
_AT_REST = 0.01

#: Rows sum to one within this when an output is already a distribution.
_DISTRIBUTION = 1e-3


#: An output's power on one kind of samples counts as no less than this share of its power on all:
#: what is next to nothing beside what the output says elsewhere is not held to its own decibels.
#: Nor are a few numbers that happen to be small: of n there are, the share is one in n at least.
_LEAST_POWER = 0.01


@dataclass
class _KindSums:
    """What is kept of the samples of one kind."""

    elements: int = 0
    signal: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    same_side: int = 0

    def of_kind(self, kind: str, power: float) -> OfKind:
        """``power``: the output's mean square over all kinds."""
        least = max(_LEAST_POWER, 1 / max(self.elements, 1))
        signal = max(self.signal, least * power * self.elements)
        share = self.same_side / self.elements if self.elements else 1.0
        return OfKind(kind, _sqnr_db(signal, self.noise), self.max_abs, share)


class FidelityMeter:
    """Accumulates :class:`~edgeopt.core.Fidelity` of one output, sample by sample.

    Integer and boolean outputs, and float ones of nothing but 0 and 1, are compared by the share
    of equal elements (of one-hot rows: of equal rows), reported as ``top1``; their ``sqnr_db`` is
    NaN unless they are identical (then inf): a class number has no noise power. ``top1`` and
    ``kl`` of other float outputs are taken along the last axis where that can be an axis of
    classes: rank 2 or 3 and at least two entries (the last axis of a feature map or an image is
    its width).
    """

    def __init__(self, output: str, *, classes: bool = True, probability: bool = False) -> None:
        """``classes``: the last axis may be one of classes; of a set of rows it is none.
        ``probability``: the output lies between 0 and 1 whatever goes in."""
        self.output = output
        self._probability = probability
        self._kinds: dict[str, _KindSums] = {}
        self._may_be_classes = classes
        self._samples = 0
        self._elements = 0
        self._signal = 0.0
        self._noise = 0.0
        self._cosines = 0.0
        self._max_abs = 0.0
        self._equal = 0
        self._rows = 0
        self._same_top = 0
        self._kl = 0.0
        self._finite = True
        self._low = math.inf
        self._high = -math.inf
        self._is_float = True
        self._binary = True
        #: SQNR (dB) of every sample of a float output, in order.
        self.sample_db: list[float] = []
        #: Whether the source itself gave NaN or Inf somewhere.
        self.source_not_finite = False

    def add(self, reference: NDArray[Any], got: NDArray[Any], kind: str = "") -> str | None:
        """Take one sample's pair, of that kind. Returns None, or why the two cannot be compared."""
        if reference.shape != got.shape:
            return (
                f"output {self.output} has shape {list(reference.shape)} in the source "
                f"and {list(got.shape)} in the artifact"
            )
        if reference.dtype.kind in "OSU" and got.dtype.kind in "OSU":
            reference, got = _codes(reference, got)
        if not (_is_number(reference) and _is_number(got)):
            return f"output {self.output} is {reference.dtype} and {got.dtype}, not numbers"
        self._samples += 1
        self._elements += reference.size
        self._is_float = _is_float(reference)
        classes = (
            self._may_be_classes
            and self._is_float
            and reference.ndim in (2, 3)
            and reference.shape[-1] >= 2
        )
        width = reference.shape[-1] if classes else max(1, min(reference.size, _CHUNK))
        signal = noise = dot = power = 0.0
        sums = self._kinds.setdefault(kind, _KindSums())
        sums.elements += reference.size
        for ref, new in _chunks(reference, got, width):
            ref_ok, new_ok = np.isfinite(ref), np.isfinite(new)
            if not ref_ok.all():
                self.source_not_finite = True
            if not (new_ok | ~ref_ok).all():
                self._finite = False
            self._equal += int(np.count_nonzero((ref == new) | (np.isnan(ref) & np.isnan(new))))
            both = ref_ok & new_ok
            self._binary = self._binary and bool(((ref == 0) | (ref == 1)).all())
            if ref_ok.any():
                self._low = min(self._low, float(ref[ref_ok].min()))
                self._high = max(self._high, float(ref[ref_ok].max()))
            if classes:
                self._add_classes(ref, new, both)
            if not both.all():
                ref, new = ref[both], new[both]
            if ref.size == 0:
                continue
            error = np.abs(ref - new)
            self._max_abs = max(self._max_abs, float(error.max()))
            sums.max_abs = max(sums.max_abs, float(error.max()))
            sums.same_side += int(np.count_nonzero((ref > 0.5) == (new > 0.5)))
            noise += float(np.sum(error * error))
            signal += float(np.sum(ref * ref))
            power += float(np.sum(new * new))
            dot += float(np.sum(ref * new))
        self._signal += signal
        self._noise += noise
        sums.signal += signal
        sums.noise += noise
        if self._is_float:
            self.sample_db.append(_sqnr_db(signal, noise))
        self._cosines += _cosine(dot, signal, power)
        return None

    def _add_classes(
        self, ref: NDArray[np.float64], new: NDArray[np.float64], both: NDArray[np.bool_]
    ) -> None:
        """Top-1 and KL of a chunk of rows; a masked class (both -inf) is no class.

        A class that is +inf in both wins there and here, and leaves no distribution to compare.
        """
        alike = np.isinf(ref) & (ref == new)
        whole = (both | alike).all(axis=-1) & both.any(axis=-1)
        self._rows += len(ref)  # a row with a NaN counts as missed, not as left out
        ref, new = ref[whole], new[whole]
        self._same_top += int(np.count_nonzero(ref.argmax(-1) == new.argmax(-1))) if len(ref) else 0
        spread = ~np.isposinf(ref).any(axis=-1)
        ref, new = ref[spread], new[spread]
        if len(ref) == 0:
            return
        log_p, log_q = _log_distributions(ref, new)
        p = np.exp(log_p)
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (log_p - log_q), 0.0)
        self._kl += float(np.sum(np.maximum(terms.sum(axis=-1), 0.0)))

    def result(self) -> Fidelity:
        identical = self._equal == self._elements
        if self._is_float and self._binary and self._high == 1.0:
            # One-hot rows and masks: an answer is right or wrong, and has no noise power.
            sqnr = math.inf if identical else math.nan
            equal = self._equal / self._elements if self._elements else None
            top1 = self._same_top / self._rows if self._rows else equal
            kl = None
        elif self._is_float:
            sqnr = _sqnr_db(self._signal, self._noise)
            top1 = self._same_top / self._rows if self._rows else None
            kl = self._kl / self._rows if self._rows else None
        else:
            sqnr = math.inf if identical else math.nan
            top1 = self._equal / self._elements if self._elements else None
            kl = None
        return Fidelity(
            output=self.output,
            sqnr_db=sqnr,
            cosine=self._cosines / self._samples if self._samples else math.nan,
            max_abs=self._max_abs,
            top1=top1,
            kl=kl,
            finite=self._finite,
            constant=self._constant(),
            samples=self._samples,
            rows=self._rows,
            lowest_db=None if math.isnan(sqnr) else min(self.sample_db, default=None),
            highest_db=None if math.isnan(sqnr) else max(self.sample_db, default=None),
            kinds=() if math.isnan(sqnr) or not self._is_float else self._by_kind(),
            probability=self._probability and self._low >= 0 and self._high <= 1,
        )

    def _by_kind(self) -> tuple[OfKind, ...]:
        """None where the samples are of no kind."""
        power = self._signal / self._elements if self._elements else 0.0
        return tuple(sums.of_kind(kind, power) for kind, sums in self._kinds.items() if kind)

    def _constant(self) -> bool:
        """One value everywhere, or a probability at rest. A single number in all cannot be told
        from a varying one."""
        if self._elements == 1:
            return False
        if self._high < self._low:  # empty, or not one finite value
            return True
        if self._probability and self._low >= 0 and self._high <= 1:
            # It never spoke: a detector that was shown nothing to find says so to ten digits.
            return self._high < _AT_REST or self._low > 1 - _AT_REST or self._high == self._low
        slack = _FLAT * max(abs(self._low), abs(self._high)) if self._is_float else 0.0
        return self._high - self._low <= slack


def _is_float(array: NDArray[Any]) -> bool:
    # bfloat16 and the 8-bit floats (ml_dtypes) are of kind "V" and cast to float64.
    return array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))


def _is_number(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "biuf" or _is_float(array)


def _codes(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both with a number for every text: texts are the same or not, as labels by number are."""
    texts = np.concatenate([a.reshape(-1), b.reshape(-1)]).astype(str)
    _, codes = np.unique(texts, return_inverse=True)
    codes = codes.reshape(-1)
    return codes[: a.size].reshape(a.shape), codes[a.size :].reshape(b.shape)


def _chunks(
    a: NDArray[Any], b: NDArray[Any], width: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Both arrays as float64, a few rows of ``width`` (or a piece of the flat array) at a time."""
    if a.size == 0:
        return
    if a.size % width:
        flat_a, flat_b = a.reshape(-1), b.reshape(-1)
        for lo in range(0, a.size, width):
            yield (
                flat_a[lo : lo + width].astype(np.float64),
                flat_b[lo : lo + width].astype(np.float64),
            )
        return
    rows_a, rows_b = a.reshape(-1, width), b.reshape(-1, width)
    step = max(1, _CHUNK // width)
    for lo in range(0, len(rows_a), step):
        yield rows_a[lo : lo + step].astype(np.float64), rows_b[lo : lo + step].astype(np.float64)


def _log_distributions(
    ref: NDArray[np.float64], new: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probabilities of both, row by row: by softmax unless the source gives probabilities.

    A softmax of probabilities would hide every difference; those are taken as they are.
    """
    if ref.min() >= 0.0 and np.all(np.abs(ref.sum(axis=-1) - 1.0) < _DISTRIBUTION):
        return _log_normalised(ref), _log_normalised(new)
    return _log_softmax(ref), _log_softmax(new)


def _log_normalised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    positive = np.maximum(rows, np.finfo(np.float32).tiny)
    return np.asarray(np.log(positive / positive.sum(axis=-1, keepdims=True)))


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True)))


def _sqnr_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise); inf when there is no noise, -inf when there is nothing else."""
    if noise == 0.0:
        return math.inf
    if signal == 0.0:
        return -math.inf
    return 10.0 * (math.log10(signal) - math.log10(noise))


def _cosine(dot: float, a: float, b: float) -> float:
    if a == 0.0 and b == 0.0:
        return 1.0
    if a == 0.0 or b == 0.0:
        return 0.0
    return max(-1.0, min(1.0, dot / (math.sqrt(a) * math.sqrt(b))))
