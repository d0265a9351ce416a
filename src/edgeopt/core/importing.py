"""Code that the user named, imported from the current folder: last, and around that import alone.

The folder may hold files from anywhere. A ``json.py`` or ``numpy.py`` in it must never be taken for
the library's own, so it stands behind everything else on the path, and is gone afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["current_folder"]


@contextmanager
def current_folder(keep: bool = False) -> Iterator[str]:
    """The current folder at the end of the path, within the block; its name.

    ``keep``: afterwards too, in a process that is there for the user's code alone, which may import
    more of its own as it runs.
    """
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield here
    finally:
        if added and not keep and here in sys.path:
            sys.path.remove(here)
