"""The proof of a model with fewer weights: counts, size, speed and answers, before and after.

The written artifact is loaded as its user will load it, captured to ONNX like any source, and
measured against the captured source in fresh processes. Fewer weights answer differently by
design, so how close the answers must be is for the user to say (``min_sqnr``, ``max_drop``); that
they were counted, load, run and stay finite is asked of every one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Check, Fidelity, Progress, Proof, Quality, Source, Verdict, file_sha256
from edgeopt.core import format_bytes as bytes_text
from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.files.open import open_source
from edgeopt.graphs.capture import Captured, capture
from edgeopt.measure.environment import environment
from edgeopt.measure.pair import PairResult, measure_pair
from edgeopt.runtimes.engine import Case
from edgeopt.verbs.graph_source import Prepared
from edgeopt.verbs.likeness import Artifact, of_answers
from edgeopt.verbs.quality import Metric
from edgeopt.verbs.same_tokens import every_score, keep_scores, take_old_numbers

if TYPE_CHECKING:
    from edgeopt.train.counting import Counts
    from edgeopt.train.cuts import Pruning
    from edgeopt.train.vocabulary import VocabularyPlan

__all__ = ["Asked", "Shrunk", "prove_shrunk"]

#: Seconds given to interleaved latency blocks.
_SECONDS = 2.0

#: What may be lost of a metric where nobody says: a point of accuracy; of what is larger than 1
#: (perplexity), this share of it.
_MAY_DROP = 0.01

#: Outputs whose largest element is no answer: what counts is where they point.
_DIRECTION = re.compile("embed|hidden|feature|pool")

#: The share of classes, or the cosine of outputs, that must be the same where nothing is asked.
_SAME = 0.9


@dataclass(frozen=True)
class Asked:
    """What the user asks of the result. ``max_drop`` is in the metric's own units."""

    metrics: tuple[Metric, ...] = ()
    data: str | None = None
    min_sqnr: float | None = None
    max_drop: float | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.min_sqnr is not None and not math.isfinite(self.min_sqnr):
            raise UsageError(f"--min-sqnr {self.min_sqnr}: not a number of decibels, such as 20")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise UsageError(f"--max-drop {self.max_drop}: not a number of 0 or more, such as 0.01")
        if self.max_drop is not None and not self.metrics:
            raise UsageError("--max-drop needs a --metric, and --data with labels")
        if self.metrics and self.data is None:
            raise UsageError(f"--metric {self.metrics[0].name}: needs --data with labels")


@dataclass(frozen=True)
class Shrunk:
    """What was made: counts before and after, how it came about, and where it was written."""

    before: Counts
    after: Counts
    prunings: tuple[Pruning, ...]
    written: Path
    final: Path
    files: tuple[Path, ...]
    #: Those whose bytes are the artifact's size: a state dict beside a program is a second copy.
    weighed: tuple[Path, ...]
    format: str
    training: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    usage: str = ""
    #: The file to load in place of ``written``, where that holds no graph (sparse weights).
    runnable: Path | None = None
    #: Whether the file must have fewer bytes than the source's.
    smaller: bool = True
    #: How tokens are numbered now, where that has changed.
    vocabulary: VocabularyPlan | None = None

    @property
    def before_rows(self) -> int:
        """Rows of the embedding before pruning."""
        return max(
            cut.before for pruning in self.prunings for cut in pruning.cuts if cut.kind == "rows"
        )


def prove_shrunk(
    verb: str,
    prepared: Prepared,
    made: Shrunk,
    workdir: Path,
    asked: Asked,
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
    judged = models
    if (plan := made.vocabulary) is not None:
        rows = made.before_rows
        old = take_old_numbers(models[1], plan, rows)
        judged = (models[0], every_score(models[0], old, plan, rows))
        models = (keep_scores(models[0], old, plan, rows), old)
        feeds = tuple(plan.within(feed) for feed in feeds)
    pair = measure_pair(
        *models,
        feeds,
        threads=asked.threads,
        seconds=_SECONDS,
        progress=progress,
    )
    quality, lost = _quality(judged, prepared, asked, progress)
    nbytes = sum(path.stat().st_size for path in made.weighed)
    checks, unproven = _judged(made, pair, quality, asked, (source.nbytes, nbytes))
    if verb == "distill":
        checks = [replace(check, advice=_for_students(check.advice)) for check in checks]
    return Proof(
        verb=verb,
        source={
            "path": str(source.path),
            "kind": source.kind,
            "nbytes": source.nbytes,
            "sha256": sha256,
            "capture": prepared.captured.rung,
            "agreement_db": prepared.captured.agreement_db,
        },
        artifact={
            "path": str(made.final),
            "format": made.format,
            "nbytes": nbytes,
            **({"sha256": file_sha256(made.written)} if made.written.is_file() else {}),
            "files": [str(path) for path in _final_names(made)],
            **made.details,
        },
        plan=None,
        changes=(),
        coverage=_counted(made, quality),
        fidelity=pair.fidelity,
        samples=prepared.label,
        measurements=tuple(m for m in pair.measurements if m.metric != "file"),
        environment=environment(threads=asked.threads),
        verdict=Verdict(tuple(checks), (*unproven, *lost)),
        usage=made.usage,
        # What was opened twice, to be captured and to be changed, says the same twice.
        notes=tuple(dict.fromkeys((*prepared.captured.notes, *made.notes, *pair.notes))),
    )


def _for_students(advice: str) -> str:
    """What to try, where there is no ratio, and no training to be added."""
    larger = advice.replace("a lower --ratio", "a larger student")
    return larger.replace("--recover DATA", "more --epochs or --data")


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
    models: tuple[Path, Path], prepared: Prepared, asked: Asked, progress: Progress | None
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


def _judged(
    made: Shrunk,
    pair: PairResult,
    quality: Mapping[str, tuple[Quality, Quality]],
    asked: Asked,
    sizes: tuple[int, int],
) -> tuple[list[Check], list[str]]:
    before, after = made.before, made.after
    checks = [
        Check(
            "fewer weights",
            after.nonzero < before.nonzero,
            f"{after.nonzero:,} that are not zero, from {before.nonzero:,}",
            "fewer than the source has",
            "see the reasons by layer; a higher --ratio cuts more",
        )
    ]
    if made.smaller:
        checks.append(
            Check(
                "file smaller",
                sizes[1] < sizes[0],
                f"{bytes_text(sizes[1])} from {bytes_text(sizes[0])}",
                "fewer bytes than the source",
                "a higher --ratio; of sparse weights --to safetensors",
            )
        )
    checks.append(
        Check(
            "loads and runs",
            pair.failure is None,
            pair.failure or "in a fresh process",
            "the written file runs",
            "try another --method",
        )
    )
    unproven = list(pair.unproven)
    if pair.failure is None:
        checks += _answers(pair, asked)
    checks += _kept_up(quality, asked)
    if not quality:
        unproven.append("how well it does its task: give --data with labels, and --metric")
    return checks, unproven


def _answers(pair: PairResult, asked: Asked) -> list[Check]:
    broken = [f.output for f in pair.fidelity if not f.finite]
    checks = [
        Check(
            "output finite",
            not broken,
            f"NaN or Inf in {', '.join(broken)}" if broken else "no NaN or Inf",
            "none that the source does not have",
            "a lower --ratio, or --recover DATA",
        )
    ]
    numbers = [f for f in pair.fidelity if not f.constant and not math.isnan(f.sqnr_db)]
    if asked.min_sqnr is None and not asked.metrics:
        checks += [check for check in [_alike(pair.fidelity)] if check is not None]
    if asked.min_sqnr is not None and numbers:
        worst = min(numbers, key=lambda f: f.sqnr_db)
        checks.append(
            Check(
                "fidelity",
                worst.sqnr_db >= asked.min_sqnr,
                f"{worst.sqnr_db:.1f} dB ({worst.output})",
                f"{asked.min_sqnr:g} dB or more",
                "a lower --ratio, or --recover DATA",
            )
        )
    return checks


def _kept_up(quality: Mapping[str, tuple[Quality, Quality]], asked: Asked) -> list[Check]:
    """The task metrics, against what may be lost of them."""
    checks = []
    for name, (before, after) in quality.items():
        lost = before.value - after.value
        lost = lost if before.higher_is_better else -lost
        may = asked.max_drop
        if may is None:
            may = _MAY_DROP * max(1.0, abs(before.value))
        way = "drop" if before.higher_is_better else "rise"
        checks.append(
            Check(
                name,
                lost <= may + 1e-12,
                f"{after.value:.4f} from {before.value:.4f}",
                f"a {way} of {may:.4g} at most",
                "a lower --ratio, --recover DATA, or a --max-drop that you can live with",
            )
        )
    if asked.metrics and not quality:
        checks.append(
            Check(
                asked.metrics[0].name,
                False,
                "it could not be taken",
                "a figure before and after",
                "see what was not checked",
            )
        )
    return checks


def _alike(fidelity: Sequence[Fidelity]) -> Check | None:
    """Where nothing else is asked: most answers are still the same."""
    classes = [
        f
        for f in fidelity
        if f.top1 is not None and not f.constant and not _DIRECTION.search(f.output)
    ]
    if classes:
        worst = min(classes, key=lambda f: f.top1 or 0.0)
        found, passed = f"{worst.top1 or 0:.1%} of answers", (worst.top1 or 0.0) >= _SAME
    else:
        others = [f for f in fidelity if not f.constant and not math.isnan(f.cosine)]
        if not others:
            return None
        worst = min(others, key=lambda f: f.cosine)
        found, passed = f"cosine {worst.cosine:.3f}", worst.cosine >= _SAME
    return Check(
        "answers alike",
        passed,
        f"{found} ({worst.output})",
        f"{_SAME:g} or more; --metric or --min-sqnr ask for something else",
        "a lower --ratio, --recover DATA, or --metric with labelled --data",
    )
