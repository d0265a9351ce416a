"""The gate: what a measured pair must show before it is called proven.

Every line is a :class:`~edgeopt.core.Check` with what was found, what was asked and, where it
fails, what to try. What could not be checked is listed as unproven, never passed in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeopt.core import Basis, Change, Check, Fidelity, Verdict, format_bytes
from edgeopt.errors import UsageError
from edgeopt.measure.jobs import ROW_MARGIN_DB
from edgeopt.measure.kinds import WorstKind, worst_kind
from edgeopt.measure.pair import Mates, PairResult, Repeats
from edgeopt.numerics.decide import rule_of

__all__ = [
    "AGREEMENT",
    "FEW_ROWS",
    "FLOORS",
    "NEAR",
    "ROW_MARGIN_DB",
    "SAME_ANSWERS",
    "TENSOR_FLOORS",
    "basis",
    "judge",
]

#: The least SQNR (dB) of the worst output, by bits; None for pairs that nobody quantized here
#: (export, verify); 16 is float16. At 20 dB the error is a tenth of the signal's amplitude.
FLOORS: Mapping[int | None, float] = {16: 40.0, 8: 20.0, 4: 8.0, None: 30.0}

#: The least SQNR (dB) of a single tensor against the source's, by its bits: what is under it says
#: other numbers, however little an output may show of it on the inputs at hand.
TENSOR_FLOORS: Mapping[int, float] = {8: 20.0, 7: 20.0, 6: 15.0, 5: 10.0, 4: 6.0, 3: 3.0, 2: 1.0}

#: Where an output is a classification: the least share of samples whose answer stays the same, and
#: how many may change whatever their number.
SAME_ANSWERS, _MAY_CHANGE = 0.9, 1

#: Outputs whose largest element is no answer: what counts is where they point.
DIRECTION = re.compile("embed|hidden|feature|pool")

#: For what 8 bits are too few for.
_FLOAT16 = "keep the model in float16, with edgeopt export --half"

#: The largest error, by bits, of a probability that is near nought (or one) and is judged by it.
NEAR: Mapping[int | None, float] = {16: 0.01, 8: 0.1, 4: 0.2, None: 0.03}

#: With fewer samples than this a figure comes with its spread over them.
FEW_ROWS = 16

#: The least share of equal elements of an integer output (class numbers, masks), by bits.
AGREEMENT: Mapping[int | None, float] = {16: 0.99, 8: 0.9, 4: 0.5, None: 0.99}

#: What the user asked to be preferred over speed: the speed is then shown, and not asked for.
_SPEED_NOT_ASKED = frozenset({"size", "memory"})


def judge(
    pair: PairResult,
    *,
    bits: int | None,
    min_sqnr: float | None,
    prefer: str,
    coverage: Mapping[str, Any],
    sizes: tuple[int, int],
    quantized: bool,
    changes: Sequence[Change] = (),
    misplaced: Sequence[str] = (),
    given: bool = False,
    min_same: float | None = None,
    noise: str = "",
) -> Verdict:
    """Judge a measured pair.

    ``bits`` chooses the fidelity floor, ``min_sqnr`` (dB) overrides it. ``prefer`` of ``size`` or
    ``memory`` leaves speed unasked. ``coverage["share"]`` is the share (0 to 1) of the bytes of
    float weights that are quantized. ``sizes`` are file bytes (source, artifact). ``quantized``:
    the artifact is meant to be a quantized (or float16), smaller one; otherwise coverage and size
    are not asked for. ``changes`` are what is said to have happened to each tensor, ``misplaced``
    where the file holds something else. ``given``: the samples are the user's, not made up; then
    an output that is a classification must keep its answers, too, whatever floor ``min_sqnr`` asks
    for: a share of ``min_same`` (default :data:`SAME_ANSWERS`; given, made-up inputs are held to it
    as well). ``noise``: what draws at random
    in the source, and what to set, should its answers differ from run to run.
    """
    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise UsageError(f"--min-sqnr {min_sqnr}: not a number of decibels, such as 20")
    if min_same is not None and not 0 <= min_same <= 1:
        raise UsageError(f"--min-same {min_same:g}: not a share from 0 to 1, such as 0.9")
    checks: list[Check] = []
    if quantized:
        checks += [_something_done(coverage, bits), _smaller(*sizes, bits)]
    if changes:
        checks += [_as_planned(misplaced), *_tensors(changes)]
    checks.append(_loads(pair))
    unproven = list(pair.unproven)
    if pair.failure is not None:
        unproven.append("fidelity and speed: the artifact does not run")
        return Verdict(tuple(checks), tuple(unproven))
    floor = _of(FLOORS, bits) if min_sqnr is None else min_sqnr
    # What a seed in the file decides varies from run to run too, but is the same in both files.
    apart = any(f.sqnr_db < floor for f in pair.fidelity)
    if pair.repeats is not None and pair.repeats.db < floor and apart:
        checks.append(_varies(pair.repeats, floor, noise))
    checks += _same_sets(pair, bits, _more(bits, given))
    checks += _fidelity(pair.fidelity, bits, min_sqnr, given)
    if given or min_same is not None:
        share = SAME_ANSWERS if min_same is None else min_same
        same = same_answers(pair.fidelity, _closer(bits, given), share)
        checks += [] if same is None else [same]
    if pair.mates is not None:
        checks.append(_mates(pair.mates, floor))
    unproven += [f"output {f.output}: constant in the source" for f in pair.fidelity if f.constant]
    speed = _speed(pair, prefer, bits, given)
    if speed is None:
        unproven.append("speed: no latency was measured")
    else:
        checks.append(speed)
    return Verdict(tuple(checks), tuple(unproven), basis(given, pair.samples))


def basis(given: bool, samples: int) -> Basis:
    """What a verdict on ``samples`` inputs stands on: the user's, or made-up ones."""
    return Basis("samples" if given else "made-up", samples)


def same_answers(
    fidelity: Sequence[Fidelity], advice: str, least: float = SAME_ANSWERS
) -> Check | None:
    """The share of samples whose answer stays the same, of the output where it is lowest, against
    the ``least`` that is asked for; None where no output is a classification (see
    :class:`~edgeopt.core.Fidelity`, ``top1``)."""
    classes = [
        f
        for f in fidelity
        if f.top1 is not None and f.rows and not f.constant and not DIRECTION.search(f.output)
    ]
    if not classes:
        return None
    worst = min(classes, key=lambda f: f.top1 or 0.0)
    share = worst.top1 or 0.0
    changed = round((1 - share) * worst.rows)
    return Check(
        name="same answers",
        passed=share >= least or (least <= SAME_ANSWERS and changed <= _MAY_CHANGE),
        found=f"{share:.1%} of {worst.rows} ({worst.output})",
        limit=f"{least:.3g} or more" if least * 100 % 1 else f"{least:.0%} or more",
        advice=advice,
    )


def _closer(bits: int | None, given: bool) -> str:
    """What to try where answers change."""
    return _more(bits, given).replace("lower --min-sqnr", "lower --min-same")


def _varies(repeats: Repeats, floor: float, noise: str) -> Check:
    return Check(
        name="source repeats itself",
        passed=False,
        found=f"its own answers to one input differ from run to run, {_db(repeats.db)}"
        f" ({repeats.output})",
        limit=f"{floor:g} dB or more, or nothing can be compared with it",
        advice=noise or "export the model in evaluation mode, with its random draws left out",
    )


def _same_sets(pair: PairResult, bits: int | None, advice: str) -> Iterator[Check]:
    """Outputs that are sets of rows (boxes, say): how many rows are found again; and outputs
    whose shapes differ otherwise."""
    if pair.shapes:
        yield Check(
            name="same shapes",
            passed=False,
            found="; ".join(pair.shapes),
            limit="every output in the source's shape",
            advice=advice,
        )
    rows = pair.rows
    if rows is None:
        return
    least = _of(AGREEMENT, bits)
    changed = max(rows.source, rows.artifact) - rows.matched
    yield Check(
        name="same rows",
        passed=rows.share >= least or changed <= _MAY_CHANGE,
        found=f"{rows.matched} of {rows.source} rows found again, {rows.artifact - rows.matched} "
        f"others in the artifact ({', '.join(rows.outputs)})",
        limit=f"{least:.0%} or more",
        advice=advice,
    )


def _as_planned(misplaced: Sequence[str]) -> Check:
    more = f" and {len(misplaced) - 1} more" if len(misplaced) > 1 else ""
    return Check(
        name="file as planned",
        passed=not misplaced,
        found=f"{misplaced[0]}{more}" if misplaced else "every tensor, read back from the file",
        limit="each tensor in the bits that the plan says",
        advice="this is a fault of edgeopt's; please report it with the model",
    )


def _tensors(changes: Sequence[Change]) -> Iterator[Check]:
    known = [
        (change.sqnr_db - TENSOR_FLOORS[change.decision.affine.bits], change)
        for change in changes
        if change.sqnr_db is not None and change.decision.affine is not None
    ]
    if not known:
        return
    over, worst = min(known, key=lambda pair: pair[0])
    assert worst.sqnr_db is not None and worst.decision.affine is not None
    bits = worst.decision.affine.bits
    yield Check(
        name="each tensor",
        passed=over >= 0,
        found=f"{_db(worst.sqnr_db)} ({worst.decision.tensor}, {bits} bits)",
        limit=f"{TENSOR_FLOORS[bits]:g} dB or more at {bits} bits",
        advice="use --bits 8" if bits < 8 else _FLOAT16,
    )


def _mates(mates: Mates, floor: float) -> Check:
    """Of one row. Where it misses its floor alone, its neighbours are not what is wrong."""
    least = floor - ROW_MARGIN_DB
    return Check(
        name="rows in a batch",
        passed=mates.beside_db >= least or mates.alone_db < least,
        found=f"{_db(mates.beside_db)} beside others ({mates.output}), {_db(mates.alone_db)} alone",
        limit=f"{least:g} dB or more for a single row",
        advice="rows share one scale: run rows of such different sizes one at a time, and keep the"
        " file with --force",
    )


def _more(bits: int | None, given: bool) -> str:
    """What to try for closer answers, and was not tried already."""
    samples = [] if given else ["--data your_samples.npz"]
    if bits == 16:
        return "leave out --half, or lower --min-sqnr knowingly"
    if bits == 4:
        return "use " + " or ".join(["--bits 8", "a smaller --block-size (32)", *samples])
    if bits == 8 and samples:
        return f"use {samples[0]} (real samples calibrate better), or lower --min-sqnr knowingly"
    if bits == 8:
        return f"{_FLOAT16}, or lower --min-sqnr knowingly"
    return "lower --min-sqnr knowingly, or look for the output that differs"


def _something_done(coverage: Mapping[str, Any], bits: int | None) -> Check:
    share = float(coverage.get("share", 0.0))
    half = bits == 16
    return Check(
        name="something in float16" if half else "something quantized",
        passed=share > 0.0,
        found=f"{share:.1%} of the float weights' bytes",
        limit="more than none",
        advice="see the reasons below, or leave out --half"
        if half
        else "see the reasons below; a smaller --block-size accepts more shapes",
    )


def _smaller(before: int, after: int, bits: int | None) -> Check:
    return Check(
        name="file smaller",
        passed=after < before,
        found=f"{format_bytes(after)} from {format_bytes(before)}",
        limit="fewer bytes than the source",
        advice={
            16: "leave out --half, or go lower with edgeopt quantize",
            4: "use a larger --block-size",
        }.get(bits or 0, "use --bits 4"),
    )


def _loads(pair: PairResult) -> Check:
    return Check(
        name="loads and runs",
        passed=pair.failure is None,
        found=pair.failure or "in a fresh process, with plain ONNX Runtime",
        limit="ONNX Runtime runs the written file",
        advice="use --target portable, or another --bits",
    )


def _fidelity(
    outputs: tuple[Fidelity, ...], bits: int | None, min_sqnr: float | None, given: bool
) -> Iterator[Check]:
    varying = [f for f in outputs if not f.constant]
    yield Check(
        name="source output varies",
        passed=bool(varying),
        found=_constant(outputs),
        limit="not constant, or nothing can be proven",
        advice="give other inputs: these samples all get one answer"
        if given
        else "give inputs that the model was made for: --data your_samples.npz",
    )
    broken = [f.output for f in outputs if not f.finite]
    yield Check(
        name="output finite",
        passed=not broken,
        found=f"NaN or Inf in {', '.join(broken)}" if broken else "no NaN or Inf",
        limit="none that the source does not have",
        advice={16: "leave out --half", 8: _FLOAT16}.get(bits or 0, "use --bits 8"),
    )
    numbers = [f for f in varying if not math.isnan(f.sqnr_db)]
    classes = [f for f in varying if math.isnan(f.sqnr_db)]
    advice = _more(bits, given)
    if numbers:
        floor = _of(FLOORS, bits) if min_sqnr is None else min_sqnr
        near = _of(NEAR, bits) if min_sqnr is None else None
        db, output, kind = min(
            ((k.db, f, k) for f in numbers for k in [worst_kind(f, near, floor)]),
            key=lambda found: found[0],
        )
        yield Check(
            name="fidelity",
            passed=db >= floor,
            found=f"{_db(db)} ({output.output}{_on(kind) or _spread(output)})",
            limit=f"{floor:g} dB or more",
            advice=advice,
        )
        yield from _small_errors(numbers, near, floor, advice)
    if classes:
        worst = min(classes, key=lambda f: f.top1 or 0.0)
        share, least = worst.top1 or 0.0, _of(AGREEMENT, bits)
        yield Check(
            name="same integers",
            passed=share >= least,
            found=f"{share:.1%} equal ({worst.output})",
            limit=f"{least:.0%} or more",
            advice=advice,
        )


def _on(worst: WorstKind) -> str:
    """The kind of samples that is the worst."""
    return f", worst on {worst.kind}" if worst.kind else ""


def _small_errors(
    outputs: Sequence[Fidelity], near: float | None, floor: float, advice: str
) -> Iterator[Check]:
    """What was judged by the size of its errors in place of decibels is said to be."""
    found = [(k.largest, f, k) for f in outputs for k in [worst_kind(f, near, floor)] if k.near]
    if not found or near is None:
        return
    largest, output, kind = max(found, key=lambda each: each[0])
    yield Check(
        name="near nought",
        passed=largest <= near,
        found=f"off by {largest:.2g} at most, every decision the same ({output.output}, a "
        f"probability, on {', '.join(kind.near)})",
        limit=f"{near:g} or less where decibels say little",
        advice=advice,
    )


def _spread(worst: Fidelity) -> str:
    """Few samples say little of others: from the worst of them to the best."""
    low, high = worst.lowest_db, worst.highest_db
    if worst.samples >= FEW_ROWS or low is None or high is None or worst.samples < 2:
        return ""
    return f"; {_db(low)} to {_db(high)} by sample"


def _constant(outputs: tuple[Fidelity, ...]) -> str:
    names = [f.output for f in outputs if f.constant]
    if not outputs:
        return "no output was compared"
    return (
        f"{', '.join(names)} is one value throughout, or a probability at rest"
        if names
        else "it does"
    )


def _db(value: float) -> str:
    return "identical" if value == math.inf else f"{value:.1f} dB"


def _of(table: Mapping[int | None, float], bits: int | None) -> float:
    return table[bits] if bits in table else table[None]


def _speed(pair: PairResult, prefer: str, bits: int | None, given: bool) -> Check | None:
    ratio = pair.ratio
    if ratio is None:
        return None
    asked = prefer not in _SPEED_NOT_ASKED
    found = f"{ratio.estimate:.2f} of the source's time ({ratio.low:.2f} to {ratio.high:.2f})"
    return Check(
        name="not slower",
        passed=not (asked and pair.slower),
        found=found,
        limit=f"at most {1 + rule_of('latency', 'p50').effect:g}"
        if asked
        else f"not asked (--prefer {prefer})",
        advice=" or ".join(
            [
                "use --prefer size if speed does not matter",
                *(["--data your_samples.npz"] if bits in (8, 4) and not given else []),
                *(["--bits 8"] if bits == 4 else []),
            ]
        ),
    )
