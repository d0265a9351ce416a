"""ONNX as a target: quantized by a plan, or written as it is; proven by running both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Change, Plan, Proof, Source
from edgeopt.errors import SourceError, UsageError
from edgeopt.graphs.coverage import float_bytes, read_coverage, read_half
from edgeopt.graphs.external import data_path
from edgeopt.graphs.transform import CodeCache
from edgeopt.targets.asked import Asked
from edgeopt.targets.base import Job, Request
from edgeopt.targets.gguf.options import lacks_cache
from edgeopt.targets.keep import artifact_path, external_over, metadata_of, scratch
from edgeopt.targets.machine import connected
from edgeopt.targets.onnx.base_graph import Base, open_base, require_float
from edgeopt.targets.onnx.build import build
from edgeopt.targets.onnx.float_export import ExportJob
from edgeopt.targets.onnx.plan import make_graph_plan
from edgeopt.targets.onnx.prove import prove_graph
from edgeopt.targets.onnx.replay import fitting_plan, require_sound
from edgeopt.targets.onnx.source import Prepared, has_graph, narrowed, prepare
from edgeopt.targets.options import require_same
from edgeopt.targets.written import other_source

if TYPE_CHECKING:
    from edgeopt.measure.remote.jobs import RemoteJobs

__all__ = ["FOUR_BIT_OPSET", "TARGET"]

#: The ONNX opset that brought int4 and uint4.
FOUR_BIT_OPSET = 21

#: The one that brought DynamicQuantizeLinear.
_INTEGER_OPSET = 11

#: Operators and dtypes that only weights of 4 bits and less have.
_FOUR_BIT_OPS = frozenset({"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"})
_FOUR_BIT_DTYPES = frozenset({"int4", "uint4", "int2", "uint2", "float4_e2m1fn"})


@dataclass(frozen=True)
class _OnnxTarget:
    form: str = "ONNX"
    kinds: frozenset[str] = frozenset({"onnx"})

    def accepts(self, source: Source, request: Request) -> bool:
        """The last to be asked: what no other took, and refuses itself where it has no graph."""
        return True

    def place(self, source: Source, request: Request) -> Path:
        if request.verb == "export":
            tag = "fp16" if request.half else "fp32"
        else:
            tag = f"int{_asked(request).bits}"
        return artifact_path(source, request.out, tag, ".onnx")

    def beside(self, path: Path, request: Request) -> Path | None:
        return None if external_over(request.external_data) is None else data_path(path)

    def begin(self, source: Source, request: Request) -> AbstractContextManager[Job]:
        require_float(source)
        return _exporting(source, request) if request.verb == "export" else _begun(source, request)

    def prove(self, source: Source, artifact: Source, request: Request) -> Proof:
        return _prove(source, artifact, request)


TARGET = _OnnxTarget()


def _asked(request: Request) -> Asked:
    asked = request.asked()
    if request.plan is not None:
        require_same({**asked.options(), "block_size": request.block_size}, request.plan.options)
        asked = asked.replaying(request.plan)
    if request.block_size is not None and asked.bits == 8:
        raise UsageError(
            f"--block-size {request.block_size} has no meaning for ONNX at 8 bits: a channel has"
            " one scale; give --bits 4, or leave it out"
        )
    return asked


@contextmanager
def _exporting(source: Source, request: Request) -> Iterator[Job]:
    request.step("reading")
    sha256 = source.sha256()
    with scratch() as workdir:
        yield ExportJob.begin(source, request, workdir, sha256)


@contextmanager
def _begun(source: Source, request: Request) -> Iterator[Job]:
    with connected(request.on, request.remote_python) as elsewhere, scratch() as workdir:
        request.step("reading")
        sha256 = source.sha256()
        if request.plan is not None:
            require_sound(request.plan, sha256, source)
        prepared = prepare(
            source,
            workdir,
            data=request.data,
            inputs=request.inputs,
            model=request.model,
            trust_pickle=request.trust_pickle,
            progress=request.progress,
        )
        base = open_base(prepared, workdir, request.progress)
        asked = _asked(request)
        _require_opset(prepared, asked.bits)
        yield _QuantizeJob(request, asked, prepared, base, sha256, workdir, elsewhere)


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


@dataclass
class _QuantizeJob:
    """A folded float graph, and a plan of what its weights become."""

    request: Request
    asked: Asked
    prepared: Prepared
    base: Base
    sha256: str
    workdir: Path
    elsewhere: RemoteJobs | None
    cache: CodeCache = field(default_factory=CodeCache)

    def plan(self) -> Plan:
        if self.request.plan is not None:
            return fitting_plan(self.request.plan, self.base)
        return make_graph_plan(
            self.prepared,
            self.base,
            self.asked,
            self.workdir,
            sha256=self.sha256,
            cache=self.cache,
            on=self.elsewhere,
            progress=self.request.progress,
        )

    def write(self, plan: Plan | None, path: Path) -> tuple[Change, ...]:
        assert plan is not None
        changes = build(
            self.base,
            plan,
            path,
            cache=self.cache,
            metadata=metadata_of(self.sha256, plan, plan.options),
            external_over=external_over(self.request.external_data),
            measure=True,
            progress=self.request.progress,
        )
        self.cache.clear()
        return changes

    def prove(
        self, plan: Plan | None, changes: tuple[Change, ...], written: Path, final: Path
    ) -> Proof:
        return prove_graph(
            "quantize",
            self.prepared,
            written,
            final,
            bits=self.asked.bits,
            min_sqnr=self.request.min_sqnr,
            min_same=self.request.min_same,
            prefer=self.asked.prefer,
            threads=self.request.threads,
            coverage=read_coverage(written, self.base.float_bytes),
            quantized=True,
            source_sha256=self.sha256,
            plan=plan,
            changes=changes,
            notes=lacks_cache(self.prepared.source),
            on=self.elsewhere,
            progress=self.request.progress,
        )


# ---------------------------------------------------------------------------------------------
# the proof of a file that is there already


def _prove(source: Source, artifact: Source, request: Request) -> Proof:
    request.step("reading")
    sha256 = source.sha256()
    if not has_graph(source, request.model):
        raise UsageError(
            f"{source.path}: weights without code cannot be run against {artifact.path.name}; "
            "give the code with --model package.module:callable"
        )
    origin = _origin(artifact.details["metadata"])
    options = _mapping(origin.get("options"))
    bits = options["bits"] if options.get("bits") in (4, 8) else _bits_shown(artifact)
    if bits is None and options.get("half") is True:
        bits = 16
    prefer = request.prefer
    if prefer == "balanced" and options.get("prefer") in ("speed", "size", "memory"):
        prefer = options["prefer"]
    with scratch() as folder:
        prepared = prepare(
            source,
            folder,
            data=request.data,
            inputs=request.inputs,
            model=request.model,
            trust_pickle=request.trust_pickle,
            progress=request.progress,
        )
        prepared = narrowed(prepared, artifact.inputs, request.data)
        read = read_half if bits == 16 else read_coverage
        coverage = read(artifact.path, float_bytes(prepared.captured.model))
        return prove_graph(
            "verify",
            prepared,
            artifact.path,
            artifact.path,
            bits=bits,
            min_sqnr=request.min_sqnr,
            min_same=request.min_same,
            prefer=prefer,
            threads=request.threads,
            coverage=coverage if bits is not None else None,
            quantized=bits is not None,
            source_sha256=sha256,
            notes=other_source(origin.get("source_sha256"), sha256),
            progress=request.progress,
        )


def _origin(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """What edgeopt wrote into the artifact about its making; empty for a stranger's file."""
    try:
        found = json.loads(metadata.get("edgeopt", "{}"))
    except (ValueError, RecursionError):
        return {}
    return _mapping(found)


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _bits_shown(artifact: Source) -> int | None:
    """Bits of the weights, as operators and dtypes show them; None where nothing is quantized."""
    ops = artifact.details["quantized_ops"]
    if _FOUR_BIT_OPS & set(ops) or any(w.dtype in _FOUR_BIT_DTYPES for w in artifact.weights):
        return 4
    return 8 if ops else None
