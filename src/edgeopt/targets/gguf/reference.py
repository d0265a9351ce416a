"""The source in 16 bits as GGUF: what the full proof compares with, and what export writes."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgeopt.core import Progress, Source, format_bytes
from edgeopt.errors import OutputError
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.plan import GgufAsked, layout_of, make_gguf_plan
from edgeopt.llm.stream import write_model

__all__ = ["default_export_type", "require_room", "write_reference"]


def default_export_type(source: Source) -> str:
    """16 bits of the source's own kind: BF16 where most of it is bfloat16, else F16."""
    bytes_of: dict[str, int] = {}
    for weight in source.weights:
        bytes_of[weight.dtype] = bytes_of.get(weight.dtype, 0) + weight.nbytes
    most = max(bytes_of, key=lambda name: bytes_of[name], default="")
    return "BF16" if most == "bfloat16" else "F16"


def require_room(path: Path, nbytes: int) -> None:
    """Say now that the disk is too small, not after minutes of work."""
    free = shutil.disk_usage(path.parent).free
    if nbytes > free:
        raise OutputError(
            f"{path}: takes {format_bytes(nbytes)}, {format_bytes(free)} are free on its disk; "
            "free some space or write elsewhere with -o"
        )


def write_reference(
    source: Source, model: LanguageModel, path: Path, progress: Progress | None
) -> int:
    """The source in 16 bits (or as it is, where it is GGUF), for the full proof."""
    plan = make_gguf_plan(
        source, model, GgufAsked(default_export_type(source), allow_requantize=True)
    )
    layout = layout_of(model, plan)
    require_room(path, layout.nbytes)
    write_model(source, model, plan, layout, path, progress=progress)
    return layout.nbytes
