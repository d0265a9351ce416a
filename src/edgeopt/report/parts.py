"""Small pieces that every text report is made of."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["decibels", "line", "paragraph", "plain_table", "seconds"]


def decibels(value: float) -> str:
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "identical" if value > 0 else "no signal"
    return f"{value:.1f} dB"


def seconds(value: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= scale:
            number = value / scale
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
    return f"{value * 1e9:.0f} ns"


def line(console: Console, text: Text) -> None:
    """A line that stays one line: paths and code are copied from it."""
    console.print(text, soft_wrap=True)


def paragraph(console: Console, text: Text | str, style: str = "") -> None:
    console.print(Text(text, style=style) if isinstance(text, str) else text)


def plain_table(show_header: bool = True) -> Table:
    """Columns set apart by two blanks: no lines, so that it reads the same everywhere."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=show_header)
