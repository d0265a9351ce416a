"""Which pages of a file a process has mapped, as Linux counts them in /proc/self/smaps.

Pages of a shared mapping are the page cache's own: every process that maps the file has the same
ones, and the system can drop them. PSS divides each page by the processes that map it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "SMAPS",
    "FilePages",
    "Mapped",
    "file_pages",
    "mapped_files",
    "mappings",
    "mappings_known",
]

SMAPS = Path("/proc/self/smaps")


@dataclass(frozen=True)
class Mapped:
    """One mapping: the file behind it (``inode`` 0 where there is none), and bytes by field.

    ``path`` ends in " (deleted)" where the file has gone; ``device`` is (major, minor), on some
    layered file systems not the one that ``stat`` gives.
    """

    path: str
    device: tuple[int, int]
    inode: int
    shared: bool
    sizes: Mapping[str, int]


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
    return SMAPS.exists()


def file_pages(path: str | os.PathLike[str], smaps: Path = SMAPS) -> FilePages | None:
    """The mappings of ``path``; None where there is none, or the system does not say."""
    real = os.path.realpath(path)
    found = [each for each in mappings(smaps) if each.path == real]
    if not found:
        return None

    def total(*fields: str) -> int:
        return sum(each.sizes.get(field, 0) for each in found for field in fields)

    return FilePages(
        size=total("Size"),
        rss=total("Rss"),
        pss=total("Pss"),
        shared=total("Shared_Clean", "Shared_Dirty"),
        private=total("Private_Clean", "Private_Dirty"),
        anonymous=total("Anonymous"),
        shareable=all(each.shared for each in found),
    )


def mapped_files(files: Iterable[Path], folder: Path) -> dict[str, bool | None]:
    """Whether this process has each file mapped now, by its path from ``folder``; None where the
    system does not say."""
    known = mappings_known()
    mapped = {each.path for each in mappings()}
    return {
        Path(os.path.relpath(file, folder)).as_posix(): (
            os.path.realpath(file) in mapped if known else None
        )
        for file in files
    }


def mappings(smaps: Path = SMAPS) -> Iterator[Mapped]:
    """Every mapping of the process; none where the system does not say.

    Read a line at a time: the whole text can be megabytes, which would count as the process's own.
    """
    head: list[str] = []
    sizes: dict[str, int] = {}
    try:
        with smaps.open(encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                parts = line.split(None, 5)
                if not parts[0].endswith(":"):  # address perms offset device inode path
                    if head:
                        yield _mapped(head, sizes)
                    head, sizes = parts, {}
                elif len(parts) == 3 and parts[2] == "kB":
                    sizes[parts[0][:-1]] = int(parts[1]) * 1024
    except OSError:
        return
    if head:
        yield _mapped(head, sizes)


def _mapped(head: Sequence[str], sizes: Mapping[str, int]) -> Mapped:
    major, _, minor = head[3].partition(":")
    return Mapped(
        path=head[5].rstrip("\n") if len(head) == 6 else "",
        device=(int(major, 16), int(minor, 16)),
        inode=int(head[4]),
        shared="s" in head[1],
        sizes=sizes,
    )
