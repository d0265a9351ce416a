"""Pages of mapped files are given back, and come back when they are wanted."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeopt.files.pages import drop_pages
from edgeopt.runtimes.smaps import file_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux")


def test_pages_leave_and_come_back(tmp_path: Path) -> None:
    path, other = tmp_path / "a b.bin", tmp_path / "other.bin"
    content = os.urandom(1 << 20)
    for file in (path, other):
        file.write_bytes(content)
    maps = {}
    for file in (path, other):
        with file.open("rb") as stream:
            maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        assert np.frombuffer(maps[file], np.uint8).sum() > 0
    before = file_pages(path)
    assert before is not None
    assert before.rss == 1 << 20
    drop_pages([path])
    after, beside = file_pages(path), file_pages(other)
    assert after is not None
    assert beside is not None
    assert after.rss == 0
    assert beside.rss == 1 << 20
    assert maps[path][:] == content


def test_private_copies_are_left_alone(tmp_path: Path) -> None:
    """To drop those would lose what was written to them."""
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(8192))
    with path.open("rb") as stream:
        private = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    private[0] = 7
    drop_pages([path])
    assert private[0] == 7
