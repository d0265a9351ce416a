"""Inputs made up from a model's signature, for when nobody gave any."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.core import Array, InputSpec
from edgeopt.data.fitting import plain_dtype
from edgeopt.data.samples import Samples
from edgeopt.errors import InputsError

__all__ = ["Hint", "concrete_shape", "synthetic"]


@dataclass(frozen=True)
class Hint:
    """What is known of an input's values: ``low <= value < high`` for integers.

    For floats, the range that values are drawn from uniformly. ``kind`` names a use that values
    alone do not tell: ``mask`` (1 keep, 0 leave out).
    """

    low: float | None = None
    high: float | None = None
    kind: str = ""


#: (symbol or input name, size) for free dimensions; the first that matches counts.
_SIZES: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), size)
    for pattern, size in (
        (r"^(n|b)$|batch", 1),
        (r"height|width|^(h|w)$|image|pixel", 64),
        (r"wave|audio|speech|input_values", 16000),
        (r"seq|token|length|len|time|steps|^(t|s|l)$", 32),
    )
)
#: A free dimension whose name says nothing, by (rank, axis); the leading one is the batch.
_SIZE_BY_PLACE = {(4, 2): 64, (4, 3): 64, (5, 3): 64, (5, 4): 64}
_DEFAULT_SIZE = 16
#: Integers of which nothing is known stay small: most are indices into some table.
_DEFAULT_HIGH = 10


def concrete_shape(spec: InputSpec, sizes: Mapping[str, int] | None = None) -> tuple[int, ...]:
    """The input's shape with sizes for free dimensions: ``sizes`` by name, else typical ones."""
    shape: list[int] = []
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, int):
            shape.append(dim)
        elif sizes and dim in sizes:
            shape.append(sizes[dim])
        else:
            shape.append(_typical(spec, axis, dim))
    return tuple(shape)


def _typical(spec: InputSpec, axis: int, symbol: str) -> int:
    if _SIZES[0][0].search(symbol) or axis == 0:
        return 1
    # an input that is named for what it holds tells more than an axis called "sequence_length"
    texts = (spec.name, symbol) if np.dtype(spec.dtype).kind == "f" else (symbol,)
    for text in texts:
        for pattern, size in _SIZES[1:]:
            if pattern.search(text) and not (size == 64 and axis < len(spec.shape) - 2):
                return size
    return _SIZE_BY_PLACE.get((len(spec.shape), axis), _DEFAULT_SIZE)


def synthetic(
    inputs: Sequence[InputSpec],
    hints: Mapping[str, Hint] | None = None,
    count: int = 8,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> Samples:
    """``count`` made-up feeds; the same arguments give the same numbers.

    Integers are drawn below their hint, masks are ones with the tail of every other sample
    padded, floats are standard normal, smooth where they look like images. ``sizes`` sets free
    dimensions by name.

    Raises:
        InputsError: an input whose dtype numpy does not have (``bfloat16``, strings).
    """
    specs = tuple(inputs)
    known = dict(hints or {})
    for spec in specs:
        if plain_dtype(spec.dtype) is None:
            raise InputsError(
                f"input {spec.name} takes {spec.dtype}, for which no inputs can be made up; give"
                " --data"
            )
    shapes = {spec.name: concrete_shape(spec, sizes) for spec in specs}

    def feed(index: int) -> dict[str, Array]:
        made = {}
        for spec in specs:
            rng = np.random.default_rng([seed, index, zlib.crc32(spec.name.encode())])
            draw = _Draw(shapes[spec.name], known.get(spec.name, Hint()), rng, index)
            made[spec.name] = np.asarray(_maker(spec, draw.hint)(draw)).astype(spec.dtype)
        return made

    def opener() -> Iterator[dict[str, Array]]:
        return map(feed, range(count))

    sized = ", ".join(
        f"{spec.name} {'x'.join(map(str, shapes[spec.name]))}"
        for spec in specs
        if any(isinstance(dim, str) for dim in spec.shape)
    )
    label = f"{count} synthetic inputs (seed {seed}{f'; {sized}' if sized else ''})"
    return Samples(label, opener, count, None, specs)


# ---------------------------------------------------------------------------------------------
# one maker a kind of input


@dataclass(frozen=True)
class _Draw:
    shape: tuple[int, ...]
    hint: Hint
    rng: np.random.Generator
    index: int

    @property
    def low(self) -> int:
        return int(self.hint.low or 0)

    @property
    def high(self) -> int:
        return max(self.low + 1, int(_DEFAULT_HIGH if self.hint.high is None else self.hint.high))


def _ids(draw: _Draw) -> Array:
    return draw.rng.integers(draw.low, draw.high, draw.shape)


def _mask(draw: _Draw) -> Array:
    mask = np.ones(draw.shape, np.int64)
    length = draw.shape[-1] if draw.shape else 0
    if draw.index % 2 and length > 1 and len(draw.shape) == 2:
        mask[..., length - int(draw.rng.integers(1, length // 2 + 1)) :] = 0
    return mask


def _segments(draw: _Draw) -> Array:
    """First segment 0, second 1, as token_type_ids have it."""
    length = draw.shape[-1] if draw.shape else 1
    second = np.arange(length) >= length // 2
    high = 2 if draw.hint.high is None else draw.high
    return np.broadcast_to(np.minimum(second, high - 1), draw.shape)


def _positions(draw: _Draw) -> Array:
    length = draw.shape[-1] if draw.shape else 1
    steps = np.arange(length)
    if draw.hint.high is not None:
        steps = np.minimum(steps, draw.high - 1)
    return np.broadcast_to(steps, draw.shape)


def _flags(draw: _Draw) -> Array:
    return draw.rng.integers(0, 2, draw.shape)


def _floats(draw: _Draw) -> Array:
    if draw.hint.low is not None and draw.hint.high is not None:
        return draw.rng.uniform(draw.hint.low, draw.hint.high, draw.shape)
    noise = draw.rng.standard_normal(draw.shape)
    if len(draw.shape) < 4 or min(draw.shape[-2:]) < 8:
        return noise
    # images vary slowly: a coarse grid spread out, plus a little detail; variance stays one
    height, width = draw.shape[-2:]
    coarse = draw.rng.standard_normal((*draw.shape[:-2], -(-height // 4), -(-width // 4)))
    spread = coarse.repeat(4, axis=-2).repeat(4, axis=-1)[..., :height, :width]
    blended: Array = 0.9 * spread + (1 - 0.9**2) ** 0.5 * noise
    return blended


#: (input name, maker) for integers and booleans; the first that matches counts.
_BY_NAME: tuple[tuple[re.Pattern[str], Callable[[_Draw], Array]], ...] = (
    (re.compile(r"mask", re.IGNORECASE), _mask),
    (re.compile(r"token_type|segment", re.IGNORECASE), _segments),
    (re.compile(r"position", re.IGNORECASE), _positions),
)


def _maker(spec: InputSpec, hint: Hint) -> Callable[[_Draw], Array]:
    kind = np.dtype(spec.dtype).kind
    if hint.kind == "mask" or (kind == "f" and re.search("attention_mask|pixel_mask", spec.name)):
        return _mask
    if kind == "f":
        return _floats
    named = next((make for pattern, make in _BY_NAME if pattern.search(spec.name)), None)
    return named or (_flags if kind == "b" else _ids)
