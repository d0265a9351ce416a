"""How alike artifacts answer: fidelity of each against the baseline, and its task quality.

Models that take arrays answer the same samples, each in a process of its own, and the answers
are compared. GGUF files predict a text in lockstep. Of anything else the weights are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgeopt.core import Fidelity, InputSpec, Progress, Quality, Source, Unavailable
from edgeopt.data.synthetic import synthetic
from edgeopt.errors import EdgeoptError, InputsError, WorkerError
from edgeopt.measure.answers import Answers, compare_answers, take_answers
from edgeopt.measure.language import compare_embeddings, compare_next_tokens
from edgeopt.measure.process import Workplace, workplace
from edgeopt.measure.tensor_errors import TensorError
from edgeopt.runtimes.engine import Case
from edgeopt.tasks.labelled import Labelled, read_labelled
from edgeopt.tasks.metrics import TaskMetric, judge_answers

__all__ = [
    "Artifact",
    "Likeness",
    "of_answers",
    "of_embeddings",
    "of_texts",
    "of_weights",
    "together",
]

#: Samples that answers are compared on where no task metric asks for all of them.
_SAMPLES = 64
_SYNTHETIC = 8

#: Texts embedded for each chunk asked for.
_LINES_A_CHUNK = 8

#: A baseline whose own answers are less alike than this (dB) tells nothing of others'.
_REPEATS = 30.0

_NEXT_TOKEN = "next token"
_EMBEDDING = "embedding"
_WEIGHTS = "weights"


@dataclass(frozen=True)
class Artifact:
    """One of those compared: its name in the document, the file, and how it is run."""

    name: str
    source: Source
    case: Case


@dataclass
class Likeness:
    """What was found, ready to go into a document."""

    fidelity: dict[str, tuple[Fidelity, ...]] = field(default_factory=dict)
    quality: list[Quality] = field(default_factory=list)
    unavailable: list[Unavailable] = field(default_factory=list)

    def lacks(self, subject: str, metric: str, error: object) -> None:
        self.unavailable.append(Unavailable(subject, metric, " ".join(str(error).split())))


# ---------------------------------------------------------------------------------------------
# arrays in, arrays out


def of_answers(
    artifacts: Sequence[Artifact],
    inputs: Sequence[InputSpec],
    *,
    data: str | None,
    metrics: Sequence[TaskMetric] = (),
    hints: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Likeness:
    """The first artifact's answers against all the others', on ``data`` or made-up ``inputs``.

    ``sizes`` are those of made-up inputs' free dimensions. ``metrics`` are taken of every artifact,
    and need ``data``. An artifact that gives no answers (it does not load, its runtime dies) is
    named as unavailable and the others are compared all the same. Raises InputsError where the
    data cannot be used.
    """
    found = Likeness()
    loose = _loose(artifacts[0].source)
    kinds: Sequence[str] = ()
    if data is None:
        made = synthetic(inputs, hints, count=_SYNTHETIC, seed=0, sizes=sizes)
        samples, kinds = Labelled(made.label, lambda: iter(made), {}), made.kinds
    else:
        samples = read_labelled(data, inputs)
    with workplace(samples.feeds(None if metrics else _SAMPLES)) as place:
        base: Answers | None = None
        for artifact in artifacts:
            with _answered(place, artifact, found, metrics, progress) as answers:
                if answers is None:
                    continue
                for metric in metrics:
                    _judge(artifact.name, metric, answers, samples, found)
                if artifact is artifacts[0]:
                    base = answers
                    continue
                _compare(artifact.name, artifacts[0].name, base, answers, found, loose, kinds)
            answers.discard()
    return found


def _loose(source: Source) -> tuple[str, ...]:
    """Outputs that are sets of rows, as far as the file says."""
    if source.kind != "onnx":
        return ()
    from edgeopt.graphs.loose import loose_outputs

    return loose_outputs(source.path)


@contextmanager
def _answered(
    place: Workplace,
    artifact: Artifact,
    found: Likeness,
    metrics: Sequence[TaskMetric],
    progress: Progress | None,
) -> Iterator[Answers | None]:
    key = f"answers-{len(list(place.folder.glob('answers-*')))}"
    try:
        answers = take_answers(place, key, artifact.case, progress)
    except EdgeoptError as error:
        found.lacks(artifact.name, "fidelity", error)
        for metric in metrics:
            found.lacks(artifact.name, f"quality.{metric.name}", error)
        yield None
    else:
        yield answers


def _judge(
    subject: str, metric: TaskMetric, answers: Answers, samples: Labelled, found: Likeness
) -> None:
    try:
        found.quality.append(judge_answers(subject, metric, answers, samples))
    except EdgeoptError as error:
        found.lacks(subject, f"quality.{metric.name}", error)


def _compare(
    subject: str,
    baseline: str,
    base: Answers | None,
    answers: Answers,
    found: Likeness,
    loose: Sequence[str] = (),
    kinds: Sequence[str] = (),
) -> None:
    if base is None:
        found.lacks(subject, "fidelity", f"{baseline}, the baseline, gave no answers")
        return
    if base.repeats_db is not None and base.repeats_db < _REPEATS:
        found.lacks(
            subject,
            "fidelity",
            f"{baseline}, the baseline, draws at random: its own answers to one sample differ from "
            f"run to run ({base.repeats_db:.1f} dB apart); turn that off (evaluation mode, noise "
            "as an input)",
        )
        return
    try:
        found.fidelity[subject], rows = compare_answers(base, answers, loose, kinds)
    except EdgeoptError as error:
        found.lacks(subject, "fidelity", error)
    else:
        if rows is not None and (rows.matched < rows.source or rows.matched < rows.artifact):
            found.lacks(
                subject,
                "fidelity.rows",
                f"{rows.matched} of {rows.source} rows found again, {rows.artifact} in it "
                f"({', '.join(rows.outputs)}): fidelity is that of the rows in both",
            )


# ---------------------------------------------------------------------------------------------
# GGUF


def of_texts(
    artifacts: Sequence[Artifact],
    text: bytes,
    label: str,
    *,
    chunks: int,
    context: int,
    perplexity: bool,
    progress: Progress | None = None,
) -> Likeness:
    """Next-token distributions of GGUF files against the first's: top-1, KL divergence; with
    ``perplexity`` also that, as a task metric."""
    found = Likeness()
    base = artifacts[0]
    known: Quality | None = None
    for artifact in artifacts[1:]:
        outcome = compare_next_tokens(
            base.source.path,
            artifact.source.path,
            text,
            chunks=chunks,
            context=context,
            threads=artifact.case.threads,
            progress=progress,
        )
        if outcome.result is None:
            error = outcome.error or WorkerError("no answer")
            found.lacks(artifact.name, "fidelity", error)
            if perplexity:
                found.lacks(artifact.name, "quality.perplexity", error)
            continue
        result = outcome.result
        values = {each["name"]: each["value"] for each in result["statistics"]}
        found.fidelity[artifact.name] = (_next_token(values, result),)
        if perplexity:
            how = (
                f"over {result['tokens']} tokens of {label}, chunks of {result['context']}, the "
                "second half of each scored"
            )
            known = _perplexity(base.name, values["Mean PPL(base)"], how, result)
            _take(known, found)
            _take(_perplexity(artifact.name, values["Mean PPL(Q)"], how, result), found)
    if perplexity and known is None:
        found.lacks(base.name, "quality.perplexity", "no other file could be compared with it")
    return found


def of_embeddings(
    artifacts: Sequence[Artifact],
    text: bytes,
    *,
    chunks: int,
    context: int,
    progress: Progress | None = None,
) -> Likeness:
    """The cosine between each GGUF embedder's embeddings of the text's lines and the first's."""
    found = Likeness()
    lines = [line for line in text.splitlines() if line.strip()][: chunks * _LINES_A_CHUNK]
    for artifact in artifacts[1:]:
        outcome = compare_embeddings(
            artifacts[0].source.path,
            artifact.source.path,
            lines,
            context=context,
            threads=artifact.case.threads,
            progress=progress,
        )
        if outcome.result is None:
            found.lacks(artifact.name, "fidelity", outcome.error)
            continue
        cosines = outcome.result["cosines"]
        mean = math.fsum(cosines) / len(cosines)
        found.fidelity[artifact.name] = (
            _partial(_EMBEDDING, len(cosines), cosine=mean, finite=math.isfinite(mean)),
        )
    return found


def _partial(output: str, samples: int, **known: Any) -> Fidelity:
    """A fidelity of which not everything is known."""
    unknown = {"sqnr_db": math.nan, "cosine": math.nan, "max_abs": math.nan}
    rest = {"top1": None, "kl": None, "finite": True, "constant": False}
    return Fidelity(output=output, samples=samples, **{**unknown, **rest, **known})


def _next_token(values: Mapping[str, float], result: Mapping[str, Any]) -> Fidelity:
    return _partial(
        _NEXT_TOKEN,
        int(result["tokens"]),
        top1=values["Same top p"] / 100,
        kl=values["Mean KLD"],
        finite=bool(result["finite"]),
    )


def _perplexity(subject: str, value: float, how: str, result: Mapping[str, Any]) -> Quality:
    return Quality(subject, "perplexity", value, False, int(result["tokens"]), how)


def _take(quality: Quality, found: Likeness) -> None:
    """Once for each subject: the baseline's comes with every comparison."""
    if any((q.subject, q.metric) == (quality.subject, quality.metric) for q in found.quality):
        return
    if math.isfinite(quality.value):
        found.quality.append(quality)
    else:
        error = InputsError(f"it is {quality.value}, no number to compare")
        found.lacks(quality.subject, f"quality.{quality.metric}", error)


# ---------------------------------------------------------------------------------------------
# weights alone


def of_weights(subject: str, errors: Sequence[TensorError]) -> Likeness:
    """Where nothing can be run against the baseline: the tensors' own signal to noise, the worst
    of them all."""
    found = Likeness()
    if not errors:
        found.lacks(subject, "fidelity", "no tensor has a counterpart in the baseline")
        return found
    worst = min(errors, key=lambda e: -math.inf if math.isnan(e.sqnr_db) else e.sqnr_db)
    found.fidelity[subject] = (
        _partial(
            f"{_WEIGHTS}, the worst: {worst.name}",
            len(errors),
            sqnr_db=worst.sqnr_db,
            finite=all(error.finite for error in errors),
        ),
    )
    return found


def together(parts: Sequence[Likeness]) -> Likeness:
    """All of them as one."""
    whole = Likeness()
    for part in parts:
        whole.fidelity.update(part.fidelity)
        whole.quality += part.quality
        whole.unavailable += part.unavailable
    return whole
