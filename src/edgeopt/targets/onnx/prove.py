"""The last step of every verb: measure the written file against its source, and judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Change, Plan, Progress, Proof, file_sha256, shown_shape
from edgeopt.graphs.chances import probability_outputs
from edgeopt.graphs.coverage import Coverage, misplaced
from edgeopt.graphs.draws import draws
from edgeopt.graphs.loose import loose_outputs
from edgeopt.graphs.saturation import saturating_products
from edgeopt.measure.gate import judge
from edgeopt.measure.pair import measure_pair
from edgeopt.report.usage import usage_lines
from edgeopt.targets.machine import machine
from edgeopt.targets.onnx.base_graph import needs_unsigned
from edgeopt.targets.onnx.source import Prepared, batch_inputs, single_steps
from edgeopt.targets.proof import proof_of

if TYPE_CHECKING:
    from edgeopt.measure.remote.jobs import RemoteJobs

__all__ = ["prove_graph", "saturation"]

#: Seconds given to interleaved latency blocks.
_SECONDS = 2.0


def prove_graph(
    verb: str,
    prepared: Prepared,
    written: Path,
    final: Path,
    *,
    bits: int | None,
    min_sqnr: float | None,
    min_same: float | None,
    prefer: str,
    threads: int,
    coverage: Coverage | None,
    quantized: bool,
    source_sha256: str,
    plan: Plan | None = None,
    changes: Sequence[Change] = (),
    notes: Sequence[str] = (),
    on: RemoteJobs | None = None,
    progress: Progress | None = None,
) -> Proof:
    """Load ``written`` in fresh processes, compare it with the captured source, and judge.

    ``final`` is the name that the artifact will have if it is kept; ``on`` is another machine to
    measure on.
    """
    source, captured = prepared.source, prepared.captured
    pair = measure_pair(
        captured.model,
        written,
        prepared.proof,
        threads=threads,
        seconds=_SECONDS,
        batch=batch_inputs(captured.inputs),
        loose=loose_outputs(captured.model),
        probabilities=probability_outputs(captured.model),
        kinds=prepared.kinds,
        on=on,
        progress=progress,
    )
    nbytes = pair.nbytes[1]
    verdict = judge(
        pair,
        bits=bits,
        min_sqnr=min_sqnr,
        min_same=min_same,
        prefer=prefer,
        coverage={} if coverage is None else coverage.to_json(),
        sizes=(source.nbytes, nbytes),
        quantized=quantized,
        changes=changes,
        misplaced=() if coverage is None else misplaced(coverage.tensors, changes),
        given=prepared.given,
        noise=_noise(captured.model),
    )
    usage = ""
    if pair.failure is None:
        shapes = {name: array.shape for name, array in prepared.proof[0].items()}
        lone = {
            name: int(array.reshape(-1)[0])
            for name, array in prepared.proof[0].items()
            if array.size == 1 and array.dtype.kind in "iu"
        }
        usage = usage_lines(final, pair.inputs, pair.outputs, shapes, lone)
    there = machine(on, threads)
    return proof_of(
        verb,
        source,
        final,
        verdict,
        form="onnx",
        nbytes=nbytes,
        source_sha256=source_sha256,
        sha256=file_sha256(written),
        of_source={
            "capture": captured.rung,
            "opset": captured.opset,
            "agreement_db": captured.agreement_db,
            "graph_nbytes": pair.nbytes[0],
        },
        of_artifact={
            **_data(pair.files, final),
            "inputs": [_spec(s) for s in pair.inputs],
            "outputs": [_spec(s) for s in pair.outputs],
        },
        plan=plan,
        changes=changes,
        coverage={} if coverage is None else coverage.to_json(),
        fidelity=pair.fidelity,
        samples=prepared.label,
        measurements=pair.measurements,
        environment=there,
        usage=usage,
        notes=(
            *captured.notes,
            *pair.notes,
            *notes,
            *_where(on),
            *single_steps(prepared),
            *saturation(saturating_products(written), there),
        ),
    )


def _where(on: RemoteJobs | None) -> tuple[str, ...]:
    return (
        () if on is None else (f"fidelity, latency, load time and memory are those on {on.name}",)
    )


def _noise(model: Path) -> str:
    """What draws at random in a graph, and what to do about it; empty where nothing does."""
    drawn = draws(model)
    if not drawn.nodes:
        return ""
    return f"{', '.join(drawn.nodes)} of the source draws at random: {drawn.remedy}"


def saturation(products: int, there: Mapping[str, Any]) -> tuple[str, ...]:
    """What int8 weights mean on x86-64 without VNNI: for the figures, or for machines to come."""
    if not products:
        return ()
    weights = f"{products} int8 weight{'s use' if products > 1 else ' uses'} all 8 bits"
    if needs_unsigned(there):
        return (
            f"{weights}; this CPU has no VNNI, so sums of products saturate at 16 bits: that is in "
            "the figures, and on CPUs with VNNI the answers are closer; edgeopt quantize --target "
            "portable makes weights that are exact on both",
        )
    return (
        f"{weights}: exact on this CPU; on x86-64 without VNNI sums of products saturate, and "
        "answers differ from those proven here; --target portable is exact on both",
    )


def _spec(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": shown_shape(spec.shape)}


def _data(files: Sequence[Path], final: Path) -> dict[str, Any]:
    """The files of external data that belong to an artifact, if it has any."""
    data = [
        {
            "path": str(final.parent / file.relative_to(files[0].parent)),
            "nbytes": file.stat().st_size,
            "sha256": file_sha256(file),
        }
        for file in files[1:]
    ]
    return {"data": data} if data else {}
