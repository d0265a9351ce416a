"""A plan for GGUF as text: type and bytes of every tensor, and the exact size of the file."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.core import Decision, Ggml, Plan, format_bytes

__all__ = ["render"]


def render(plan: Plan, console: Console) -> None:
    """Print every decision, then what they come to. Nothing is shortened: a plan is looked up."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("tensor", no_wrap=True)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("type", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("why")
    for decision in plan.decisions:
        shape = " x ".join(map(str, decision.shape))
        table.add_row(
            Text(decision.tensor),
            shape,
            _type(decision),
            f"{decision.nbytes:,}",
            Text(decision.reason),
        )
    console.print(table)
    console.print()
    console.print(_by_type(plan))
    console.print()
    size = int(plan.choice("file_bytes", "0"))
    weights = sum(decision.nbytes for decision in plan.decisions)
    values = sum(_size(decision) for decision in plan.decisions)
    line = Text("File: ", style="bold")
    line.append(f"{size:,} bytes ({format_bytes(size)})", style="bold")
    if values:
        line.append(f", {8 * weights / values:.2f} bits a weight", style="default not bold")
    console.print(line, soft_wrap=True)


def _by_type(plan: Plan) -> Table:
    groups: dict[str, list[Decision]] = defaultdict(list)
    for decision in plan.decisions:
        groups[_type(decision)].append(decision)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("type", "tensors", "bytes"):
        table.add_column(name, justify="left" if name == "type" else "right", no_wrap=True)
    ranked = sorted(groups.items(), key=lambda item: -sum(d.nbytes for d in item[1]))
    for kind, decisions in ranked:
        table.add_row(kind, str(len(decisions)), f"{sum(d.nbytes for d in decisions):,}")
    return table


def _type(decision: Decision) -> str:
    return decision.scheme.type if isinstance(decision.scheme, Ggml) else "kept"


def _size(decision: Decision) -> int:
    size = 1
    for dimension in decision.shape:
        size *= dimension
    return size
