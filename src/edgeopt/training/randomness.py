"""Randomness that is a function of the seed and of where the training stands.

Every update seeds torch, numpy and Python anew from (seed, step, process): nothing that was drawn
before matters, so that a run taken up again from a checkpoint draws what the first one drew.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["deterministic", "isolated", "seed_all"]


def seed_all(*key: int) -> None:
    """Seed the generators that modules and callables use by default, from whole numbers >= 0."""
    first, second, third = np.random.SeedSequence(key).generate_state(3, np.uint64)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(first))
    torch.default_generator.manual_seed(int(first))
    random.seed(int(second))
    # What a person's own code draws from without a generator is this one.
    np.random.seed(int(third) % 2**32)  # noqa: NPY002


@contextmanager
def isolated(*key: int) -> Iterator[None]:
    """Seeded so within the block; afterwards the generators stand where they stood before."""
    ours, python, theirs = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    seed_all(*key)
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        random.setstate(python)
        np.random.set_state(theirs)  # noqa: NPY002
        if on_gpu:
            torch.cuda.set_rng_state_all(on_gpu)


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic kernels, where torch has them (it warns where it has none)."""
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    # cuBLAS is deterministic only with this, read when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        torch.utils.deterministic.fill_uninitialized_memory = filled
