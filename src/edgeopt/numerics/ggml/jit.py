"""How kernels are compiled: by numba, without the interpreter's lock, kept between runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["inlined", "kernel", "part"]

_F = TypeVar("_F", bound=Callable[..., Any])


def kernel(function: _F) -> _F:
    """Compile at the first call; the machine code is kept beside the package, or per user.

    No fast-math: the same input gives the same bytes on every machine and thread count. Loops that
    should become vector code put independent work side by side instead of reordering sums.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(_F, njit(cache=True, **options)(function))
    except RuntimeError:
        # Nowhere to keep it: neither the package's folder nor the user's cache can be written.
        return cast(_F, njit(**options)(function))


def part(function: _F) -> _F:
    """Compile a function that kernels call, together with the first that does.

    It has no entry from Python, which would take longer to compile than most parts: called from
    Python it crashes the process, so keep it private to its module.
    """
    options = {"nogil": True, "error_model": "numpy"}
    return cast(_F, njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(function))


def inlined(function: _F) -> _F:
    """A helper that becomes part of the kernels that call it."""
    return cast(_F, njit(inline="always", error_model="numpy")(function))
