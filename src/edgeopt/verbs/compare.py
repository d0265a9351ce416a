"""``edgeopt compare``: artifacts, or saved results, side by side: size, speed, memory, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeopt.core import InputSpec, Progress, Results, Source, Subject
from edgeopt.core.calls import stated
from edgeopt.data.synthetic import pinned
from edgeopt.errors import InputsError, OutputError, SourceError, UsageError
from edgeopt.files.atomic import checked_output
from edgeopt.files.open import open_source
from edgeopt.llm.read import read_model
from edgeopt.measure.layers import layer_errors, tensors_of, with_errors
from edgeopt.measure.tensor_errors import TensorError
from edgeopt.options.option import options_of
from edgeopt.options.table import BenchOptions, BenchRequest, CompareOptions, flag_of
from edgeopt.report.results_files import write_document
from edgeopt.results.saved import SavedResults, file_of, is_saved, merge, open_all
from edgeopt.runtimes.devices import resolve
from edgeopt.runtimes.engine import Case
from edgeopt.targets.gguf.prove import fitting_context
from edgeopt.targets.gguf.runs import is_embedder, read_text
from edgeopt.targets.options import require_use
from edgeopt.tasks.compare_answers import (
    Artifact,
    Likeness,
    of_answers,
    of_embeddings,
    of_texts,
    of_weights,
    together,
)
from edgeopt.tasks.labelled import read_labelled
from edgeopt.tasks.metrics import TaskMetric, find_metric
from edgeopt.verbs.bench import bench
from edgeopt.verbs.bench_trials import fitting_sizes, hints_of, runtime_of, specs_of
from edgeopt.verbs.calling import asking

__all__ = ["compare"]

#: Runtimes, and what their models answer to.
_ANSWERS_TO: Mapping[str, str] = {
    "onnxruntime": "arrays",
    "torch": "arrays",
    "llama.cpp": "texts",
    "weights": "weights",
}
_ARRAYS = frozenset(name for name, room in _ANSWERS_TO.items() if room == "arrays")

_PERPLEXITY = "perplexity"

#: Why an artifact that answers to this is not run on the task.
_NEEDS: Mapping[str, str] = {
    "arrays": "the baseline takes no arrays; compare files of one kind",
    "texts": "of GGUF files it needs --text, and a GGUF file as the first",
    "weights": "weights without code cannot be run; give --model package.module:callable",
}

#: What compare has of its own beside bench, or hands on by itself.
_OWN = frozenset({"data", "other_machine", "out", "progress"})

#: Options that go on to bench.
_BENCH = (options_of(CompareOptions).keys() & options_of(BenchOptions).keys()) - _OWN

#: Options that have a meaning for artifacts alone.
_RUN = ("metric", "text", "chunks", "context", "data", *sorted(_BENCH))

#: What the artifacts of one call are called beside saved results.
_NOW = "now"


@asking(CompareOptions)
def compare(items: Sequence[str | Path], options: CompareOptions) -> Results:
    """Compare artifacts, or saved results, with the first of them.

    Artifacts are measured as by :func:`edgeopt.bench` all in one run,
    taking turns. Saved results (``R.json``, or one subject of them as ``R.json[NAME]``) are taken
    as they are; both can be mixed. What was not measured in one run is compared unpaired and with
    a warning, and refused where it comes from different machines or runtimes, unless
    ``other_machine``.

    Fidelity is that of each artifact's answers to the baseline's, on ``data`` or on made-up
    inputs; of GGUF files, of their next-token distributions on ``text``; else of the
    weights. A metric that cannot be taken is among
    the results' ``unavailable`` with the reason, and :func:`edgeopt.results.gate.enforce` raises
    for it once the results are shown.

    Args:
        items: files or folders, or saved results.
        {options}

    Raises:
        SourceError: a file that is no artifact and no results, or results of another version.
        UsageError: options that cannot be honoured, another machine.
        InputsError: inputs are missing or do not fit.
        OutputError: ``out`` cannot be written.
    """
    data, text, out = options.data, options.text, options.out
    saved = [is_saved(item) for item in items]
    if len(items) < 2 and not any(saved):
        raise UsageError(f"{len(items)} artifact to compare; give two or more, or saved results")
    artifacts = [item for item, is_document in zip(items, saved, strict=True) if not is_document]
    if not artifacts:
        _require_nothing_to_run()
    elif options.other_machine and len(artifacts) == len(items):
        raise UsageError("--other-machine is for saved results, and none is among what is compared")
    if out is not None:
        read = [given for given in (*items, data, text) if given is not None]
        checked_output(out, list(map(file_of, read)))
    documents = open_all(
        {
            position: item
            for position, (item, is_document) in enumerate(zip(items, saved, strict=True))
            if is_document
        }
    )
    if artifacts:
        task = _Comparison(
            metrics=tuple(map(find_metric, options.metric)),
            data=data,
            text=None if text is None else Path(text),
            chunks=options.chunks,
            context=options.context,
            options={name: getattr(options, name) for name in _BENCH & (stated() or set())},
        )
        found = _measured(artifacts, task, None if documents else out, options.progress)
        documents[saved.index(False)] = SavedResults(_NOW, found)
    results = merge([documents[i] for i in sorted(documents)], other_machine=options.other_machine)
    if out is not None:
        write_document(results, Path(out))
    return results


def _require_nothing_to_run() -> None:
    """Saved results are taken as they are: UsageError for an option that would have them run."""
    for name in _RUN:
        if name in (stated() or ()):
            raise UsageError(
                f"{flag_of(name)}: saved results cannot be run; give the artifacts, or leave it out"
            )


@dataclass(frozen=True)
class _Comparison:
    """What artifacts are compared on; ``options`` are bench's."""

    metrics: tuple[TaskMetric, ...]
    data: str | None
    text: Path | None
    chunks: int
    context: int
    options: Mapping[str, Any]

    @property
    def asked(self) -> BenchRequest:
        known = options_of(BenchRequest)
        given = {name: value for name, value in self.options.items() if name in known}
        return BenchRequest(**given, data=self.data)


def _measured(
    items: Sequence[str | Path],
    task: _Comparison,
    out: str | Path | None,
    progress: Progress | None,
) -> Results:
    """The artifacts benchmarked in one run, and held against the first."""
    # Without their tensors: those hold maps of the files, and what is mapped cannot be evicted.
    sources = [replace(open_source(item), weights=(), extras=()) for item in items]
    setting = _setting(sources, task)
    options = {**task.options, **({"inputs": setting.given} if setting.given else {})}
    results = bench(items, data=task.data, out=out, progress=progress, **options)
    artifacts = [
        _artifact(subject, source.path, task)
        for subject, source in zip(results.subjects, sources, strict=True)
    ]
    tensors = [tensors_of(artifact.source) for artifact in artifacts]
    errors = {
        artifact.name: layer_errors(tensors[0], each, progress=progress)
        for artifact, each in zip(artifacts[1:], tensors[1:], strict=True)
    }
    found = _likeness(artifacts, errors, task, setting, progress)
    return replace(
        results,
        subjects=tuple(
            replace(subject, layers=with_errors(each.layers, errors.get(subject.name, ())))
            for subject, each in zip(results.subjects, tensors, strict=True)
        ),
        settings={**results.settings, "fidelity_on": _stands_on(setting, task)},
        fidelity=found.fidelity,
        quality=tuple(found.quality),
        unavailable=(*results.unavailable, *found.unavailable),
    )


def _stands_on(setting: _Setting, task: _Comparison) -> str:
    """What figures of fidelity stand on, in the words of a headline; empty where it is the weights
    alone, which is said where they are shown."""
    if setting.inputs:
        return "made-up inputs" if task.data is None else "the samples given"
    return "" if task.text is None else "the text given"


@dataclass(frozen=True)
class _Setting:
    """What the baseline is asked with: ``inputs`` with their ``hints`` and ``sizes``, or the
    ``body`` of a text.

    ``given`` is what bench is told of the inputs where the data holds targets beside them.
    """

    inputs: tuple[InputSpec, ...] = ()
    hints: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    body: bytes | None = None
    given: tuple[str, ...] = ()


def _setting(sources: Sequence[Source], task: _Comparison) -> _Setting:
    """Raises for what cannot be honoured, before minutes of measuring."""
    runtimes = [runtime_of(source, task.asked) for source in sources]
    require_use(runtimes)
    room = _ANSWERS_TO[runtimes[0]]
    if task.metrics:
        name = task.metrics[0].name
        if room == "arrays" and task.data is None:
            raise UsageError(f"--metric {name}: needs --data with labels; see --help")
        if room == "weights":
            raise UsageError(f"--metric {name}: {_NEEDS[room]}")
        if room == "texts":
            other = next((m.name for m in task.metrics if m.name != _PERPLEXITY), None)
            if other is not None:
                raise UsageError(f"--metric {other}: of GGUF files there is {_PERPLEXITY} alone")
            if task.text is None:
                raise UsageError(f"--metric {name}: of GGUF files it needs --text FILE")
    body = None if task.text is None else read_text(task.text, task.chunks, task.context)
    if room != "arrays":
        return _Setting(body=body)
    described = next((source for source in sources if source.inputs), sources[0])
    inputs = specs_of(described, task.asked)
    if task.data is not None:
        read_labelled(task.data, inputs)
    tell = task.data is not None and bool(described.inputs) and not task.asked.inputs
    hints = hints_of(described)
    sizes: dict[str, int] = {}
    if task.data is None:
        sizes, values = fitting_sizes(described, inputs, hints, {})
        hints = pinned(hints, values)
    given = tuple(map(str, inputs)) if tell else ()
    return _Setting(inputs, hints, sizes, body, given)


def _likeness(
    artifacts: Sequence[Artifact],
    errors: Mapping[str, Sequence[TensorError]],
    task: _Comparison,
    setting: _Setting,
    progress: Progress | None,
) -> Likeness:
    """By answers or by texts, of those that the baseline's can be compared with so; of the others
    by their weights."""
    base = artifacts[0]
    room = _room(base)
    like = [artifact for artifact in artifacts if _room(artifact) == room]
    parts: list[Likeness] = []
    if room == "arrays":
        parts.append(_answers(like, setting, task, progress))
    elif room == "texts" and setting.body is not None:
        parts.append(_texts(like, setting.body, task, progress))
    else:
        like = [base]
    for artifact in artifacts:
        if artifact not in like:
            part = of_weights(artifact.name, errors[artifact.name])
            for metric in task.metrics:
                part.lacks(artifact.name, f"quality.{metric.name}", _NEEDS[_room(artifact)])
            parts.append(part)
    return together(parts)


def _artifact(subject: Subject, path: Path, task: _Comparison) -> Artifact:
    """Answers are compared on this machine, wherever the artifact was timed."""
    source, asked = open_source(path), task.asked
    here = task.options.get("on") is None
    case = Case(
        path=path.absolute(),
        files=tuple(file.absolute() for file in source.files),
        runtime=subject.runtime,
        device=resolve(asked.device if here else "cpu", subject.runtime),
        threads=asked.threads[0],
        options={"kind": source.kind, "model": asked.model, "trust_pickle": asked.trust_pickle},
    )
    return Artifact(subject.name, source, case)


def _room(artifact: Artifact) -> str:
    """What an artifact answers to; only those that answer to the same can be compared by it."""
    return _ANSWERS_TO[artifact.case.runtime]


def _answers(
    artifacts: Sequence[Artifact], setting: _Setting, task: _Comparison, progress: Progress | None
) -> Likeness:
    try:
        return of_answers(
            artifacts,
            setting.inputs,
            data=task.data,
            metrics=task.metrics,
            hints=setting.hints,
            sizes=setting.sizes,
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
    artifacts: Sequence[Artifact], body: bytes, task: _Comparison, progress: Progress | None
) -> Likeness:
    assert task.text is not None
    context, embedder = task.context, False
    for artifact in artifacts:
        try:
            model = read_model(artifact.source)
        except SourceError:  # an architecture that only llama.cpp knows
            continue
        context, embedder = fitting_context(model, context), embedder or is_embedder(model)
    if embedder:
        found = of_embeddings(
            artifacts, body, chunks=task.chunks, context=context, progress=progress
        )
        for metric in task.metrics:
            found.lacks("", f"quality.{metric.name}", "embedders predict no next token")
        return found
    return of_texts(
        artifacts,
        body,
        task.text.name,
        chunks=task.chunks,
        context=context,
        perplexity=bool(task.metrics),
        progress=progress,
    )
