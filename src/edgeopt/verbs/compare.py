"""``edgeopt compare``: artifacts, or saved results, side by side: size, speed, memory, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt.core import InputSpec, Progress, Results, Subject
from edgeopt.errors import InputsError, OutputError, SourceError, UsageError
from edgeopt.files.atomic import checked_output
from edgeopt.files.open import open_source
from edgeopt.llm.read import read_model
from edgeopt.report.results_files import write_document
from edgeopt.runtimes.devices import resolve
from edgeopt.runtimes.engine import Case
from edgeopt.verbs.bench import bench
from edgeopt.verbs.bench_trials import Asked, hints_of, runtime_of, specs_of
from edgeopt.verbs.gguf_runs import is_embedder, read_text
from edgeopt.verbs.labelled import read_labelled
from edgeopt.verbs.layers import layer_errors, tensors_of, with_errors
from edgeopt.verbs.likeness import (
    Artifact,
    Likeness,
    of_answers,
    of_embeddings,
    of_texts,
    of_weights,
    together,
)
from edgeopt.verbs.prove_gguf import fitting_context
from edgeopt.verbs.quality import Metric, find_metric
from edgeopt.verbs.saved import Saved, is_saved, merge, open_saved

__all__ = ["compare"]

#: Runtimes, and what their models answer to.
_ANSWERS_TO: Mapping[str, str] = {
    "onnxruntime": "arrays",
    "torch": "arrays",
    "llama.cpp": "texts",
    "weights": "weights",
}
_ARRAYS = frozenset(name for name, room in _ANSWERS_TO.items() if room == "arrays")

#: Options that bench and the comparison both take, beside those that are sequences.
_SHARED = ("device", "seq", "runtime", "model", "trust_pickle")

_PERPLEXITY = "perplexity"

#: What the artifacts of one call are called beside saved results.
_NOW = "now"


def compare(
    items: Sequence[str | Path],
    *,
    data: str | None = None,
    metric: Sequence[str] = (),
    text: str | Path | None = None,
    chunks: int = 8,
    context: int = 512,
    other_machine: bool = False,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Results:
    """Compare artifacts, or saved results, with the first of them.

    Artifacts are measured as by :func:`edgeopt.bench` (``options`` are its own), all in one run,
    taking turns. Saved results (``R.json``, or one subject of them as ``R.json[NAME]``) are taken
    as they are; both can be mixed. What was not measured in one run is compared unpaired and with
    a warning, and refused where it comes from different machines or runtimes, unless
    ``other_machine``.

    Fidelity is that of each artifact's answers to the baseline's, on ``data`` or on made-up
    inputs; of GGUF files, of their next-token distributions over ``chunks`` of ``context`` tokens
    of ``text``, a file; else of the weights. Each ``metric`` (``accuracy``, ``spearman``,
    ``perplexity`` or ``module:callable``, see :func:`edgeopt.verbs.quality.find_metric`) is taken
    from the same answers, with the targets in ``data``. A metric that cannot be taken is among
    the results' ``unavailable`` with the reason, and :func:`edgeopt.verbs.gate.enforce` raises for
    it once the results are shown.

    Raises:
        SourceError: a file that is no artifact and no results, or results of another version.
        UsageError: options that cannot be honoured, another machine.
        InputsError: inputs are missing or do not fit.
        OutputError: ``out`` cannot be written.
    """
    saved = [is_saved(item) for item in items]
    if len(items) < 2 and not any(saved):
        raise UsageError(f"{len(items)} artifact to compare; give two or more, or saved results")
    artifacts = [item for item, is_document in zip(items, saved, strict=True) if not is_document]
    if (metric or text is not None) and not artifacts:
        given = "--text" if text is not None else f"--metric {metric[0]}"
        raise UsageError(f"{given}: saved results cannot be run; give the artifacts")
    documents = {
        position: open_saved(item)
        for position, (item, is_document) in enumerate(zip(items, saved, strict=True))
        if is_document
    }
    if out is not None:
        checked_output(out, [Path(item) for item in items])
    if artifacts:
        task = _Task(
            metrics=tuple(map(find_metric, metric)),
            data=data,
            text=None if text is None else Path(text),
            chunks=chunks,
            context=context,
            options=options,
        )
        found = _measured(artifacts, task, None if documents else out, progress)
        documents[saved.index(False)] = Saved(_NOW, found)
    results = merge([documents[i] for i in sorted(documents)], other_machine=other_machine)
    if out is not None:
        write_document(results, Path(out))
    return results


@dataclass(frozen=True)
class _Task:
    """What artifacts are compared on; ``options`` are bench's."""

    metrics: tuple[Metric, ...]
    data: str | None
    text: Path | None
    chunks: int
    context: int
    options: Mapping[str, Any]

    @property
    def asked(self) -> Asked:
        given = {name: self.options[name] for name in _SHARED if name in self.options}
        return Asked(
            **given,
            threads=tuple(self.options.get("threads", (1,))),
            inputs=tuple(self.options.get("inputs", ())),
            data=self.data,
        )


def _measured(
    items: Sequence[str | Path], task: _Task, out: str | Path | None, progress: Progress | None
) -> Results:
    """The artifacts benchmarked in one run, and held against the first."""
    asked = task.asked
    # Without their tensors: those hold maps of the files, and what is mapped cannot be evicted.
    sources = [replace(open_source(item), weights=(), extras=()) for item in items]
    runtimes = [runtime_of(source, asked) for source in sources]
    if task.text is not None and "llama.cpp" not in runtimes:
        raise UsageError(f"--text {task.text}: is for GGUF files, and none is among the artifacts")
    body = None if task.text is None else read_text(task.text, task.chunks, task.context)
    inputs: tuple[InputSpec, ...] = ()
    hints: Mapping[str, Any] = {}
    options = dict(task.options)
    if runtimes[0] in _ARRAYS:
        described = next((source for source in sources if source.inputs), sources[0])
        inputs, hints = specs_of(described, asked), hints_of(described)
        if task.data is not None:
            read_labelled(task.data, inputs)  # what does not fit is said before measuring
            if described.inputs and not asked.inputs:
                # Beside inputs there are targets in the data, which torch's files cannot tell.
                options["inputs"] = tuple(map(str, inputs))
    results = bench(items, data=task.data, out=out, progress=progress, **options)
    artifacts = [
        _artifact(subject, path, asked)
        for subject, path in zip(results.subjects, (s.path for s in sources), strict=True)
    ]
    tensors = [tensors_of(artifact.source) for artifact in artifacts]
    errors = [layer_errors(tensors[0], each, progress=progress) for each in tensors[1:]]
    base, others = artifacts[0], artifacts[1:]
    like = [base, *(a for a in others if _room(a) == _room(base) != "weights")]
    parts: list[Likeness] = []
    if _room(base) == "arrays":
        parts.append(_answers(like, inputs, hints, task, progress))
    elif _room(base) == "texts" and body is not None:
        parts.append(_texts(like, body, task, progress))
    else:
        parts.append(_no_task(task, base))
        like = [base]
    for artifact, found in zip(others, errors, strict=True):
        if artifact not in like:
            parts.append(of_weights(artifact.name, found))
            if len(like) > 1 or _room(base) == "arrays":
                parts.append(_no_task(task, artifact))
    likeness = together(parts)
    layers = [tensors[0].layers] + [
        with_errors(each.layers, known) for each, known in zip(tensors[1:], errors, strict=True)
    ]
    return replace(
        results,
        subjects=tuple(
            replace(subject, layers=each)
            for subject, each in zip(results.subjects, layers, strict=True)
        ),
        fidelity=likeness.fidelity,
        quality=tuple(likeness.quality),
        unavailable=(*results.unavailable, *likeness.unavailable),
    )


def _artifact(subject: Subject, path: Path, asked: Asked) -> Artifact:
    source = open_source(path)
    case = Case(
        path=path.resolve(),
        files=tuple(file.resolve() for file in source.files),
        runtime=subject.runtime,
        device=resolve(asked.device, subject.runtime),
        threads=asked.threads[0],
        options={"kind": source.kind, "model": asked.model, "trust_pickle": asked.trust_pickle},
    )
    return Artifact(subject.name, source, case)


def _room(artifact: Artifact) -> str:
    """What an artifact answers to; only those that answer to the same can be compared by it."""
    return _ANSWERS_TO[artifact.case.runtime]


def _answers(
    artifacts: Sequence[Artifact],
    inputs: Sequence[InputSpec],
    hints: Mapping[str, Any],
    task: _Task,
    progress: Progress | None,
) -> Likeness:
    try:
        return of_answers(
            artifacts,
            inputs,
            data=task.data,
            metrics=task.metrics,
            hints=hints,
            progress=progress,
        )
    except (InputsError, OutputError) as error:
        # Nobody's fault who was measured: the figures are kept, and say what is not among them.
        lost = Likeness()
        lost.lacks("", "fidelity", error)
        for metric in task.metrics:
            lost.lacks("", f"quality.{metric.name}", error)
        return lost


def _texts(
    artifacts: Sequence[Artifact], body: bytes, task: _Task, progress: Progress | None
) -> Likeness:
    assert task.text is not None
    context, embedder = task.context, False
    for artifact in artifacts:
        try:
            model = read_model(artifact.source)
        except SourceError:  # an architecture that only llama.cpp knows
            continue
        context, embedder = fitting_context(model, context), embedder or is_embedder(model)
    lost = Likeness()
    for metric in task.metrics:
        if metric.name != _PERPLEXITY or embedder:
            what = "embeddings" if embedder else "next tokens, whose metric is perplexity"
            lost.lacks("", f"quality.{metric.name}", f"GGUF files are compared by {what}")
    if embedder:
        found = of_embeddings(
            artifacts, body, chunks=task.chunks, context=context, progress=progress
        )
    else:
        found = of_texts(
            artifacts,
            body,
            task.text.name,
            chunks=task.chunks,
            context=context,
            perplexity=any(metric.name == _PERPLEXITY for metric in task.metrics),
            progress=progress,
        )
    return together([lost, found])


def _no_task(task: _Task, artifact: Artifact) -> Likeness:
    """Task metrics of an artifact that is not run on the task."""
    lost = Likeness()
    needs = {
        "texts": "of GGUF files it needs --text, and all of them to be GGUF",
        "arrays": "the baseline takes no arrays",
        "weights": "weights without code cannot be run; give --model package.module:callable",
    }[_room(artifact)]
    for metric in task.metrics:
        lost.lacks(artifact.name, f"quality.{metric.name}", needs)
    return lost
