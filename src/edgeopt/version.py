"""The version, which rooms below the package's own names may ask for."""

from __future__ import annotations

__all__ = ["VERSION"]

VERSION = "0.1.0"
