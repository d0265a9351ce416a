"""Whether an optional package is there, without importing it."""

from __future__ import annotations

import importlib.util

__all__ = ["is_installed"]


def is_installed(package: str) -> bool:
    """Whether ``package`` could be imported. An import hook that forbids it counts as a no."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
