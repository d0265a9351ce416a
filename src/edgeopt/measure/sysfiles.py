"""The small files in which Linux says what it knows, read without ever failing.

A file that is missing, forbidden or of another shape is None: what is not known is not zero.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["first_line", "kilobytes", "number", "numbered", "numbers", "reset_peak", "text"]

#: Written to clear_refs, sets the peak resident size back to the current one.
_RESET_PEAK = "5"


def text(path: Path) -> str | None:
    """The whole of the file, or None."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def first_line(path: Path) -> str | None:
    """The first line without its blanks (or a device tree's NULs), None where there is none."""
    lines = (text(path) or "").strip("\0 \t\r\n").splitlines()
    return lines[0].strip() if lines else None


def number(path: Path) -> int | None:
    """A file that holds one whole number."""
    line = first_line(path)
    try:
        return None if line is None else int(line)
    except ValueError:
        return None


def kilobytes(path: Path) -> dict[str, int]:
    """``Name: 123 kB`` lines as bytes; empty where the file cannot be read."""
    values = {}
    for line in (text(path) or "").splitlines():
        name, _, rest = line.partition(":")
        parts = rest.split()
        if len(parts) == 2 and parts[1] == "kB" and parts[0].isdigit():
            values[name] = int(parts[0]) * 1024
    return values


def numbers(path: Path) -> dict[str, int]:
    """``name 123`` lines; empty where the file cannot be read."""
    pairs = [line.split() for line in (text(path) or "").splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def numbered(folder: Path, prefix: str) -> list[Path]:
    """The entries ``prefix0, prefix1 ...`` of ``folder`` in the order of their numbers."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
    numbers = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    return [folder / f"{prefix}{n}" for n in sorted(int(n) for n in numbers if n.isdecimal())]


def reset_peak(proc: Path) -> bool:
    """Set VmHWM of the process back to what is resident now; False where that is not allowed."""
    try:
        (proc / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True
