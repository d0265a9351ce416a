"""Which pages of a file a process has mapped, as Linux counts them in /proc/self/smaps.

Pages of a shared mapping are the page cache's own: every process that maps the file has the same
ones, and the system can drop them. PSS divides each page by the processes that map it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FilePages", "file_pages", "mapped_files", "mappings_known"]

_SMAPS = Path("/proc/self/smaps")


@dataclass(frozen=True)
class FilePages:
    """Bytes, summed over the mappings of one file.

    ``size`` is mapped, ``rss`` present, ``pss`` this process's part of it. ``shared`` pages are
    mapped by another process too, ``private`` ones by none (yet). ``anonymous`` are copies that
    this process made by writing. ``shareable`` is whether every mapping is MAP_SHARED.
    """

    size: int
    rss: int
    pss: int
    shared: int
    private: int
    anonymous: int
    shareable: bool


def mappings_known() -> bool:
    """Whether this system says what a process has mapped: Linux does."""
    return _SMAPS.exists()


def file_pages(path: str | os.PathLike[str], smaps: Path = _SMAPS) -> FilePages | None:
    """The mappings of ``path``; None where there is none, or the system does not say."""
    real = os.path.realpath(path)
    found = [(shared, sizes) for name, shared, sizes in _mappings(smaps) if name == real]
    if not found:
        return None

    def total(*fields: str) -> int:
        return sum(sizes.get(field, 0) for _, sizes in found for field in fields)

    return FilePages(
        size=total("Size"),
        rss=total("Rss"),
        pss=total("Pss"),
        shared=total("Shared_Clean", "Shared_Dirty"),
        private=total("Private_Clean", "Private_Dirty"),
        anonymous=total("Anonymous"),
        shareable=all(shared for shared, _ in found),
    )


def mapped_files(files: Iterable[Path], folder: Path) -> dict[str, bool | None]:
    """Whether this process has each file mapped now, by its path from ``folder``; None where the
    system does not say."""
    known = mappings_known()
    mapped = {name for name, _, _ in _mappings(_SMAPS)}
    return {
        Path(os.path.relpath(file, folder)).as_posix(): (
            os.path.realpath(file) in mapped if known else None
        )
        for file in files
    }


def _mappings(smaps: Path) -> Iterator[tuple[str, bool, dict[str, int]]]:
    """(path, whether MAP_SHARED, bytes by field) of every mapping that has a path."""
    try:
        lines = smaps.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    name, shared = "", False
    sizes: dict[str, int] = {}
    for line in lines:
        parts = line.split(None, 5)
        if not parts[0].endswith(":"):  # address perms offset device inode path
            if name:
                yield name, shared, sizes
            name, shared, sizes = parts[5] if len(parts) == 6 else "", "s" in parts[1], {}
        elif len(parts) == 3 and parts[2] == "kB":
            sizes[parts[0].rstrip(":")] = int(parts[1]) * 1024
    if name:
        yield name, shared, sizes
