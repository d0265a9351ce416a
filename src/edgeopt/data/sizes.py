"""Sizes for dimensions that nobody gave one: those that a user's inputs would have.

A dimension's role (batch, height or width, samples of sound, steps of a sequence) is told by its
name, its input's name and its place. Every role has sizes that models of its kind take, the most
usual first. Which of them a model really takes (a fixed Reshape behind the last pooling allows
one size alone) only a run can tell: :func:`candidates` gives feeds to try, in order.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from edgeopt.core import InputSpec
from edgeopt.data.hint import Hint

__all__ = [
    "Choice",
    "batch_axes",
    "batch_symbols",
    "candidates",
    "is_sound",
    "is_state",
    "sizes_of",
    "typical_sizes",
]

#: Sizes by symbol, and values by input name for integers that stand alone (a sample rate).
Choice = tuple[dict[str, int], dict[str, int]]

_BATCH = re.compile(r"^(n|b|bs)$|batch", re.IGNORECASE)
_SPACE = re.compile(r"height|width|^(h|w)$|image|pixel", re.IGNORECASE)
_SOUND = re.compile(r"wave|audio|speech|input_values|pcm|^samples$|n_samples", re.IGNORECASE)
_SEQUENCE = re.compile(r"seq|token|length|len|time|steps|frames|^(t|s|l)$", re.IGNORECASE)
#: What exporters of decoders call the cache's length and this step's together.
_TOTAL = re.compile(r"total", re.IGNORECASE)
_PAST = re.compile(r"past", re.IGNORECASE)
#: Inputs that carry what a model remembers, and are no pictures whatever their rank.
_STATE = re.compile(r"past|cache|memory|state|hidden|key|value_", re.IGNORECASE)
_SUM = re.compile(r"\s*[A-Za-z_]\w*(\s*\+\s*([A-Za-z_]\w*|\d+))+\s*")

_ROLES: Mapping[str, tuple[int, ...]] = {
    "batch": (1, 2, 4),
    "space": (
        *(64, 224, 32, 28, 256, 128, 96, 112, 160, 299, 320, 48, 384, 512, 640, 192, 416, 768),
        *(1024, 16, 8, 4, 1),
    ),
    "sound": (16000, 64000, 512, 4096, 2048, 1024, 256, 160000, 400, 320, 1280, 480, 1536),
    "chunk": (576, 512, 256, 1536, 1024, 768, 480, 320, 160, 16000, 4096, 2048),
    "sequence": (32, 64, 16, 128, 8, 256, 100, 512, 77, 4, 10, 50, 1000, 2, 1),
    "other": (32, 64, 16, 128, 8, 4, 100, 512, 256, 10, 224, 2, 1, 1000, 16000),
}
_PLACES = frozenset({(4, 2), (4, 3), (5, 3), (5, 4)})

#: Rates of sound, the commonest first, for an integer that is called so.
_RATE = re.compile(r"^sr$|sampl\w*_?rate|^rate$", re.IGNORECASE)
_RATES = (16000, 8000, 22050, 24000, 44100, 48000)

#: Coarsest map of a network at the size chosen: more than one cell along each axis.
_CELLS = 2
_LEAST = 64


def batch_axes(specs: Sequence[InputSpec]) -> dict[str, int | None]:
    """The axis of each input that counts samples; None where it has none (``scales [3]``).

    The leading one where that is free. Where it is not, but another input's is (a recurrent
    state ``[layers, batch, width]`` beside ``x [batch, time]``), the axis of the same name, or,
    without names, the first free one. Where all are fixed, the size that the model insists on is
    the leading one that all others have, in front or inside.
    """
    leading = {s.shape[0] for s in specs if s.shape and isinstance(s.shape[0], str)}
    insisted = None if leading else _insisted(specs)
    found: dict[str, int | None] = {}
    for spec in specs:
        if not spec.shape:
            found[spec.name] = None
        elif isinstance(spec.shape[0], str) or spec.shape[0] == insisted:
            found[spec.name] = 0
        elif insisted is not None:
            found[spec.name] = _inner(spec, insisted)
        else:
            found[spec.name] = _inner_batch(spec, leading)
    return found


def _insisted(specs: Sequence[InputSpec]) -> int | None:
    """The batch of a model whose leading axes are all fixed; the first one's, if in doubt."""
    sizes = [s.shape[0] for s in specs if s.shape and isinstance(s.shape[0], int)]
    for size in sizes:
        others = [s for s in specs if len(s.shape) > 1 and s.shape[0] != size]
        if all(_inner(spec, size) is not None for spec in others):
            return size
    return next(iter(sizes), None)


def _inner(spec: InputSpec, size: int) -> int | None:
    if len(spec.shape) < 3:
        return None
    return next((axis for axis, dim in enumerate(spec.shape) if axis and dim == size), None)


def _inner_batch(spec: InputSpec, leading: set[str]) -> int | None:
    free = [axis for axis, dim in enumerate(spec.shape) if isinstance(dim, str)]
    named = [axis for axis in free if spec.shape[axis] in leading]
    named += [axis for axis in free if _BATCH.search(str(spec.shape[axis]))]
    plain = [axis for axis in free if str(spec.shape[axis]).startswith("?")]
    return next(iter([*named, *plain]), None)


def batch_symbols(specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Symbols of the free dimensions that count samples, in order of appearance."""
    roles = _roles(specs, {})
    return tuple(symbol for symbol, role in roles.items() if role == "batch")


def typical_sizes(
    specs: Sequence[InputSpec],
    hints: Mapping[str, Hint] | None = None,
    fixed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The likeliest size of every free dimension, by symbol; ``fixed`` ones stay as they are."""
    return next(candidates(specs, hints, fixed))[0]


def sizes_of(specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Sizes of the free dimensions in a feed of these shapes, by symbol."""
    found: dict[str, int] = {}
    for spec in specs:
        for dim, size in zip(spec.shape, shapes.get(spec.name, ()), strict=False):
            if isinstance(dim, str):
                found.setdefault(dim, size)
    return found


def candidates(
    specs: Sequence[InputSpec],
    hints: Mapping[str, Hint] | None = None,
    fixed: Mapping[str, int] | None = None,
) -> Iterator[Choice]:
    """Choices of sizes and values to try, the likeliest first, none twice.

    First all dimensions take their next size together (most that differ only by name are one
    and the same: the sides of a picture, ids and their mask), with the likeliest values, then
    with others, then in every combination.
    """
    known = dict(hints or {})
    given = dict(fixed or {})
    roles = _roles(specs, known)
    lists: dict[str, tuple[int, ...]] = {
        symbol: (given[symbol],) if symbol in given else _sizes(symbol, role, specs, known)
        for symbol, role in roles.items()
    }
    values = {s.name: _values(s, known.get(s.name, Hint())) for s in specs}
    values = {name: found for name, found in values.items() if found}
    keys = [*lists, *(f"={name}" for name in values)]
    columns = [*lists.values(), *values.values()]
    kinds = ["batch" if roles[s] == "batch" else "size" for s in lists] + ["value"] * len(values)
    seen: set[tuple[int, ...]] = set()
    for places in itertools.chain(_together(columns, kinds), _combined(columns, kinds)):
        picked = tuple(column[at] for column, at in zip(columns, places, strict=True))
        if picked in seen:
            continue
        seen.add(picked)
        chosen = dict(zip(keys, picked, strict=True))
        sizes = {key: size for key, size in chosen.items() if not key.startswith("=")}
        for symbol in _sums(specs):
            if symbol not in given:
                sizes[symbol] = _total(symbol, sizes)
        yield sizes, {key[1:]: value for key, value in chosen.items() if key.startswith("=")}


#: How much sooner another size is tried than another value, or another batch.
_STEPS = {"size": 1, "value": 6, "batch": 12}


def _together(columns: Sequence[Sequence[int]], kinds: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Places where all sizes are as far down their lists, once for each place of the values."""

    def longest(kind: str) -> int:
        return max((len(c) for c, k in zip(columns, kinds, strict=True) if k == kind), default=1)

    for value in range(longest("value")):
        for size in range(longest("size")):
            turn = {"value": value, "size": size, "batch": 0}
            yield tuple(
                min(turn[kind], len(column) - 1)
                for column, kind in zip(columns, kinds, strict=True)
            )


def _combined(columns: Sequence[Sequence[int]], kinds: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Places in every combination, by how far down their lists they are together."""
    start = (0,) * len(columns)
    queue, queued = [(0, start)], {start}
    while queue:
        rank, places = heapq.heappop(queue)
        yield places
        for i, at in enumerate(places):
            further = (*places[:i], at + 1, *places[i + 1 :])
            if at + 1 < len(columns[i]) and further not in queued:
                queued.add(further)
                heapq.heappush(queue, (rank + _STEPS[kinds[i]], further))


# ---------------------------------------------------------------------------------------------
# roles


def _roles(specs: Sequence[InputSpec], hints: Mapping[str, Hint]) -> dict[str, str]:
    """The role of every symbol that is no sum of others; the first use that tells counts."""
    axes = batch_axes(specs)
    sums = set(_sums(specs))
    sound = _sound(specs)
    found: dict[str, str] = {}
    for spec in specs:
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and dim not in sums:
                role = _role(spec, axis, dim, axes[spec.name])
                if sound and role in ("other", "sequence", "sound") and axis == len(spec.shape) - 1:
                    role = sound
                if found.get(dim, "other") == "other":
                    found[dim] = role
    return found


def _sound(specs: Sequence[InputSpec]) -> str:
    """The role of last axes in a model that asks for a rate: sound, in pieces where it remembers
    what came before."""
    if not any(_RATE.search(spec.name) and is_whole(spec) for spec in specs):
        return ""
    state = any(
        batch != 0 and len(s.shape) > 1 for s in specs for batch in [batch_axes(specs)[s.name]]
    )
    return "chunk" if state else "sound"


def is_sound(spec: InputSpec, specs: Sequence[InputSpec]) -> bool:
    """Whether an input is a wave as microphones give it, from -1 to 1."""
    named = _SOUND.search(spec.name) and spec.name != "input_values"
    asked = _sound(specs) and batch_axes(specs)[spec.name] == 0
    return spec.dtype.startswith("float") and 0 < len(spec.shape) <= 3 and bool(named or asked)


#: What recurrent networks call what they remember.
_MEMORY = re.compile(r"state|hidden|cell|(^|_)(h|c|hn|cn|h0|c0|h_0|c_0)$", re.IGNORECASE)


def is_state(spec: InputSpec, specs: Sequence[InputSpec]) -> bool:
    """Whether an input is what a recurrent network remembers of what came before: by its name,
    and a batch that is not in front or a width beside one."""
    if not spec.dtype.startswith("float") or not 2 <= len(spec.shape) <= 3 or len(specs) < 2:
        return False
    return bool(_MEMORY.search(spec.name)) and not re.search(
        r"encoder|last_hidden|embed|mask|past|key|value", spec.name, re.IGNORECASE
    )


def is_whole(spec: InputSpec) -> bool:
    """Whether an input is of integers."""
    return spec.dtype.startswith(("int", "uint"))


def _role(spec: InputSpec, axis: int, symbol: str, batch: int | None) -> str:
    plain = symbol.startswith("?")
    text = "" if plain else symbol
    # A letter alone says so where samples are counted: N is also how exporters call any number.
    if _BATCH.search(text) and (axis == batch or len(text) > 2):
        return "batch"
    if axis == batch and not (axis == 0 and _SEQUENCE.search(text)):
        return "batch"
    rank = len(spec.shape)
    is_float = spec.dtype.startswith(("float", "bfloat"))
    # An input that is named for what it holds tells more than an axis "sequence_length".
    for part in (spec.name, text) if is_float else (text,):
        if _SPACE.search(part) and (axis >= rank - 2 or part is text):
            return "space"
        if _SOUND.search(part):
            return "sound"
    if _SEQUENCE.search(text):
        return "sequence"
    if _STATE.search(spec.name):
        return "sequence"
    # A picture, channels first; with them last, axis 1 is as free as axis 2.
    picture = (rank, axis) in _PLACES or (rank == 4 and axis == 1 and spec.shape[3] in (1, 3, 4))
    picture = picture and not (axis == 3 and rank == 4 and isinstance(spec.shape[1], str))
    return "space" if picture and (is_float or spec.dtype == "uint8") else "other"


def _sizes(
    symbol: str, role: str, specs: Sequence[InputSpec], hints: Mapping[str, Hint]
) -> tuple[int, ...]:
    # Convolutions go along the last axes: one, or two of a picture.
    along = 2 if role == "space" else 1
    stride = max(
        (hints.get(s.name, Hint()).stride for s in specs if symbol in s.shape[-along:]), default=1
    )
    usual = _ROLES[role]
    told = [
        size
        for spec in specs
        for axis, size in hints.get(spec.name, Hint()).known
        if -len(spec.shape) <= axis < len(spec.shape) and spec.shape[axis] == symbol
    ]
    if told and role != "batch":
        return tuple(dict.fromkeys([*told, *usual]))
    if role == "space":
        first = max(_CELLS * stride, -(-_LEAST // stride) * stride)
        usual = (first, *(size for size in usual if size != first))
    elif role in ("other", "sequence") and stride >= 8:
        first = max(usual[0], 16 * stride)
        usual = (first, *usual)
    return usual


def _values(spec: InputSpec, hint: Hint) -> tuple[int, ...]:
    """Values to try on an integer input of one element, the likeliest first."""
    if not is_whole(spec) or any(dim != 1 for dim in spec.shape):
        return ()
    rates = _RATES if _RATE.search(spec.name) else ()
    known = [rate for rate in rates if rate in hint.values]
    return tuple(dict.fromkeys([*known, *hint.values, *rates]))


# ---------------------------------------------------------------------------------------------
# sums: past_sequence_length + sequence_length


def _sums(specs: Sequence[InputSpec]) -> list[str]:
    symbols = list(dict.fromkeys(d for s in specs for d in s.shape if isinstance(d, str)))
    past = any(_PAST.search(symbol) for symbol in symbols)
    return [
        symbol
        for symbol in symbols
        if _SUM.fullmatch(symbol) or (past and _TOTAL.search(symbol) and "?" not in symbol)
    ]


def _total(symbol: str, sizes: Mapping[str, int]) -> int:
    """What a sum of symbols and numbers comes to; of a "total", the past and the present."""
    if "+" in symbol:
        parts = [part.strip() for part in symbol.split("+")]
        return sum(int(part) if part.isdigit() else sizes.get(part, 1) for part in parts)
    past = next((size for name, size in sizes.items() if _PAST.search(name)), 0)
    now = next(
        (
            size
            for name, size in sizes.items()
            if _SEQUENCE.search(name) and not _PAST.search(name) and "?" not in name
        ),
        1,
    )
    return past + now
