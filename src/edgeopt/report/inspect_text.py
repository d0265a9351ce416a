"""The document of ``inspect`` as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from edgeopt.core import format_bytes

__all__ = ["render"]

_KINDS = {
    "torch-state-dict": "torch state dict",
    "torch-checkpoint": "torch checkpoint",
    "torch-module": "pickled torch module",
    "torchscript": "TorchScript",
    "torch-exported": "torch ExportedProgram (.pt2)",
    "onnx": "ONNX",
    "gguf": "GGUF",
    "hf-folder": "Hugging Face folder",
}
_CAUSES = {
    "architecture": "architecture (layers)",
    "embeddings": "embeddings",
    "data": "data, training state",
    "serialization": "serialization",
}


def render(document: Mapping[str, Any], console: Console) -> None:
    """Print the document of an inspection; commands stay on one line, so that they can be
    copied."""
    width = min(100, console.width)
    for line in _lines(document, width):
        heading = bool(line) and not line.startswith(" ") and not line.startswith("note:")
        text = Text(line, style="bold" if heading else "")
        text.highlight_regex(r"\$ .*$", style="cyan")
        console.print(text, soft_wrap=True)


def _lines(document: Mapping[str, Any], width: int) -> Iterator[str]:
    yield from _head(document, width)
    yield from _causes(document, width)
    yield from _groups(document, width)
    yield from _findings(document, width)
    yield from _predictions(document, width)
    yield from _notes(document, width)


def _head(document: Mapping[str, Any], width: int) -> Iterator[str]:
    dtypes = document["dtypes"]
    counts = ", ".join(f"{name} x{count}" for name, count in list(dtypes.items())[:4])
    kind = _KINDS.get(document["kind"], document["kind"])
    summary = (
        f"{document['path']}: {kind}, {format_bytes(document['nbytes'])}, "
        f"{document['parameters']:,} parameters in {document['tensors']} tensors ({counts})"
    )
    yield from textwrap.wrap(summary, width, break_long_words=False, break_on_hyphens=False)


def _share(nbytes: int, total: int, width: int) -> str:
    share = nbytes / total if total else 0.0
    bar = "█" * round(share * (20 if width >= 100 else 12)) or ("▏" if nbytes > 0 else "")
    return f"{format_bytes(nbytes):>9}  {share:>6.1%}  {bar}"


def _causes(document: Mapping[str, Any], width: int) -> Iterator[str]:
    yield ""
    yield "Why it is this big"
    for cause in document["causes"]:
        line = f"  {_CAUSES[cause['name']]:<26}{_share(cause['nbytes'], document['nbytes'], width)}"
        yield line.rstrip()
        parts = cause["parts"]
        if len(parts) > 1 or cause["name"] in ("data", "serialization"):
            for name, nbytes in parts.items():
                yield f"    {name:<24}{format_bytes(nbytes):>9}"


def _groups(document: Mapping[str, Any], width: int) -> Iterator[str]:
    groups = document["groups"]
    if len(groups) < 2:
        return
    names = [g["name"] + (f"  x{g['count']}" if g["count"] > 1 else "") for g in groups]
    room = min(max(map(len, names)) + 2, width - 33)
    yield ""
    yield "By layer group"
    for name, found in zip(names, groups, strict=True):
        short = name if len(name) <= room - 2 else "…" + name[-(room - 3) :]
        share = _share(found["nbytes"], document["nbytes"], width)
        yield f"  {short:<{max(26, room)}}{share}".rstrip()


def _findings(document: Mapping[str, Any], width: int) -> Iterator[str]:
    yield ""
    if not document["findings"]:
        yield "Findings: none; every byte serves the model as it is"
        return
    yield "Findings, and what each would save"
    for found in document["findings"]:
        about = "" if found["exact"] else "about "
        lossy = "" if found["lossless"] else "; changes values, so it is proven first"
        saved = f"{about}{format_bytes(found['saves'])}"
        yield from textwrap.wrap(
            f"{found['title']}{lossy if 'edgeopt' in (found['command'] or '') else ''}",
            width,
            initial_indent=f"  {saved:>13}  ",
            subsequent_indent=" " * 17,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if found["command"]:
            yield f"      $ {found['command']}"


def _predictions(document: Mapping[str, Any], width: int) -> Iterator[str]:
    made = document["predictions"]
    if not made:
        return
    yield ""
    yield "Size it would have"
    for row in made:
        size = format_bytes(row["nbytes"]) if not row["exact"] else f"{row['nbytes']:,} B"
        about = "" if row["exact"] else "about "
        share = row["nbytes"] / document["nbytes"] if document["nbytes"] else 0.0
        how = f"$ {row['command']}" if row["command"] else row["note"]
        line = f"  {row['name']:<7}{row['format']:<12}{about + size:>15}  {share:>4.0%}"
        if len(line) + len(how) + 3 <= width:
            yield f"{line}   {how}"
        else:
            yield line
            yield f"      {how}"
    noted: dict[str, list[str]] = {}
    for row in made:
        if row["command"] and row["note"]:
            noted.setdefault(row["note"], []).append(f"{row['format']} {row['name']}")
    for note, names in noted.items():
        yield from textwrap.wrap(
            f"{', '.join(names)}: {note}", width, initial_indent="  ", subsequent_indent="    "
        )


def _notes(document: Mapping[str, Any], width: int) -> Iterator[str]:
    if document["notes"]:
        yield ""
    for note in document["notes"]:
        yield from textwrap.wrap(
            f"note: {note}",
            width,
            subsequent_indent="      ",
            break_long_words=False,
            break_on_hyphens=False,
        )
