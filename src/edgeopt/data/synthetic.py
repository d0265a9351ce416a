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
from edgeopt.data.pictures import PICTURES, SMALLEST, picture
from edgeopt.data.samples import Samples
from edgeopt.data.sizes import batch_symbols, is_sound, is_state, typical_sizes
from edgeopt.data.sounds import SOUNDS, sound
from edgeopt.errors import InputsError

__all__ = [
    "LOUDNESS",
    "OTHER_BATCH",
    "SOUND",
    "STATE",
    "Hint",
    "concrete_shape",
    "pinned",
    "synthetic",
]

#: Of made-up inputs, every so many come in a batch of this size where the model takes one: what
#: one sample does to another in its batch is part of how the file answers.
_BATCH_EVERY, OTHER_BATCH = 4, 3

#: The deviation of speech, where full scale is one.
LOUDNESS = 0.1
#: Uses of floats that a hint names (:attr:`Hint.kind`): a wave, and what a model remembers.
SOUND, STATE = "sound", "state"
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
        hint = known.get(spec.name, Hint())
        if is_sound(spec, specs):
            known[spec.name] = replace(hint, kind=SOUND)
        elif is_state(spec, specs):
            known[spec.name] = replace(hint, kind=STATE)
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
    kinds = _kinds(specs, known, alone)
    names = tuple(kinds[index % len(kinds)] for index in range(count)) if kinds else ()
    return Samples(label, opener, count, None, specs, made_up=True, kinds=names)


def _kinds(
    specs: Sequence[InputSpec], hints: Mapping[str, Hint], sizes: Mapping[str, int]
) -> tuple[str, ...]:
    """What the feeds are called, in turn: the kinds of the input that varies most, a sound, then
    a picture, then ids, then numbers; none where no input varies by kind."""
    found: dict[str, Sequence[str]] = {}
    for spec in specs:
        hint, shape = hints.get(spec.name, Hint()), _shape(spec, sizes)
        make = _maker(spec, hint)
        if make is _floats and hint.kind == SOUND:
            found["sound"] = list(SOUNDS)
        elif make in (_floats, _bytes) and hint.kind != STATE and _is_picture(shape):
            found["picture"] = list(PICTURES)
        elif make is _ids and len(shape) > 1:
            found["ids"] = list(_IDS)
        elif make is _floats and hint.kind != STATE and hint.low is None and len(shape) > 1:
            found["numbers"] = list(_TABLES)
    order = ("sound", "picture", "ids", "numbers")
    return next((tuple(found[name]) for name in order if name in found), ())


def _is_picture(shape: tuple[int, ...]) -> bool:
    if len(shape) == 4 and shape[3] in (1, 3, 4) and min(shape[1:3]) >= SMALLEST:
        return True
    return len(shape) >= 4 and min(shape[-2:]) >= SMALLEST


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


#: Ids, kind -> which of the table's rows: all alike; those in front, which vocabularies keep for
#: what is frequent; those at its end; a few of them again and again.
_IDS: Mapping[str, Callable[[np.random.Generator, int, tuple[int, ...]], Array]] = {
    "any ids": lambda rng, width, shape: rng.integers(0, width, shape),
    "padded": lambda rng, width, shape: rng.integers(0, width, shape),
    "frequent ids": lambda rng, width, shape: (width ** rng.random(shape)).astype(np.int64) - 1,
    "rare ids": lambda rng, width, shape: rng.integers(width - width // 10 - 1, width, shape),
    "repeated ids": lambda rng, width, shape: rng.choice(rng.integers(0, width, 3), shape),
    "padded again": lambda rng, width, shape: (width ** rng.random(shape)).astype(np.int64) - 1,
}


def _ids(draw: _Draw) -> Array:
    kind = list(_IDS)[draw.index % len(_IDS)]
    ids = draw.low + _IDS[kind](draw.rng, draw.high - draw.low, draw.shape)
    begin, end = draw.hint.begin, draw.hint.end
    if len(draw.shape) == 2 and draw.kept > len(begin) + len(end):
        ids[:, : len(begin)] = begin
        ids[:, draw.kept - len(end) : draw.kept] = end
    return ids


def _bytes(draw: _Draw) -> Array:
    """Pictures of bytes, or anything else of that type that no table bounds: all of its range."""
    if len(draw.shape) < 3:
        return draw.rng.integers(0, 256, draw.shape)
    return np.clip(np.rint(127.5 + 60 * _smooth(draw)), 0, 255)


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
    if draw.hint.kind == SOUND:
        level = draw.hint.std[0] / LOUDNESS if draw.hint.std else 1.0
        return level * sound(draw.index, draw.shape, draw.rng)
    if draw.hint.kind == STATE:
        # Nothing before, as at the start of every stream, or something; it is bounded by tanh.
        return np.clip(0.4 * draw.rng.standard_normal(draw.shape), -1, 1) * (draw.index % 3 == 2)
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


def _smooth(draw: _Draw) -> Array:
    """Pictures where there is room for one, else a table of numbers."""
    if len(draw.shape) == 4 and draw.shape[3] in (1, 3, 4) and min(draw.shape[1:3]) >= SMALLEST:
        batch, height, width, channels = draw.shape  # channels last
        return np.moveaxis(_smooth(replace(draw, shape=(batch, channels, height, width))), 1, 3)
    if len(draw.shape) < 4 or min(draw.shape[-2:]) < SMALLEST:
        return _table(draw)
    return picture(draw.index, draw.shape, draw.rng)


#: Numbers of tables, kind -> how far they go, in deviations.
_TABLES = {"usual": 1.0, "uneven": 1.0, "small": 0.3, "edge": 1.0, "large": 2.0, "steady": 1.0}


def _table(draw: _Draw) -> Array:
    """Numbers of mean zero and deviation one as a rule: normal; columns of unequal width; all
    small; all near the ends of what is usual; all large; hardly changing along a sequence."""
    kind = list(_TABLES)[draw.index % len(_TABLES)]
    noise = draw.rng.standard_normal(draw.shape)
    if kind == "uneven" and draw.shape:
        widths = np.exp(0.7 * draw.rng.standard_normal(draw.shape[-1]))
        noise = noise * widths / np.sqrt(np.mean(np.square(widths)))
    elif kind == "edge":
        noise = np.sign(noise) * (1.5 + 0.2 * np.abs(noise))
    elif kind == "steady" and len(draw.shape) > 2:
        first = draw.rng.standard_normal((*draw.shape[:-2], 1, draw.shape[-1]))
        noise = 0.95 * first + 0.3 * noise
    return np.asarray(_TABLES[kind] * noise)


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
