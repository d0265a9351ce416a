"""Scales and zero points from ranges and weights. Defined for every input: never 0, never NaN."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Array

__all__ = ["MIN_SCALE", "Activation", "activation", "bias_codes", "weight_codes"]

#: Scales are multiplied by one another in float32: two of these still make a normal number.
MIN_SCALE = 2.0**-60
_MAX_SCALE = 2.0**60
_BIAS_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Activation:
    """``x ~ (q - zero) * scale`` with q in uint8, or int8 when ``signed``."""

    scale: float
    zero: int
    signed: bool = False

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        return np.int8 if self.signed else np.uint8

    def quantize(self, values: Array) -> Array:
        """Codes of these values, saturating; round half to even, as ONNX's QuantizeLinear."""
        low = -128 if self.signed else 0
        codes = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero
        saturated: Array = np.clip(codes, low, low + 255).astype(self.dtype)
        return saturated


def activation(low: float, high: float, signed: bool = False) -> Activation:
    """Asymmetric 8-bit parameters for a range, widened to contain zero exactly.

    An empty range (a dead or constant-zero activation) gets scale 1; ends that are not finite
    count as zero, or as the largest scale when infinite.
    """
    limit = _MAX_SCALE * 100
    low = min(0.0, float(np.nan_to_num(low, nan=0.0, posinf=limit, neginf=-limit)))
    high = max(0.0, float(np.nan_to_num(high, nan=0.0, posinf=limit, neginf=-limit)))
    bottom = -128 if signed else 0
    if high == low:
        return Activation(1.0, bottom, signed)
    scale = float(np.float32(min(max((high - low) / 255, MIN_SCALE), _MAX_SCALE)))
    zero = int(np.clip(np.rint(-low / scale), 0, 255))
    return Activation(scale, bottom + zero, signed)


def weight_codes(
    weight: Array, axis: int, top: int = 127, floor: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 codes and float32 scales, symmetric, one scale for each index of ``axis``.

    ``top`` is the largest code. ``floor``: scales are at least these. A channel of zeros gets
    scale 1 (and codes 0); values that are not finite saturate.
    """
    rows = np.moveaxis(np.asarray(weight, np.float32), axis, 0)
    flat = np.nan_to_num(rows.reshape(rows.shape[0], -1), posinf=3e38, neginf=-3e38)
    largest = np.abs(flat).max(axis=1, initial=0.0).astype(np.float64)
    scale = largest / top
    if floor is not None:
        scale = np.maximum(scale, floor)
    scale = np.where(scale == 0, 1.0, np.clip(scale, MIN_SCALE, _MAX_SCALE)).astype(np.float32)
    codes = np.clip(np.rint(flat / scale[:, None]), -top, top).astype(np.int8)
    return np.ascontiguousarray(np.moveaxis(codes.reshape(rows.shape), 0, axis)), scale


def bias_floor(bias: Array, input_scale: float) -> NDArray[np.float64]:
    """Smallest weight scales for which the bias fits into int32 at ``input_scale * scale``.

    A channel with a tiny weight and a large bias would overflow otherwise.
    """
    magnitude = np.nan_to_num(np.abs(bias.astype(np.float64)), posinf=0.0)
    floor: NDArray[np.float64] = magnitude / (input_scale * (_BIAS_LIMIT // 2))
    return floor


def bias_codes(
    bias: Array, input_scale: float, weight_scale: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """int32 codes at the product's own scale, ``input_scale * weight_scale``."""
    scale = (np.float32(input_scale) * weight_scale).astype(np.float32)
    codes = np.rint(np.nan_to_num(bias.astype(np.float64), posinf=3e38, neginf=-3e38) / scale)
    return np.clip(codes, -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int32), scale
