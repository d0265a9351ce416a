"""How kernels are compiled: by numba, without the interpreter's lock, kept between runs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

from edgeopt.core import ggml

__all__ = ["inlined", "kernel", "part"]

_F = TypeVar("_F", bound=Callable[..., Any])


def kernel(function: _F) -> _F:
    """Compile at the first call; the machine code is kept beside the package, or per user.

    No fast-math: the same input gives the same bytes on every machine and thread count. Loops that
    should become vector code put independent work side by side instead of reordering sums.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        compiled = njit(cache=True, **options)(function)
        stamp_cache(compiled, digest())
        return cast(_F, compiled)
    except RuntimeError:
        # Nowhere to keep it: neither the package's folder nor the user's cache can be written.
        return cast(_F, njit(**options)(function))


@functools.cache
def digest(folder: Path = Path(__file__).parent) -> str:
    """Of every source that kernels are made of: functions and constants of other files are
    compiled into them."""
    whole = hashlib.sha256()
    for file in (*sorted(folder.glob("*.py")), _TYPES):
        whole.update(f"{file.name}\0".encode() + file.read_bytes())
    return whole.hexdigest()


#: Where the types' block sizes stand.
_TYPES = Path(ggml.__file__)


def stamp_cache(compiled: Any, stamp: str) -> None:
    """Let machine code that is kept stand for ``stamp``: numba itself looks at the kernel's own
    file alone, and would go on with another file's old constants.

    numba has no public way to say so; where its own ends differ, nothing is kept.
    """
    cache = getattr(compiled, "_cache", None)
    kept = getattr(cache, "_cache_file", None)
    if kept is None or not hasattr(kept, "_source_stamp"):
        if cache is not None and hasattr(cache, "disable"):
            cache.disable()
        return
    kept._source_stamp = stamp


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
