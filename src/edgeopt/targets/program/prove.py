"""The proof of a model with fewer weights: counts, size, speed and answers, before and after.

The written artifact is loaded as its user will load it, captured to ONNX like any source, and
measured against the captured source in fresh processes. Fewer weights answer differently by
design, so how close the answers must be is for the user to say (``min_sqnr``, ``max_drop``); that
they were counted, load, run and stay finite is asked of every one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Progress, Proof, Quality, Source, Verdict, file_sha256
from edgeopt.errors import EdgeoptError
from edgeopt.files.open import open_source
from edgeopt.graphs.capture import Captured, capture
from edgeopt.measure.environment import environment
from edgeopt.measure.gate import basis
from edgeopt.measure.pair import measure_pair
from edgeopt.runtimes.engine import Case
from edgeopt.targets.onnx.source import Prepared
from edgeopt.targets.program.checks import judged
from edgeopt.targets.program.same_tokens import every_score, keep_scores, take_old_numbers
from edgeopt.targets.program.shrunk import Requirements, Shrunk
from edgeopt.targets.proof import proof_of
from edgeopt.tasks.compare_answers import Artifact, of_answers

if TYPE_CHECKING:
    pass

__all__ = ["prove_shrunk"]

#: Seconds given to interleaved latency blocks.
_SECONDS = 2.0


def prove_shrunk(
    verb: str,
    prepared: Prepared,
    made: Shrunk,
    workdir: Path,
    asked: Requirements,
    *,
    sha256: str,
    trust_pickle: bool = False,
    progress: Progress | None = None,
) -> Proof:
    """Load what was written, measure it against the captured source, and judge."""
    source = prepared.source
    loaded = open_source(made.runnable or made.written)
    captured = _captured(loaded, prepared, workdir, trust_pickle, progress)
    models, feeds = (prepared.captured.model, captured.model), prepared.proof
    scored = models
    if (plan := made.vocabulary) is not None:
        rows = made.before_rows
        old = take_old_numbers(models[1], plan, rows)
        scored = (models[0], every_score(models[0], old, plan, rows))
        models = (keep_scores(models[0], old, plan, rows), old)
        feeds = tuple(plan.within(feed) for feed in feeds)
    pair = measure_pair(
        *models,
        feeds,
        threads=asked.threads,
        seconds=_SECONDS,
        progress=progress,
    )
    quality, lost = _quality(scored, prepared, asked, progress)
    nbytes = sum(path.stat().st_size for path in made.weighed)
    checks, unproven = judged(verb, made, pair, quality, asked, (source.nbytes, nbytes))
    return proof_of(
        verb,
        source,
        made.final,
        Verdict(tuple(checks), (*unproven, *lost), basis(prepared.given, pair.samples)),
        form=made.format,
        nbytes=nbytes,
        source_sha256=sha256,
        sha256=file_sha256(made.written) if made.written.is_file() else "",
        of_source={
            "capture": prepared.captured.rung,
            "agreement_db": prepared.captured.agreement_db,
        },
        of_artifact={
            "files": [str(path) for path in _final_names(made)],
            **made.details,
        },
        coverage=_counted(made, quality),
        fidelity=pair.fidelity,
        samples=prepared.label,
        measurements=(m for m in pair.measurements if m.metric != "file"),
        environment=environment(threads=asked.threads),
        usage=made.usage,
        # What was opened twice, to be captured and to be changed, says the same twice.
        notes=dict.fromkeys((*prepared.captured.notes, *made.notes, *pair.notes)),
    )


def _captured(
    loaded: Source,
    prepared: Prepared,
    workdir: Path,
    trust: bool,
    progress: Progress | None,
) -> Captured:
    folder = workdir / "shrunk"
    folder.mkdir()
    return capture(
        loaded,
        folder,
        model=None,
        trust_pickle=trust,
        inputs=(),
        example=None,
        opset=prepared.captured.opset,
        progress=progress,
    )


def _final_names(made: Shrunk) -> list[Path]:
    """The files under the names that they will have."""
    root = made.written if made.written.is_dir() else made.written.parent
    final = made.final if made.written.is_dir() else made.final.parent
    return [
        made.final if path == made.written else final / path.relative_to(root)
        for path in made.files
    ]


def _quality(
    models: tuple[Path, Path], prepared: Prepared, asked: Requirements, progress: Progress | None
) -> tuple[dict[str, tuple[Quality, Quality]], list[str]]:
    """Each metric of the source and of the artifact; and what could not be taken, and why."""
    if not asked.metrics:
        return {}, []
    artifacts = [
        Artifact(name, open_source(model), Case(model, (model,), "onnxruntime"))
        for name, model in zip(("source", "artifact"), models, strict=True)
    ]
    try:
        found = of_answers(
            artifacts,
            prepared.captured.inputs,
            data=asked.data,
            metrics=asked.metrics,
            progress=progress,
        )
    except EdgeoptError as error:
        return {}, [f"{metric.name}: {error}" for metric in asked.metrics]
    by_name: dict[str, dict[str, Quality]] = {}
    for quality in found.quality:
        by_name.setdefault(quality.metric, {})[quality.subject] = quality
    both = {
        name: (taken["source"], taken["artifact"])
        for name, taken in by_name.items()
        if len(taken) == 2
    }
    lost = [f"{u.metric.removeprefix('quality.')}: {u.reason}" for u in found.unavailable]
    return both, lost


def _counted(made: Shrunk, quality: Mapping[str, tuple[Quality, Quality]]) -> dict[str, Any]:
    """The counts, in total and by layer, as the document holds them."""
    before, after = made.before, made.after
    rows: dict[str, dict[str, Any]] = {}
    for index, counts in enumerate((before, after)):
        for layer in counts.layers:
            row = rows.setdefault(
                layer.name,
                {"layer": layer.name, "kind": layer.kind}
                | {key: [0, 0] for key in ("parameters", "nonzero", "nbytes", "flops")},
            )
            for key in ("parameters", "nonzero", "nbytes", "flops"):
                row[key][index] = getattr(layer, key)
    document: dict[str, Any] = {
        **{
            key: [getattr(before, key), getattr(after, key)]
            for key in ("parameters", "nonzero", "nbytes", "flops")
        },
        "methods": [{"method": p.method, "notes": list(p.notes)} for p in made.prunings],
        "cuts": [
            {
                "layer": cut.layer,
                "kind": cut.kind,
                "before": cut.before,
                "after": cut.after,
                "reason": cut.reason,
            }
            for pruning in made.prunings
            for cut in pruning.cuts
        ],
        "layers": list(rows.values()),
        "quality": [
            {
                "metric": name,
                "before": first.value,
                "after": second.value,
                "higher_is_better": first.higher_is_better,
                "samples": first.samples,
                "how": first.how,
            }
            for name, (first, second) in quality.items()
        ],
    }
    if made.training is not None:
        document["training"] = dict(made.training)
    return document
