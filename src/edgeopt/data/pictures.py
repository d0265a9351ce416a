"""Made-up pictures of several kinds: what cameras and scanners give is not one statistic.

All are drawn in the units that networks normalise to, about zero with a deviation of about one and
seldom beyond two, so that an input's own mean and deviation can be put to them. None is taken from
a picture of anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgeopt.core import Array

__all__ = ["PICTURES", "SMALLEST", "picture"]

#: Under this many cells along an axis there is no room for shapes.
SMALLEST = 8

#: A letter with the space around it, in cells, the distance of lines, and a letter's strokes.
_LETTER, _LINE, _STROKES = 8, 16, 3

_Shape = tuple[int, ...]


def picture(index: int, shape: _Shape, rng: np.random.Generator) -> Array:
    """A batch of pictures (``[..., channels, height, width]``) of the ``index``-th kind, round and
    round."""
    names = list(PICTURES)
    return PICTURES[names[index % len(names)]](shape, rng)


def _patches(shape: _Shape, rng: np.random.Generator) -> Array:
    """A coarse grid spread out, plus a little detail; variance one."""
    height, width = shape[-2:]
    coarse = rng.standard_normal((*shape[:-2], -(-height // 4), -(-width // 4)))
    spread = coarse.repeat(4, axis=-2).repeat(4, axis=-1)[..., :height, :width]
    return np.asarray(0.9 * spread + (1 - 0.9**2) ** 0.5 * rng.standard_normal(shape))


def _marks(shape: _Shape, rng: np.random.Generator, cell: int = 1) -> Array:
    """Lines of letter-like marks, -1 on 1, each stroke ``2 * cell`` wide: edges and shapes, of
    which noise has none. A network that looks for things (text, objects) finds some here."""
    height, width = -(-shape[-2] // cell), -(-shape[-1] // cell)
    page = np.ones((height, width))
    for top in range(2, height - 7, _LINE):
        for left in range(2, width - 5, _LETTER):
            for place, upright in rng.integers(0, (6, 2), (_STROKES, 2)):
                if upright:
                    page[top : top + 8, left + place : left + place + 2] = -1
                else:
                    page[top + place : top + place + 2, left : left + 6] = -1
    return page.repeat(cell, axis=0).repeat(cell, axis=1)[: shape[-2], : shape[-1]]


def _written(shape: _Shape, rng: np.random.Generator) -> Array:
    """A page, dark on light, mean zero and deviation one; patches where no letter has room."""
    page = _marks(shape, rng)
    if page.min() == page.max():
        return _patches(shape, rng)
    scaled = (page - page.mean()) / page.std()
    return np.broadcast_to(scaled, shape) + 0.05 * rng.standard_normal(shape)


def _pale(shape: _Shape, rng: np.random.Generator) -> Array:
    """A page of low contrast on light paper."""
    return np.broadcast_to(0.9 + 0.3 * _marks(shape, rng), shape) + 0.02 * rng.standard_normal(
        shape
    )


def _correlated(shape: _Shape, rng: np.random.Generator) -> Array:
    """Noise whose amplitude falls with frequency, as in photographs; channels much alike."""
    height, width = shape[-2:]
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = np.maximum(np.hypot(rows, columns), 1 / max(height, width)) ** -1.4
    noise = rng.standard_normal(shape)
    if len(shape) > 2:
        shared = rng.standard_normal((*shape[:-3], 1, height, width))
        noise = 0.9 * shared + (1 - 0.9**2) ** 0.5 * noise
    made = np.fft.irfft2(np.fft.rfft2(noise) * fall, s=(height, width))
    made -= made.mean(axis=(-2, -1), keepdims=True)
    return np.asarray(made / np.maximum(made.std(axis=(-2, -1), keepdims=True), 1e-12))


def _dark(shape: _Shape, rng: np.random.Generator) -> Array:
    """Little light: near the lower end of the range, with a tenth of the usual contrast."""
    return np.asarray(-1.4 + 0.15 * _correlated(shape, rng) + 0.03 * rng.standard_normal(shape))


def _things(shape: _Shape, rng: np.random.Generator) -> Array:
    """A few things of one colour each before a ground that changes slowly."""
    height, width = shape[-2:]
    down, across = np.mgrid[0:1:height*1j, 0:1:width*1j]  # fmt: skip
    lead = shape[:-2]
    slope = rng.uniform(-1, 1, (2, *lead, 1, 1))
    made = np.asarray(slope[0] * (down - 0.5) * 2 + slope[1] * (across - 0.5) * 2)
    for index in range(6):
        top, left = rng.uniform(0.1, 0.9, 2)
        tall, wide = rng.uniform(0.05, 0.3, 2)
        far = (((down - top) / tall) ** 2, ((across - left) / wide) ** 2)
        inside = np.maximum(*far) < 1 if index % 2 else far[0] + far[1] < 1
        colour = rng.uniform(-1.6, 1.6, (*lead, 1, 1))
        made = np.where(inside, colour, made)
    return made + 0.03 * rng.standard_normal(shape)


def _signs(shape: _Shape, rng: np.random.Generator) -> Array:
    """Large light letters before a photograph's ground."""
    ground = _correlated(shape, rng)
    cell = 2 if min(shape[-2:]) >= 48 else 1
    return np.asarray(np.where(_marks(shape, rng, cell) < 0, 1.6, 0.6 * ground - 0.6))


def _blocks(shape: _Shape, rng: np.random.Generator) -> Array:
    """Flat blocks, all colours and edges as sharp as they come."""
    height, width = shape[-2:]
    coarse = rng.uniform(-1.75, 1.75, (*shape[:-2], -(-height // 8), -(-width // 8)))
    return np.asarray(coarse.repeat(8, axis=-2).repeat(8, axis=-1)[..., :height, :width])


#: Kind -> what draws it, in the order in which they are made.
PICTURES: Mapping[str, Callable[[_Shape, np.random.Generator], Array]] = {
    "patches": _patches,
    "writing": _written,
    "things": _things,
    "photo": _correlated,
    "dark": _dark,
    "signs": _signs,
    "blocks": _blocks,
    "pale writing": _pale,
}
