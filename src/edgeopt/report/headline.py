"""What it comes to, in words: "3.9x smaller, 2.6x faster, answers 99.6% the same".

Only what was measured is said, and only differences that noise does not explain are claimed; what
got worse is said as plainly as what got better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.core import Quality
from edgeopt.numerics.decide import alike, rule_of
from edgeopt.numerics.derive import Contrast
from edgeopt.report.document import Document
from edgeopt.report.numbers import Number, Phrase, Said, pointer, quantity

__all__ = ["WRITTEN", "Claim", "Headline", "headlines", "quality_number"]


@dataclass(frozen=True)
class Claim:
    """One thing said of an artifact. ``tone``: "good", "bad" or "even". ``aside``: said last, and
    in smaller letters where there are any."""

    phrase: Phrase
    tone: str
    aside: bool = False


@dataclass(frozen=True)
class Headline:
    """What is said of one artifact, against ``baseline`` (empty: of it alone)."""

    subject: str
    baseline: str
    claims: tuple[Claim, ...]

    @property
    def phrase(self) -> Phrase:
        """The claims as one sentence without its full stop."""
        said: list[str | Number] = []
        for claim in self.claims:
            said += [", "] if said else []
            said += claim.phrase
        return tuple(said)


#: The workload of a latency, and how its speed is spoken of.
_SPEED = {
    "": ("", *2 * ("no significant difference in speed",), "speed undecided"),
    "pp": (
        " with the prompt",
        "the prompt no faster nor slower",
        "no significant difference with the prompt",
        "prompt's speed undecided",
    ),
    "tg": (
        " at generating",
        "generating no faster nor slower",
        "no significant difference at generating",
        "generating's speed undecided",
    ),
}


def headlines(document: Document) -> tuple[Headline, ...]:
    """One for every artifact but the baseline; one for a lone artifact, without a comparison."""
    base = document.baseline
    if base in document.names and document.others:
        return tuple(
            Headline(name, base, tuple(_against(document, name))) for name in document.others
        )
    return tuple(Headline(name, "", tuple(_alone(document, name))) for name in document.names)


def _against(document: Document, name: str) -> Iterator[Claim]:
    found = document.contrast(name, "file", "exact")
    if found is not None:
        index, contrast = found
        same = contrast.verdict == "same"
        phrase: Phrase = ("the same size",) if same else document.factor(index)
        yield Claim(phrase, _tone(contrast.verdict))
    if failure := document.results.subject(name).failure:
        yield from _failed(failure)
        return
    yield from _speed(document, name)
    yield from _answers(document, name)
    yield from _task(document, name)


def _failed(reason: str) -> Iterator[Claim]:
    yield Claim(("not measured",), "bad")
    yield Claim((Said(" ".join(reason.split())),), "bad", aside=True)


def _tone(verdict: str) -> str:
    return {"better": "good", "worse": "bad"}.get(verdict, "even")


# ---------------------------------------------------------------------------------------------
# how fast


def _speed(document: Document, name: str) -> Iterator[Claim]:
    """Of every workload: the one ratio, the range of ratios, or how often which way."""
    workloads: dict[str, list[tuple[Any, ...]]] = {}
    for pairing in document.pairings("latency"):
        workloads.setdefault(_workload(pairing), []).append(pairing)
    for kind, pairings in workloads.items():
        found = [document.contrast(name, "latency", "p50", p) for p in pairings]
        indices = [f[0] for f in found if f is not None]
        if indices:
            yield _speed_of(document, indices, kind)
    if not workloads:
        for metric in ("load.cold", "load.warm"):
            loading = document.contrast(name, metric, "median")
            if loading is not None:
                yield _speed_of(document, [loading[0]], "", " to load")
                return


def _workload(pairing: tuple[Any, ...]) -> str:
    workload = str(pairing[-1] or "")
    return workload[:2] if workload[:2] in _SPEED and workload[2:].isdigit() else ""


def _speed_of(document: Document, indices: Sequence[int], kind: str, doing: str = "") -> Claim:
    contrasts = document.derived.contrasts
    after, even, open_, undecided = _SPEED[kind]
    after = doing or after
    if doing:
        even = open_ = f"no significant difference in time{doing}"
    faster = [i for i in indices if contrasts[i].verdict == "better"]
    slower = [i for i in indices if contrasts[i].verdict == "worse"]
    if len(faster) == len(indices) or len(slower) == len(indices):
        return Claim((*_range(document, indices), after), "good" if faster else "bad")
    if not faster and not slower:
        known = any(contrasts[i].verdict in ("not significant", "same") for i in indices)
        shown = known and all(_alike(contrasts[i]) for i in indices)
        said_of_none = even if shown else open_ if known else f"{undecided}: too few samples"
        return Claim((said_of_none,), "even")
    said: list[str | Number] = []
    for group in (faster, slower):
        if group:
            said += [" and "] if said else []
            said += [*_range(document, group), f" in {_number_word(len(group), len(indices))}"]
    return Claim((*said, after), "bad" if slower else "even")


def _alike(contrast: Contrast) -> bool:
    """Whether the interval shows that there is no difference, rather than none being found."""
    low, high = contrast.ratio.low, contrast.ratio.high
    effect = rule_of(contrast.metric, contrast.statistic).effect
    return low is not None and high is not None and alike(low, high, effect)


def _number_word(some: int, of: int) -> str:
    """Counts of settings are few: written out, as in a sentence."""
    return f"{WRITTEN.get(some, str(some))} of {WRITTEN.get(of, str(of))} settings"


#: Small counts as a sentence has them.
WRITTEN = dict(
    enumerate(
        ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
)


def _range(document: Document, indices: Sequence[int]) -> Phrase:
    """ "1.9x to 2.6x faster" of settings that agree in their direction."""
    ordered = sorted(
        indices, key=lambda i: abs(math.log(document.derived.contrasts[i].ratio.value))
    )
    least, most = document.factor(ordered[0]), document.factor(ordered[-1])
    if len(indices) == 1 or _text(least[0]) == _text(most[0]):
        return most
    return (least[0], " to ", *most)


def _text(part: str | Number) -> str:
    return part if isinstance(part, str) else part.text


# ---------------------------------------------------------------------------------------------
# how close


#: How the output is called that stands for the worst of the stored tensors.
_WEIGHTS = "weights, the worst: "


def _answers(document: Document, name: str) -> Iterator[Claim]:
    """The worst output: its share of same answers where it has classes, else its error."""
    outputs = document.fidelity(name)
    # Where nothing was run there are no answers: what is compared are the weights alone.
    stored = any(output.output.startswith(_WEIGHTS) for output in outputs)
    who = "weights" if stored else "answers"
    if any(not output.finite for output in outputs):
        yield Claim((f"{who} with NaN or infinity where the baseline does not",), "bad")
        return
    classed = [(o.top1, i) for i, o in enumerate(outputs) if o.top1 is not None]
    if classed:
        _, worst = min(classed)
        share = document.fidelity_number(name, worst, "top1", "percent")
        yield Claim(("answers ", share, " the same", *_stands_on(document)), "even")
        return
    measured = [(o.sqnr_db, i) for i, o in enumerate(outputs) if not math.isnan(o.sqnr_db)]
    if not measured:
        return
    sqnr, worst = min(measured)
    if math.isinf(sqnr):
        yield Claim(
            (f"{who} identical", *_stands_on(document, stored=stored))
            if sqnr > 0
            else (f"{who} lost: no signal left",),
            "even" if sqnr > 0 else "bad",
        )
        return
    error = document.fidelity_number(name, worst, "sqnr_db", "amplitude")
    where = _stands_on(document, stored=stored)
    yield Claim((f"{who} within ", error, " of the baseline's", *where), "even")


def _stands_on(document: Document, *, stored: bool = False) -> Phrase:
    """On what inputs it is so, where the document says it."""
    where = document.results.settings.get("fidelity_on")
    if stored or not isinstance(where, str) or not where:
        return ()
    return (" on ", Said(where))


def _task(document: Document, name: str) -> Iterator[Claim]:
    scores = {(q.subject, q.metric): i for i, q in enumerate(document.results.quality)}
    for (subject, metric), i in scores.items():
        base = scores.get((document.baseline, metric))
        if subject == name and base is not None:
            yield Claim(
                (
                    Said(metric),
                    " ",
                    quality_number(document, i),
                    " against ",
                    quality_number(document, base),
                ),
                "even",
                aside=True,
            )


def quality_number(document: Document, index: int) -> Number:
    """The value of a task metric: four digits, as they are published."""
    quality: Quality = document.results.quality[index]
    text = quantity(quality.value, "", 4)
    return Number(text, pointer("quality", index, "value"), quality.value)


# ---------------------------------------------------------------------------------------------
# one alone


def _alone(document: Document, name: str) -> Iterator[Claim]:
    for metric, statistic, words in (
        ("file", "exact", ""),
        ("latency", "p50", " an inference"),
        ("memory.peak", "median", " of memory at its peak"),
    ):
        found = document.row(name, metric)
        shown = document.figure(found[0], statistic) if found else None
        if found and shown is not None:
            workload = str(found[1].conditions.get("workload") or "inference")
            said: Phrase = (words,)
            if metric == "latency" and workload.startswith("tg"):
                said = (" a token",)
            elif metric == "latency" and workload != "inference":
                said = (" for ", Said(workload))
            yield Claim((shown, *said), "even")
    if failure := document.results.subject(name).failure:
        yield from _failed(failure)
