"""What is asked of a model with fewer weights, and whether it was found.

Fewer weights answer differently by design: how close the answers must be is for the user to say.
That they are fewer, load, run and stay finite is asked of every result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgeopt.core import Check, Fidelity, Quality
from edgeopt.core import format_bytes as bytes_text
from edgeopt.measure.gate import same_answers
from edgeopt.measure.pair import PairResult
from edgeopt.targets.program.shrunk import Requirements, Shrunk

__all__ = ["judged"]

#: What may be lost of a metric where nobody says: a point of accuracy; of what is larger than 1
#: (perplexity), this share of it.
_MAY_DROP = 0.01

#: The cosine of outputs that must be the same where nothing is asked, and none is an answer.
_SAME = 0.9


def judged(
    verb: str,
    made: Shrunk,
    pair: PairResult,
    quality: Mapping[str, tuple[Quality, Quality]],
    asked: Requirements,
    sizes: tuple[int, int],
) -> tuple[list[Check], list[str]]:
    """(checks, what was not proven); ``sizes``: bytes of the source and of the artifact."""
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
    if verb == "distill":
        checks = [replace(check, advice=_for_students(check.advice)) for check in checks]
    return checks, unproven


def _for_students(advice: str) -> str:
    """What to try, where there is no ratio, and no training to be added."""
    larger = advice.replace("a lower --ratio", "a larger student")
    return larger.replace("--recover DATA", "more --epochs or --data")


def _answers(pair: PairResult, asked: Requirements) -> list[Check]:
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


def _kept_up(quality: Mapping[str, tuple[Quality, Quality]], asked: Requirements) -> list[Check]:
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
    advice = "a lower --ratio, --recover DATA, or --metric with labelled --data"
    answers = same_answers(fidelity, advice)
    if answers is not None:
        return answers
    others = [f for f in fidelity if not f.constant and not math.isnan(f.cosine)]
    if not others:
        return None
    worst = min(others, key=lambda f: f.cosine)
    return Check(
        "answers alike",
        worst.cosine >= _SAME,
        f"cosine {worst.cosine:.3f} ({worst.output})",
        f"{_SAME:g} or more; --metric or --min-sqnr ask for something else",
        advice,
    )
