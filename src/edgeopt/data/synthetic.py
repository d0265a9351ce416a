"""Inputs made up from a model's signature, for when nobody gave any."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeopt.core import Array, InputSpec
from edgeopt.data.fitting import plain_dtype
from edgeopt.data.hint import Hint
from edgeopt.data.samples import Samples
from edgeopt.data.sizes import batch_symbols, is_sound, typical_sizes
from edgeopt.errors import InputsError

__all__ = ["OTHER_BATCH", "Hint", "concrete_shape", "pinned", "synthetic"]

#: Of made-up inputs, every so many come in a batch of this size where the model takes one: what
#: one sample does to another in its batch is part of how the file answers.
_BATCH_EVERY, OTHER_BATCH = 4, 3

#: The deviation of speech, where full scale is one.
_LOUDNESS = 0.1
#: Inputs whose shapes a label gives.
_SHOWN = 3
#: Integers of which nothing is known stay small: most are indices into some table.
_DEFAULT_HIGH = 10


def concrete_shape(spec: InputSpec, sizes: Mapping[str, int] | None = None) -> tuple[int, ...]:
    """The input's shape with sizes for free dimensions: ``sizes`` by name, else typical ones."""
    return _shape(spec, {**typical_sizes((spec,)), **(sizes or {})})


def _shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape)


def pinned(hints: Mapping[str, Hint] | None, values: Mapping[str, int]) -> dict[str, Hint]:
    """``hints`` with inputs that take one value alone, by name."""
    found = dict(hints or {})
    for name, value in values.items():
        found[name] = replace(found.get(name, Hint()), low=value, high=value + 1)
    return found


def synthetic(
    inputs: Sequence[InputSpec],
    hints: Mapping[str, Hint] | None = None,
    count: int = 8,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    batch: int | None = None,
) -> Samples:
    """``count`` made-up feeds; the same arguments give the same numbers.

    Integers are drawn below their hint, masks are ones with the tail of every other sample
    padded, floats are standard normal, or as their hint says, smooth where they look like images.
    ``sizes`` sets free dimensions by name, others get a typical size. ``batch``: every fourth feed
    holds so many samples, where the batch is free.

    Raises:
        InputsError: an input whose dtype numpy does not have (``bfloat16``, strings).
    """
    specs = tuple(inputs)
    known = dict(hints or {})
    for spec in specs:
        if is_sound(spec, specs) and not known.get(spec.name, Hint()).std:
            quiet = replace(known.get(spec.name, Hint()), mean=(0.0,), std=(_LOUDNESS,))
            known[spec.name] = quiet
        if plain_dtype(spec.dtype) is None:
            raise InputsError(
                f"input {spec.name} takes {spec.dtype}, for which no inputs can be made up; give"
                " --data"
            )
    alone = typical_sizes(specs, known, sizes)
    together = {**alone, **dict.fromkeys(batch_symbols(specs), batch)} if batch else alone
    mixed = alone != together and count >= _BATCH_EVERY

    steps = _steps(specs, alone)

    def feed(index: int) -> dict[str, Array]:
        made = {}
        chosen = together if mixed and index % _BATCH_EVERY == _BATCH_EVERY - 1 else alone
        tail = float(np.random.default_rng([seed, index]).random())
        for spec in specs:
            rng = np.random.default_rng([seed, index, zlib.crc32(spec.name.encode())])
            hint = known.get(spec.name, Hint())
            draw = _Draw(_shape(spec, chosen), hint, rng, index, tail, steps)
            made[spec.name] = np.asarray(_maker(spec, draw.hint)(draw)).astype(spec.dtype)
        return made

    def opener() -> Iterator[dict[str, Array]]:
        return map(feed, range(count))

    label = f"{count} synthetic inputs (seed {seed})"
    if chosen := _chosen(specs, alone):
        label += f": {chosen}"
    if mixed:
        label += f"; every {_BATCH_EVERY}th in a batch of {batch}"
    return Samples(label, opener, count, None, specs, made_up=True)


def _steps(specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> int:
    """The size of the first sequence's free axis; 0 where there is none."""
    batch = batch_symbols(specs)
    for spec in specs:
        free = [dim for dim in spec.shape if isinstance(dim, str) and dim not in batch]
        if len(spec.shape) > 1 and free:
            return sizes[free[-1]]
    return 0


def _chosen(specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> str:
    """The shapes in which something was chosen, for a person; of many inputs the first few."""
    free = [s for s in specs if any(isinstance(dim, str) for dim in s.shape)]
    shown = [f"{s.name} {list(_shape(s, sizes))}" for s in free[:_SHOWN]]
    return ", ".join([*shown, *(["..."] if len(free) > _SHOWN else [])])


# ---------------------------------------------------------------------------------------------
# one maker a kind of input


@dataclass(frozen=True)
class _Draw:
    shape: tuple[int, ...]
    hint: Hint
    rng: np.random.Generator
    index: int
    #: Where in (0, 1) padding begins, the same for all inputs of a feed.
    tail: float = 0.5
    #: The steps of the feed's sequences, where it has any.
    length: int = 0

    @property
    def low(self) -> int:
        return int(self.hint.low or 0)

    @property
    def high(self) -> int:
        return max(self.low + 1, int(_DEFAULT_HIGH if self.hint.high is None else self.hint.high))

    @property
    def kept(self) -> int:
        """Places of the last axis before the padding: every other feed has some."""
        length = self.shape[-1] if self.shape else 0
        if self.index % 2 and length > 1 and len(self.shape) == 2:
            return length - 1 - int(self.tail * (length // 2))
        return length


def _ids(draw: _Draw) -> Array:
    ids = draw.rng.integers(draw.low, draw.high, draw.shape)
    begin, end = draw.hint.begin, draw.hint.end
    if len(draw.shape) == 2 and draw.kept > len(begin) + len(end):
        ids[:, : len(begin)] = begin
        ids[:, draw.kept - len(end) : draw.kept] = end
    return ids


def _bytes(draw: _Draw) -> Array:
    """Pictures of bytes, or anything else of that type that no table bounds: all of its range."""
    if len(draw.shape) < 3:
        return draw.rng.integers(0, 256, draw.shape)
    return np.clip(np.rint(127.5 + 55 * _smooth(draw)), 0, 255)


def _mask(draw: _Draw) -> Array:
    mask = np.ones(draw.shape, np.int64)
    mask[..., draw.kept :] = 0
    return mask


def _lengths(draw: _Draw) -> Array:
    """How long the sequences are that another input holds."""
    return np.full(draw.shape, max(draw.length, 1))


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
    made = _smooth(draw)
    if not draw.hint.std:
        return made
    std = _by_channel(draw.hint.std, draw.shape)
    return np.asarray(_by_channel(draw.hint.mean, draw.shape) + std * made)


def _by_channel(values: tuple[float, ...], shape: tuple[int, ...]) -> Array:
    """One number, or one a channel (axis 1; of two axes the last), ready to broadcast."""
    if len(shape) < 2 or len(values) not in (1, shape[1]):
        return np.asarray(np.mean(values))
    return np.asarray(values).reshape(-1, *(1,) * (len(shape) - 2))


#: A made-up letter with the space around it, in cells, and the strokes that it has.
_LETTER, _LINE, _STROKES = 8, 16, 3


def _written(draw: _Draw) -> Array:
    """Lines of letter-like marks, dark on light, mean zero and deviation one: edges and shapes, of
    which noise has none. A network that looks for things (text, objects) finds some here."""
    height, width = draw.shape[-2:]
    page = np.ones((height, width))
    for top in range(2, height - 7, _LINE):
        for left in range(2, width - 5, _LETTER):
            for place, upright in draw.rng.integers(0, (6, 2), (_STROKES, 2)):
                if upright:
                    page[top : top + 8, left + place : left + place + 2] = -1
                else:
                    page[top + place : top + place + 2, left : left + 6] = -1
    return np.asarray((page - page.mean()) / page.std())


def _smooth(draw: _Draw) -> Array:
    if len(draw.shape) == 4 and draw.shape[3] in (1, 3, 4) and min(draw.shape[1:3]) >= 8:
        batch, height, width, channels = draw.shape  # channels last
        return np.moveaxis(_smooth(replace(draw, shape=(batch, channels, height, width))), 1, 3)
    noise = draw.rng.standard_normal(draw.shape)
    if len(draw.shape) < 4 or min(draw.shape[-2:]) < 8:
        return noise
    if draw.index % 2 and min(draw.shape[-2:]) >= 16:
        return np.broadcast_to(_written(draw), draw.shape) + 0.05 * noise
    # images vary slowly: a coarse grid spread out, plus a little detail; variance stays one
    height, width = draw.shape[-2:]
    coarse = draw.rng.standard_normal((*draw.shape[:-2], -(-height // 4), -(-width // 4)))
    spread = coarse.repeat(4, axis=-2).repeat(4, axis=-1)[..., :height, :width]
    blended: Array = 0.9 * spread + (1 - 0.9**2) ** 0.5 * noise
    return blended


#: (input name, maker) for integers and booleans; the first that matches counts.
_BY_NAME: tuple[tuple[re.Pattern[str], Callable[[_Draw], Array]], ...] = (
    (re.compile(r"mask", re.IGNORECASE), _mask),
    (re.compile(r"(^|_)len(gth)?s?$|lengths", re.IGNORECASE), _lengths),
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
    if named is None and spec.dtype == "uint8" and hint.high is None:
        return _bytes
    return named or (_flags if kind == "b" else _ids)
