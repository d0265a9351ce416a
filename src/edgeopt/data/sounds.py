"""Made-up sounds of several kinds, from silence to full scale (1), at 16 kHz.

The ranges are those of microphones and of rooms. What sounds like a voice is harmonics of a pitch
that moves, under the resonances of vowels, opened and closed as syllables are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgeopt.core import Array

__all__ = ["SOUNDS", "sound"]

_RATE = 16_000.0

#: First resonances (Hz) of some vowels, and how wide a resonance is.
_VOWELS = ((700.0, 1200.0, 2500.0), (300.0, 2300.0, 3000.0), (400.0, 800.0, 2400.0))
_WIDTH = 120.0

_Shape = tuple[int, ...]


def sound(index: int, shape: _Shape, rng: np.random.Generator) -> Array:
    """Waves along the last axis that is longer than one, of the ``index``-th kind, round and
    round."""
    names = list(SOUNDS)
    make = SOUNDS[names[index % len(names)]]
    axis = max((a for a, size in enumerate(shape) if size > 1), default=-1)
    if axis < 0:
        return 0.1 * rng.standard_normal(shape)
    moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    waves = [make(shape[axis], rng) for _ in range(int(np.prod(moved[:-1])))]
    return np.moveaxis(np.stack(waves).reshape(moved), -1, axis)


def _seconds(length: int) -> Array:
    return np.arange(length) / _RATE


def _voice(length: int, rng: np.random.Generator) -> Array:
    time = _seconds(length)
    pitch = rng.uniform(100, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / _RATE
    vowel = _VOWELS[rng.integers(len(_VOWELS))]
    base = float(pitch.mean())
    made = np.zeros(length)
    for harmonic in range(1, int(4000 / base)):
        near = [np.exp(-0.5 * ((harmonic * base - f) / _WIDTH) ** 2) for f in vowel]
        strength = 0.15 / harmonic + near[0] + 0.5 * near[1] + 0.2 * near[2]
        made += strength * np.sin(harmonic * phase)
    made *= 0.55 + 0.45 * np.sin(2 * np.pi * 4 * time + rng.uniform(0, 1))
    return np.asarray(0.12 * made / max(float(made.std()), 1e-9) + 0.002 * _noise(length, rng))


def _noise(length: int, rng: np.random.Generator) -> Array:
    return rng.standard_normal(length)


def _tone(length: int, rng: np.random.Generator) -> Array:
    wave = np.sin(2 * np.pi * rng.uniform(50, 3000) * _seconds(length) + rng.uniform(0, 6))
    return np.asarray(0.3 * wave + 0.05 * _noise(length, rng))


def _silence(length: int, rng: np.random.Generator) -> Array:
    return 1e-4 * _noise(length, rng)


def _hiss(length: int, rng: np.random.Generator) -> Array:
    return np.clip(0.3 * _noise(length, rng), -1, 1)


def _quiet_voice(length: int, rng: np.random.Generator) -> Array:
    return 0.08 * _voice(length, rng)


def _sweep(length: int, rng: np.random.Generator) -> Array:
    place = np.arange(length) / max(length, 1)
    low, high = rng.uniform(50, 400), rng.uniform(2000, 7000)
    hertz = low * (high / low) ** place
    return np.asarray(0.5 * np.sin(2 * np.pi * np.cumsum(hertz) / _RATE))


def _knocks(length: int, rng: np.random.Generator) -> Array:
    """Bursts that die away, in a quiet room."""
    made = 0.001 * _noise(length, rng)
    for start in rng.integers(0, length, max(1, length // 4000)):
        rest = length - start
        made[start:] += 0.7 * _noise(rest, rng) * np.exp(-np.arange(rest) / 200)
    return np.clip(made, -1, 1)


def _chord(length: int, rng: np.random.Generator) -> Array:
    time = _seconds(length)
    made = np.zeros(length)
    root = rng.uniform(100, 400)
    for step in (1.0, 1.26, 1.5):
        for overtone in range(1, 6):
            made += np.sin(2 * np.pi * root * step * overtone * time) / overtone
    fade = np.exp(-(time % 0.5) / 0.3)
    return np.asarray(0.25 * made * fade / max(float(np.abs(made).max()), 1e-9))


#: Kind -> what draws it, in the order in which they are made.
SOUNDS: Mapping[str, Callable[[int, np.random.Generator], Array]] = {
    "voice": _voice,
    "tone": _tone,
    "silence": _silence,
    "noise": _hiss,
    "quiet voice": _quiet_voice,
    "sweep": _sweep,
    "knocks": _knocks,
    "chord": _chord,
}
