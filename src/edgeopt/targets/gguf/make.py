"""A language model to GGUF: plan it, stream it to the file, prove the file."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path

from edgeopt.core import Choice, Plan, Progress, Proof, Source, format_bytes
from edgeopt.errors import OutputError, UsageError
from edgeopt.files.atomic import checked_output
from edgeopt.files.gguf_write import Layout
from edgeopt.files.imatrix import Imatrix, read_imatrix
from edgeopt.files.reading import as_named
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.plan import GgufAsked, layout_of, make_gguf_plan, replayed
from edgeopt.llm.read import read_model
from edgeopt.llm.stream import write_model
from edgeopt.targets.gguf.options import GgufOptions
from edgeopt.targets.gguf.prove import prove_gguf
from edgeopt.targets.keep import write_proven

__all__ = ["DEFAULT_TYPE", "default_export_type", "gguf_plan", "make_gguf", "write_reference"]

#: By bits asked for; None: nothing was asked.
DEFAULT_TYPE = {None: "Q4_K_M", 4: "Q4_K_M", 8: "Q8_0"}


def gguf_plan(source: Source, options: GgufOptions, bits: int | None = None) -> Plan:
    """Every tensor's type and bytes, and the file's exact size, without reading a weight."""
    model = read_model(source, pre_tokenizer=options.pre_tokenizer)
    plan, _ = _planned(source, model, options, bits, _importance(options))
    return plan


def _planned(
    source: Source,
    model: LanguageModel,
    options: GgufOptions,
    bits: int | None,
    importance: Imatrix | None,
) -> tuple[Plan, Layout]:
    if bits is not None and options.type is not None:
        raise UsageError(f"--bits {bits} and --type {options.type}: give one of the two")
    kind = (options.type or DEFAULT_TYPE[bits]).upper()
    asked = GgufAsked(kind, options.overrides(), importance, options.allow_requantize)
    plan = make_gguf_plan(source, model, asked)
    layout = layout_of(model, plan, importance)
    size = Choice("file_bytes", str(layout.nbytes), "the exact size of the file")
    return dataclasses.replace(plan, choices=(size,)), layout


def make_gguf(
    source: Source,
    out: str | Path | None,
    options: GgufOptions,
    *,
    verb: str = "quantize",
    bits: int | None = None,
    plan: Plan | None = None,
    min_sqnr: float | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Write ``source`` as GGUF in one pass and prove the file. See :func:`edgeopt.quantize`."""
    if progress is not None:
        progress("opening", None)
    model = read_model(source, pre_tokenizer=options.pre_tokenizer)
    importance = _importance(options)
    if importance is not None and (note := importance.fitted(model.tensors).note()) is not None:
        model = dataclasses.replace(model, notes=(*model.notes, note))
    if plan is None:
        made, layout = _planned(source, model, options, bits, importance)
    else:
        made = replayed(source, model, plan, importance)
        _require_same(made, options, bits)
        layout = layout_of(model, made, importance)
        if made.choice("file_bytes") != str(layout.nbytes):
            raise UsageError(
                f"the plan says {made.choice('file_bytes') or 'no'} bytes, the file takes "
                f"{layout.nbytes}; make the plan anew"
            )
    path = _artifact_path(source, out, str(made.options["type"]))
    _require_room(path, layout.nbytes)

    def make(temporary: Path) -> Proof:
        began = time.monotonic()
        write_model(
            source, model, made, layout, temporary, importance=importance, progress=progress
        )
        converted = time.monotonic() - began

        def write(reference: Path) -> int:
            return write_reference(source, model, reference, progress)

        proof = prove_gguf(
            verb,
            source,
            model,
            made,
            temporary,
            path,
            depth=options.prove,
            text=None if options.text is None else Path(options.text),
            chunks=options.chunks,
            context=options.context,
            min_sqnr=min_sqnr,
            write_reference=write,
            threads=threads,
            progress=progress,
        )
        seconds = {"converting": converted, **proof.artifact.get("seconds", {})}
        artifact = {**proof.artifact, "seconds": seconds}
        return dataclasses.replace(proof, artifact=artifact)

    return write_proven(path, made, force, make, sources=(source.path, *source.files))


def _require_same(plan: Plan, options: GgufOptions, bits: int | None) -> None:
    """UsageError where types are asked for beside a plan, which has them all."""
    planned = str(plan.options.get("type"))
    asked = options.type or (None if bits is None else DEFAULT_TYPE[bits])
    if asked is not None and asked.upper() != planned:
        raise UsageError(f"the plan is one for {planned}, not for {asked}; leave --type out")
    pairs = [list(pair) for pair in options.overrides()]
    if pairs and pairs != plan.options.get("tensor_types"):
        raise UsageError("the plan has every tensor's type already; leave --tensor-type out")


def default_export_type(source: Source) -> str:
    """16 bits of the source's own kind: BF16 where most of it is bfloat16, else F16."""
    bytes_of: dict[str, int] = {}
    for weight in source.weights:
        bytes_of[weight.dtype] = bytes_of.get(weight.dtype, 0) + weight.nbytes
    most = max(bytes_of, key=lambda name: bytes_of[name], default="")
    return "BF16" if most == "bfloat16" else "F16"


def _importance(options: GgufOptions) -> Imatrix | None:
    return None if options.imatrix is None else read_imatrix(Path(options.imatrix))


def _artifact_path(source: Source, out: str | Path | None, kind: str) -> Path:
    """``NAME-Q4_K_M.gguf`` beside the source; a tag of 16 or 32 bits in NAME is taken off."""
    if out is None:
        path = as_named(source.path)
        stem = path.name if path.is_dir() else path.name.removesuffix(path.suffix)
        for tag in ("-f32", "-f16", "-bf16", ".f32", ".f16", ".bf16"):
            if stem.lower().endswith(tag):
                stem = stem[: -len(tag)]
        out = path.parent / f"{stem}-{kind}.gguf"
    return checked_output(out, [source.path, *source.files])


def _require_room(path: Path, nbytes: int) -> None:
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
    _require_room(path, layout.nbytes)
    write_model(source, model, plan, layout, path, progress=progress)
    return layout.nbytes
