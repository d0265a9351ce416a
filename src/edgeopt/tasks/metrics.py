"""How well each artifact does its task: ``--metric``, over labelled data, from its own answers."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Quality
from edgeopt.core.given import is_given, lookup
from edgeopt.core.importing import current_folder
from edgeopt.errors import InputsError, UsageError
from edgeopt.measure.answers import Answers
from edgeopt.modules.reasons import attempt
from edgeopt.numerics.task_metrics import (
    accuracy,
    cosines,
    negative_log_likelihoods,
    spearman,
)
from edgeopt.tasks.labelled import SECOND, Labelled

__all__ = ["BUILT_IN", "TaskMetric", "find_metric", "judge_answers"]

#: What a metric gives: one number, or one a sample, whose mean is the number.
MetricValue: TypeAlias = "float | NDArray[np.float64]"


@dataclass(frozen=True)
class TaskMetric:
    """A task metric: its name, which way is better, what it is, and how it is taken."""

    name: str
    higher_is_better: bool
    how: str
    of: Callable[[Answers, Labelled], MetricValue]


def find_metric(spec: str) -> TaskMetric:
    """One ``--metric``: ``accuracy``, ``spearman``, ``perplexity``, or ``module:callable``.

    A callable gets ``(outputs, targets)``: every output by name, over all samples joined along
    the leading axis (a list of arrays, one a sample, where shapes differ), and the array of
    targets (a dict of them where there are several, None where there are none). It gives a
    number, or one number a sample. ``higher_is_better = False`` on it says that less is better.

    Raises UsageError where there is no such metric or it cannot be imported.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]
    if is_given(spec):
        return _of_callable(spec, spec.partition(":")[2], lookup(spec))
    module_name, colon, attribute = spec.partition(":")
    if not (colon and module_name and attribute):
        raise UsageError(f"--metric {spec!r}: use {', '.join(BUILT_IN)}, or module:callable")
    target = _imported(spec, module_name)
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UsageError(f"--metric {spec}: {module_name} has no {attribute!r}")
        target = getattr(target, part)
    return _of_callable(spec, attribute, target)


def _of_callable(spec: str, name: str, target: Any) -> TaskMetric:
    if not callable(target):
        raise UsageError(f"--metric {spec}: {type(target).__name__} cannot be called")

    def run(answers: Answers, data: Labelled) -> MetricValue:
        outputs = {name: _whole(answers.all_of(name)) for name in answers.names}
        targets = data.target if len(data.targets) == 1 else (dict(data.targets) or None)
        found, error = attempt(lambda: target(outputs, targets))
        if error is not None:
            raise InputsError(f"{spec} failed: {type(error).__name__}: {error}")
        numbers, error = attempt(lambda: np.asarray(found, np.float64))
        if error is not None or numbers is None or numbers.ndim > 1:
            raise InputsError(
                f"{spec} gave {type(found).__name__}; a number or one number a sample is needed"
            )
        return numbers if numbers.ndim else float(numbers)

    return TaskMetric(name, bool(getattr(target, "higher_is_better", True)), spec, run)


def judge_answers(subject: str, metric: TaskMetric, answers: Answers, data: Labelled) -> Quality:
    """The metric of one artifact. Raises InputsError where it is no number."""
    found, error = attempt(lambda: metric.of(answers, data))
    if isinstance(error, ValueError):
        raise InputsError(str(error))
    if error is not None:
        raise error
    scores: tuple[float, ...] = ()
    if isinstance(found, np.ndarray):
        scores = tuple(float(score) for score in found)
        if not scores:
            raise InputsError("it gave no scores; give samples that it counts")
        value = float(np.mean(found))
    else:
        assert found is not None
        value = float(found)
    if not math.isfinite(value):
        bad = sum(not math.isfinite(score) for score in scores)
        of = f" ({bad} of {len(scores)} samples)" if bad else ""
        raise InputsError(f"it is {value}{of}, no number to compare")
    count = len(scores) or answers.count // (2 if data.paired else 1)
    how = f"{metric.how}; {data.label}"
    return Quality(subject, metric.name, value, metric.higher_is_better, count, how, scores)


# ---------------------------------------------------------------------------------------------
# built in


def _accuracy(answers: Answers, data: Labelled) -> NDArray[np.float64]:
    labels = _target(data, "class numbers", "labels")
    if labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "biu":
        raise InputsError(f"labels are {labels.dtype}; accuracy needs class numbers")
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    problem = ""
    for name in answers.names:
        output = _whole(answers.all_of(name))
        if isinstance(output, np.ndarray):
            try:
                return accuracy(output, labels.astype(np.int64))
            except ValueError as error:
                problem = problem or str(error)
    raise InputsError(problem or "outputs change their shape from sample to sample")


def _spearman(answers: Answers, data: Labelled) -> float:
    wanted = _target(data, "scores", "scores").reshape(-1)
    for name in _likely(answers, "embedding"):
        output = _whole(answers.all_of(name))
        if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiu":
            continue
        if data.paired and output.ndim == 2 and output.shape[1] > 1:
            return _correlated(cosines(output[0::2], output[1::2]), wanted)
        if not data.paired and output.size == len(output):
            return _correlated(output.reshape(-1), wanted)
    shape = "[N, D] for each of a pair" if data.paired else "[N] or [N, 1]"
    pairs = "" if data.paired else f"; for pairs, give every input NAME also as NAME{SECOND}"
    raise InputsError(f"no output of shape {shape}{pairs}")


def _correlated(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    if len(found) != len(wanted):
        raise InputsError(f"{len(found)} answers for {len(wanted)} scores; give one each")
    return spearman(found, wanted)


def _perplexity(answers: Answers, data: Labelled) -> float:
    total, count = 0.0, 0
    at = 0
    for index, feed in enumerate(data.feeds(answers.count)):
        outputs = answers.load(index)
        logits = next(
            (outputs[n] for n in _likely(answers, "logits") if outputs[n].ndim == 3), None
        )
        tokens = feed.get("input_ids")
        if logits is None or tokens is None:
            raise InputsError(
                "perplexity needs an input input_ids and an output of logits [batch, sequence, "
                "vocabulary]; of a GGUF file, give --text"
            )
        if data.target is not None:
            tokens = data.target[at : at + len(tokens)]
        at += len(tokens)
        found = negative_log_likelihoods(logits, tokens, feed.get("attention_mask"))
        total, count = total + float(found.sum()), count + found.size
    if not count:
        raise InputsError("no next token to predict; give sequences of two tokens or more")
    return math.exp(total / count) if total / count < 700 else math.inf


#: Metrics by name. Of a GGUF file, perplexity comes from the comparison on --text.
BUILT_IN: Mapping[str, TaskMetric] = {
    metric.name: metric
    for metric in (
        TaskMetric("accuracy", True, "share of right classes", _accuracy),
        TaskMetric("spearman", True, "rank correlation with the given scores", _spearman),
        TaskMetric("perplexity", False, "exp of the mean negative log likelihood", _perplexity),
    )
}


def _target(data: Labelled, what: str, name: str) -> NDArray[Any]:
    if data.target is None:
        there = f"it has {', '.join(data.targets)}" if data.targets else "it has inputs only"
        raise InputsError(f"no {what} in {data.label}: {there}; add an array {name!r}")
    return data.target


def _likely(answers: Answers, word: str) -> Sequence[str]:
    """Output names, those that have the word in them first."""
    return sorted(answers.names, key=lambda name: word not in name.lower())


def _whole(parts: Sequence[NDArray[Any]]) -> NDArray[Any] | list[NDArray[Any]]:
    """All samples as one array; a list of arrays where they do not go together."""
    arrays = [np.atleast_1d(part) for part in parts]
    if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
        return arrays
    return np.concatenate(arrays)


def _imported(spec: str, module_name: str) -> Any:
    with current_folder():
        module, error = attempt(lambda: importlib.import_module(module_name))
    if error is not None:
        raise UsageError(
            f"--metric {spec}: importing {module_name} failed: {type(error).__name__}: {error}"
        )
    return module
