"""Feeds on disk, between parent and child: ``.npz`` without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeopt.core import Array

__all__ = ["read_feed", "write_feed"]


def write_feed(path: Path, feed: Mapping[str, Array]) -> None:
    """Write arrays by name; any name will do, an input called ``file`` included."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in feed.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def read_feed(path: Path) -> dict[str, Array]:
    """Read what :func:`write_feed` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
