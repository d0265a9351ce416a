"""``edgeopt export``: the front door of quantize without quantizing, proven the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core import Change, Progress, Proof, Source
from edgeopt.errors import CaptureError, SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.gguf.options import GGUF_KEYWORDS, GgufOptions, lacks_cache, wants_gguf
from edgeopt.targets.keep import external_over
from edgeopt.targets.onnx.source import Prepared, prepare, require_graph
from edgeopt.verbs.applies import require_meaning
from edgeopt.verbs.calling import verb

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgeopt.targets.gguf.options import GgufKeywords

__all__ = ["export"]

#: What GGUF stores without quantizing.
_PLAIN = ("F16", "BF16", "F32")

_HALF = (
    "weights are float16 in the file and float32 in the arithmetic: the runtime casts them once,"
    " when a session opens, tables as they are gathered from"
)


@verb(more=GGUF_KEYWORDS)
def export(
    source: str | Path,
    out: str | Path | None = None,
    *,
    to: str | None = None,
    half: bool = False,
    opset: int | None = None,
    external_data: str | int = "auto",
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    min_sqnr: float | None = None,
    prefer: str = "balanced",
    force: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
    **gguf: Unpack[GgufKeywords],
) -> Proof:
    """Write ``source`` as an ONNX file that plain ONNX Runtime runs, and prove the written file.

    Constants are folded and batch normalisation goes into the convolution before it; otherwise
    the graph is the source's. The bytes depend on the source and the options alone (and on the
    versions that the metadata names).

    ``half`` stores weights in float16, each with a Cast that the runtime folds when a session
    opens: half the file at FP32's speed on CPUs, whose kernels have no float16. Inputs, outputs
    and vectors stay float32, and so does a tensor that overflows float16 or that lies so low in
    its range that precision is lost (see :mod:`edgeopt.graphs.half`).

    Args:
        source: a model file or folder, recognised by content.
        out: file to write; default ``NAME-fp32.onnx``, ``NAME-fp16.onnx`` or ``NAME-F16.gguf``
            beside the source.
        to: ``onnx``, or ``gguf``: language models in 16 or 32 bits for llama.cpp.
        half: store weights in float16; the file must then be smaller than the source.
        opset: version of ONNX's operators; default 21, and an ONNX source keeps its own.
        external_data: as in :func:`edgeopt.quantize`.
        min_sqnr: fidelity floor in dB (default 30, with ``half`` 40).
        data, inputs, model, trust_pickle, prefer, force, threads: as in
            :func:`edgeopt.quantize`; ``data`` is only proven on, and gives example inputs.
        gguf: see :class:`edgeopt.targets.gguf.options.GgufOptions`; ``type`` is F16, BF16 or F32,
            by default 16 bits of the kind that the source has.

    Returns:
        The proof. Where ``proof.proven`` is false and ``force`` was not given, nothing was kept.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    _check_opset(opset)
    over = external_over(external_data)
    opened = open_source(source)
    options = GgufOptions(**gguf)
    if wants_gguf(opened, to, out, options):
        require_meaning(
            "GGUF",
            data=data,
            inputs=inputs,
            model=model,
            prefer=prefer,
            half=half,
            opset=opset,
            threads=threads,
            external_data=external_data,
        )
        return _to_gguf(opened, out, options, min_sqnr, force, progress)
    require_graph(opened, model)
    from edgeopt.graphs.coverage import read_half
    from edgeopt.graphs.external import data_path
    from edgeopt.graphs.half import halve
    from edgeopt.targets.keep import artifact_path, metadata_of, scratch, write_proven
    from edgeopt.targets.onnx.base_graph import fold_base, require_float
    from edgeopt.targets.onnx.build import options_of, write_model
    from edgeopt.targets.onnx.prove import prove_graph

    require_float(opened)
    path = artifact_path(opened, out, "fp16" if half else "fp32", ".onnx")
    if progress is not None:
        progress("reading", None)
    sha256 = opened.sha256()
    with scratch() as workdir:
        prepared = prepare(
            opened,
            workdir,
            data=data,
            inputs=inputs,
            model=model,
            trust_pickle=trust_pickle,
            opset=opset or _default_opset(opened.kind),
            progress=progress,
        )
        graph = _at_opset(prepared, opset, workdir)
        base = fold_base(opened, graph, workdir, progress)

        def make(temporary: Path) -> Proof:
            made = base.load()
            changes: tuple[Change, ...] = halve(made) if half else ()
            if half and all(change.decision.kept for change in changes):
                raise SourceError(_nothing(opened.path, changes))
            metadata = metadata_of(sha256, None, options_of(half, opset))
            write_model(made, temporary, metadata, over)
            coverage = read_half(temporary, base.float_bytes) if half else None
            return prove_graph(
                "export",
                prepared,
                temporary,
                path,
                bits=16 if half else None,
                min_sqnr=min_sqnr,
                prefer=prefer,
                threads=threads,
                coverage=coverage,
                quantized=half,
                source_sha256=sha256,
                changes=changes,
                notes=(*((_HALF,) if half else ()), *lacks_cache(opened)),
                progress=progress,
            )

        return write_proven(
            path,
            None,
            force,
            make,
            data=None if over is None else data_path(path),
            sources=(opened.path, *opened.files),
        )


def _default_opset(kind: str) -> int:
    """An ONNX source keeps its own; what comes from torch gets the one that quantize uses."""
    return 1 if kind == "onnx" else 21


def _check_opset(opset: int | None) -> None:
    from onnx.defs import onnx_opset_version

    if opset is not None and not 7 <= opset <= onnx_opset_version():
        raise UsageError(
            f"--opset {opset}: the onnx installed here knows 7 to {onnx_opset_version()};"
            " leave it out for 21"
        )


def _at_opset(prepared: Prepared, opset: int | None, workdir: Path) -> Path:
    """The captured graph at just the opset that was asked for, checked by running both."""
    captured = prepared.captured
    if opset is None or captured.opset == opset:
        return captured.model
    from edgeopt.graphs.capture.opset import convert_opset

    target = workdir / "at-opset.onnx"
    reason = convert_opset(captured.model, opset, [captured.example], target)
    if reason is not None:
        raise CaptureError(
            f"{prepared.source.path}: not to be had at opset {opset} ({reason}); leave out"
            f" --opset to get opset {captured.opset}"
        )
    return target


def _nothing(path: Path, changes: Sequence[Change]) -> str:
    largest = max(changes, key=lambda change: change.before, default=None)
    why = (
        "it has no float weights"
        if largest is None
        else f"{largest.decision.tensor}: {largest.decision.reason}"
    )
    return f"{path}: nothing to store in float16 ({why}); leave out --half"


def _to_gguf(
    source: Source,
    out: str | Path | None,
    options: GgufOptions,
    min_sqnr: float | None,
    force: bool,
    progress: Progress | None,
) -> Proof:
    from edgeopt.targets.gguf.make import default_export_type, make_gguf

    kind = (options.type or default_export_type(source)).upper()
    if kind not in _PLAIN:
        raise UsageError(
            f"--type {kind}: export writes {', '.join(_PLAIN)}; for {kind} use edgeopt quantize"
        )
    # Decoding what was quantized loses nothing: it may be done unasked.
    options = dataclasses.replace(options, type=kind, allow_requantize=True)
    return make_gguf(
        source,
        out,
        options,
        verb="export",
        min_sqnr=min_sqnr,
        force=force,
        progress=progress,
    )
