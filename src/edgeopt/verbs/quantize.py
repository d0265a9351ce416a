"""``edgeopt quantize``: a smaller, faster file, and the proof of what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core import Plan, Progress, Proof, Source
from edgeopt.errors import SourceError
from edgeopt.files.open import open_source
from edgeopt.targets.gguf.options import GGUF_KEYWORDS, GgufOptions, lacks_cache, wants_gguf
from edgeopt.targets.keep import external_over, scratch
from edgeopt.targets.machine import connected
from edgeopt.targets.onnx.base_graph import Asked, Base, open_base, require_float
from edgeopt.targets.onnx.build import build
from edgeopt.targets.onnx.plan import make_graph_plan
from edgeopt.targets.onnx.replay import asked_by, fitting_plan, read_plan, require_sound
from edgeopt.targets.onnx.source import Prepared, has_graph, prepare, require_graph
from edgeopt.verbs.applies import require_meaning
from edgeopt.verbs.calling import verb

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgeopt.targets.gguf.options import GgufKeywords

__all__ = ["FOUR_BIT_OPSET", "make_plan", "quantize"]

#: The ONNX opset that brought int4 and uint4.
FOUR_BIT_OPSET = 21

#: The one that brought DynamicQuantizeLinear.
_INTEGER_OPSET = 11


@verb(more=GGUF_KEYWORDS)
def quantize(
    source: str | Path,
    out: str | Path | None = None,
    *,
    bits: int | None = None,
    to: str | None = None,
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    block_size: int | None = None,
    prefer: str = "balanced",
    target: str = "here",
    plan: str | Path | Plan | None = None,
    external_data: str | int = "auto",
    min_sqnr: float | None = None,
    force: bool = False,
    threads: int = 1,
    on: str | None = None,
    remote_python: str = "python3",
    progress: Progress | None = None,
    **gguf: Unpack[GgufKeywords],
) -> Proof:
    """Quantize ``source``, write the artifact, and prove the written file.

    Args:
        source: a model file or folder, recognised by content.
        out: file to write; default ``NAME-int8.onnx`` (or ``.safetensors``, ``NAME-Q4_K_M.gguf``)
            beside the source.
        bits: 8 or 4, of the weights; default 8 (for GGUF ``Q4_K_M``).
        to: ``onnx`` (sources with a graph), ``safetensors`` (weights alone) or ``gguf`` (language
            models and BERT in Hugging Face folders, and other GGUF files); default: by source.
        data: sample inputs (see :mod:`edgeopt.data.samples`); three quarters calibrate, the rest
            is held out for the proof.
        inputs: shapes as ``name:float32[1,3,224,224]``, where nothing else tells them.
        model: ``package.module:callable`` that returns the ``nn.Module`` of a state dict.
        trust_pickle: the file may run the code it carries.
        block_size: weights that share a scale at 4 bits; a power of two from 16 to 256.
        prefer: ``balanced``, ``speed``, ``size`` or ``memory``.
        target: ``here`` times choices on this machine (or ``on`` another), ``portable`` makes
            none of them.
        plan: a plan file to replay: same source, same plan, same bytes.
        external_data: ``auto`` writes an ONNX model with more than 256 MiB of weights as two
            files, ``OUT`` and ``OUT.data`` beside it, which the runtime maps; ``always`` and
            ``never``; or a number of bytes in place of the 256 MiB.
        min_sqnr: fidelity floor in dB (default 20 at 8 bits, 8 at 4).
        force: keep the artifact although the proof failed.
        threads: of the runtime, while timing.
        on: another machine to quantize for, ``ssh://user@host[:port][/folder]`` or
            ``adb://serial``: candidates are scored and timed there, and the proof is measured
            there, with its own ONNX Runtime in ``remote_python``.
        gguf: what only GGUF knows: ``type``, ``tensor_types``, ``imatrix`` and more, see
            :class:`edgeopt.targets.gguf.options.GgufOptions`.

    Returns:
        The proof. Where ``proof.proven`` is false and ``force`` was not given, nothing was kept.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    asked = Asked(bits or 8, prefer, target, block_size, min_sqnr, threads)
    over = external_over(external_data)
    graphs: dict[str, object] = {
        "data": data,
        "inputs": inputs,
        "model": model,
        "prefer": prefer,
        "target": target,
        "threads": threads,
        "on": on,
        "remote_python": remote_python,
        "external_data": external_data,
    }
    opened = open_source(source)
    options = GgufOptions(**gguf)
    if wants_gguf(opened, to, out, options):
        from edgeopt.targets.gguf.make import make_gguf

        require_meaning("GGUF", block_size=block_size, **graphs)
        return make_gguf(
            opened,
            out,
            options,
            bits=bits,
            plan=read_plan(plan),
            min_sqnr=min_sqnr,
            force=force,
            progress=progress,
        )
    if _weights_only(opened, to, model):
        require_meaning("safetensors", **graphs)
        from edgeopt.targets.packed.make import quantize_weights

        return quantize_weights(
            opened, out, asked=asked, plan=read_plan(plan), force=force, progress=progress
        )
    from edgeopt.graphs.coverage import read_coverage
    from edgeopt.graphs.external import data_path
    from edgeopt.graphs.transform import CodeCache
    from edgeopt.targets.keep import artifact_path, metadata_of, write_proven
    from edgeopt.targets.onnx.prove import prove_graph

    given = read_plan(plan)
    if given is not None:
        asked = asked_by(given, asked)
    path = artifact_path(opened, out, f"int{asked.bits}", ".onnx")
    with connected(on, remote_python) as elsewhere, scratch() as workdir:
        cache = CodeCache()
        prepared, base, sha256 = _ready(
            opened, workdir, data, inputs, model, trust_pickle, progress, given
        )
        _require_opset(prepared, asked.bits)
        if given is None:
            made = make_graph_plan(
                prepared,
                base,
                asked,
                workdir,
                sha256=sha256,
                cache=cache,
                on=elsewhere,
                progress=progress,
            )
        else:
            made = fitting_plan(given, base)
        metadata = metadata_of(sha256, made, made.options)

        def make(temporary: Path) -> Proof:
            changes = build(
                base,
                made,
                temporary,
                cache=cache,
                metadata=metadata,
                external_over=over,
                measure=True,
                progress=progress,
            )
            cache.clear()
            coverage = read_coverage(temporary, base.float_bytes)
            return prove_graph(
                "quantize",
                prepared,
                temporary,
                path,
                bits=asked.bits,
                min_sqnr=min_sqnr,
                prefer=asked.prefer,
                threads=threads,
                coverage=coverage,
                quantized=True,
                source_sha256=sha256,
                plan=made,
                changes=changes,
                notes=lacks_cache(opened),
                on=elsewhere,
                progress=progress,
            )

        return write_proven(
            path,
            made,
            force,
            make,
            data=None if over is None else data_path(path),
            sources=(opened.path, *opened.files),
        )


@verb(more=GGUF_KEYWORDS)
def make_plan(
    source: str | Path,
    *,
    bits: int | None = None,
    to: str | None = None,
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    block_size: int | None = None,
    prefer: str = "balanced",
    target: str = "here",
    min_sqnr: float | None = None,
    threads: int = 1,
    on: str | None = None,
    remote_python: str = "python3",
    progress: Progress | None = None,
    out: str | Path | None = None,
    force: bool = False,
    external_data: str | int = "auto",
    **gguf: Unpack[GgufKeywords],
) -> Plan:
    """The plan that :func:`quantize` would carry out; nothing is written (``out``, ``force``
    and ``external_data`` are taken so that both can be called alike)."""
    asked = Asked(bits or 8, prefer, target, block_size, min_sqnr, threads)
    graphs: dict[str, object] = {
        "data": data,
        "inputs": inputs,
        "model": model,
        "prefer": prefer,
        "target": target,
        "threads": threads,
        "on": on,
        "remote_python": remote_python,
    }
    opened = open_source(source)
    options = GgufOptions(**gguf)
    if wants_gguf(opened, to, out, options):
        from edgeopt.targets.gguf.make import gguf_plan

        require_meaning("GGUF", block_size=block_size, **graphs)
        return gguf_plan(opened, options, bits)
    if _weights_only(opened, to, model):
        require_meaning("safetensors", **graphs)
        from edgeopt.targets.packed.make import plan_weights

        return plan_weights(opened, bits=asked.bits, block_size=block_size, options=asked.options())
    from edgeopt.graphs.transform import CodeCache

    with connected(on, remote_python) as elsewhere, scratch() as workdir:
        prepared, base, sha256 = _ready(
            opened, workdir, data, inputs, model, trust_pickle, progress
        )
        _require_opset(prepared, asked.bits)
        return make_graph_plan(
            prepared,
            base,
            asked,
            workdir,
            sha256=sha256,
            cache=CodeCache(),
            on=elsewhere,
            progress=progress,
        )


def _weights_only(source: Source, to: str | None, model: str | None) -> bool:
    """Weights alone, when asked for or when there is no graph; says why ``onnx`` cannot be."""
    if to == "safetensors":
        return True
    if has_graph(source, model):
        return False
    if to == "onnx":
        require_graph(source, model)
    return True


def _ready(
    source: Source,
    workdir: Path,
    data: str | None,
    inputs: Sequence[str],
    model: str | None,
    trust_pickle: bool,
    progress: Progress | None,
    plan: Plan | None = None,
) -> tuple[Prepared, Base, str]:
    if progress is not None:
        progress("reading", None)
    require_float(source)
    sha256 = source.sha256()
    if plan is not None:
        require_sound(plan, sha256, source)
    prepared = prepare(
        source,
        workdir,
        data=data,
        inputs=inputs,
        model=model,
        trust_pickle=trust_pickle,
        progress=progress,
    )
    return prepared, open_base(prepared, workdir, progress), sha256


def _require_opset(prepared: Prepared, bits: int) -> None:
    """SourceError where the graph's opset lacks the operators, and could not be raised."""
    captured = prepared.captured
    need, what = (FOUR_BIT_OPSET, "4-bit types") if bits == 4 else (_INTEGER_OPSET, "8-bit forms")
    if captured.opset < need:
        why = f" ({captured.notes[-1]})" if captured.notes else ""
        instead = "; use --bits 8" if captured.opset >= _INTEGER_OPSET else ""
        raise SourceError(
            f"{prepared.source.path}: ONNX opset {captured.opset}, {what} need {need} and"
            f" converting failed{why}{instead or '; export it anew at opset 21'}"
        )
