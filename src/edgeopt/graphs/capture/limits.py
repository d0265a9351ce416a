"""Sizes that formats and runtimes set."""

from __future__ import annotations

__all__ = ["EXTERNAL_OVER"]

#: Protocol buffers end at 2 GiB: past this many bytes of tensors they go to a file beside it.
EXTERNAL_OVER = 1_900_000_000
