"""A graph as ONNX without quantizing: float32, or weights stored in float16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core import Change, Plan, Proof, Source
from edgeopt.errors import CaptureError, SourceError
from edgeopt.graphs.capture.opset import convert_opset
from edgeopt.graphs.coverage import read_half
from edgeopt.graphs.half import halve
from edgeopt.targets.base import Request
from edgeopt.targets.gguf.options import lacks_cache
from edgeopt.targets.keep import external_over, metadata_of
from edgeopt.targets.onnx.base_graph import Base, fold_base
from edgeopt.targets.onnx.build import options_of, write_model
from edgeopt.targets.onnx.prove import prove_graph
from edgeopt.targets.onnx.source import Prepared, prepare

__all__ = ["ExportJob"]

_HALF = (
    "weights are float16 in the file and float32 in the arithmetic: the runtime casts them once,"
    " when a session opens, tables as they are gathered from"
)


@dataclass(frozen=True)
class ExportJob:
    """The folded graph at the opset that was asked for."""

    request: Request
    prepared: Prepared
    base: Base
    sha256: str

    @classmethod
    def begin(cls, source: Source, request: Request, workdir: Path, sha256: str) -> ExportJob:
        """Capture and fold ``source`` in ``workdir``. SourceError, CaptureError."""
        prepared = prepare(
            source,
            workdir,
            data=request.data,
            inputs=request.inputs,
            model=request.model,
            trust_pickle=request.trust_pickle,
            opset=request.opset or _default_opset(source.kind),
            progress=request.progress,
        )
        graph = _at_opset(prepared, request.opset, workdir)
        return cls(request, prepared, fold_base(source, graph, workdir, request.progress), sha256)

    def plan(self) -> Plan | None:
        """There is nothing to choose: the bytes follow from the source and the options."""
        return None

    def write(self, plan: Plan | None, path: Path) -> tuple[Change, ...]:
        request = self.request
        made = self.base.load()
        changes: tuple[Change, ...] = halve(made) if request.half else ()
        if request.half and all(change.decision.kept for change in changes):
            raise SourceError(_nothing(self.prepared.source.path, changes))
        metadata = metadata_of(self.sha256, None, options_of(request.half, request.opset))
        write_model(made, path, metadata, external_over(request.external_data))
        return changes

    def prove(
        self, plan: Plan | None, changes: tuple[Change, ...], written: Path, final: Path
    ) -> Proof:
        request, half = self.request, self.request.half
        return prove_graph(
            "export",
            self.prepared,
            written,
            final,
            bits=16 if half else None,
            min_sqnr=request.min_sqnr,
            min_same=request.min_same,
            prefer=request.prefer,
            threads=request.threads,
            coverage=read_half(written, self.base.float_bytes) if half else None,
            quantized=half,
            source_sha256=self.sha256,
            changes=changes,
            notes=(*((_HALF,) if half else ()), *lacks_cache(self.prepared.source)),
            progress=request.progress,
        )


def _default_opset(kind: str) -> int:
    """An ONNX source keeps its own; what comes from torch gets the one that quantize uses."""
    return 1 if kind == "onnx" else 21


def _at_opset(prepared: Prepared, opset: int | None, workdir: Path) -> Path:
    """The captured graph at just the opset that was asked for, checked by running both."""
    captured = prepared.captured
    if opset is None or captured.opset == opset:
        return captured.model
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
