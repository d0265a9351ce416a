"""Giving back the memory pages of files that were mapped and read."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["drop_pages"]


def drop_pages(files: Iterable[Path]) -> None:
    """Take the pages of read-only mappings of ``files`` out of this process.

    They stay in the system's page cache, from which the kernel takes them when memory is short;
    a later access brings them back. What a streaming pass has read thus does not add up in its
    resident size. Linux only; elsewhere nothing happens.
    """
    advise = _madvise()
    if advise is None:
        return
    wanted = {os.path.realpath(file) for file in files}
    for start, end, path in _shared_maps():
        if path in wanted:
            # Shared and backed by the file: nothing is lost. MADV_DONTNEED of private memory
            # would be another matter, so only such maps are listed.
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _shared_maps() -> list[tuple[int, int, str]]:
    """(start, end, path) of this process's shared read-only file mappings."""
    found = []
    for line in (
        Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    ):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "r--s":
            start, _, end = fields[0].partition("-")
            found.append((int(start, 16), int(end, 16), fields[5]))
    return found


@cache
def _madvise() -> Any:
    if sys.platform != "linux":
        return None
    return ctypes.CDLL(None, use_errno=True).madvise
