"""The gate: what a measured pair must show before it is called proven.

Every line is a :class:`~edgeopt.core.Check` with what was found, what was asked and, where it
fails, what to try. What could not be checked is listed as unproven, never passed in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgeopt.core import Check, Fidelity, Verdict, format_bytes
from edgeopt.errors import UsageError
from edgeopt.measure.pair import SLOWER, PairResult

__all__ = ["AGREEMENT", "FLOORS", "judge"]

#: The least SQNR (dB) of the worst output, by bits; None for pairs that nobody quantized here
#: (export, verify); 16 is float16. At 20 dB the error is a tenth of the signal's amplitude.
FLOORS: Mapping[int | None, float] = {16: 40.0, 8: 20.0, 4: 8.0, None: 30.0}

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
) -> Verdict:
    """Judge a measured pair.

    ``bits`` chooses the fidelity floor, ``min_sqnr`` (dB) overrides it. ``prefer`` of ``size`` or
    ``memory`` leaves speed unasked. ``coverage["share"]`` is the share (0 to 1) of the bytes of
    float weights that are quantized. ``sizes`` are file bytes (source, artifact). ``quantized``:
    the artifact is meant to be a quantized (or float16), smaller one; otherwise coverage and size
    are not asked for.
    """
    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise UsageError(f"--min-sqnr {min_sqnr}: not a number of decibels, such as 20")
    checks: list[Check] = []
    if quantized:
        checks += [_something_done(coverage, bits), _smaller(*sizes, bits)]
    checks.append(_loads(pair))
    unproven = list(pair.unproven)
    if pair.failure is not None:
        unproven.append("fidelity and speed: the artifact does not run")
        return Verdict(tuple(checks), tuple(unproven))
    checks += _fidelity(pair.fidelity, bits, min_sqnr)
    unproven += [f"output {f.output}: constant in the source" for f in pair.fidelity if f.constant]
    speed = _speed(pair, prefer, bits)
    if speed is None:
        unproven.append("speed: no latency was measured")
    else:
        checks.append(speed)
    return Verdict(tuple(checks), tuple(unproven))


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
        }.get(bits or 0, "use --bits 4 or a larger --block-size"),
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
    outputs: tuple[Fidelity, ...], bits: int | None, min_sqnr: float | None
) -> Iterator[Check]:
    varying = [f for f in outputs if not f.constant]
    yield Check(
        name="source output varies",
        passed=bool(varying),
        found=_constant(outputs),
        limit="not constant, or nothing can be proven",
        advice="give inputs that the model was made for: --data your_samples.npz",
    )
    broken = [f.output for f in outputs if not f.finite]
    yield Check(
        name="output finite",
        passed=not broken,
        found=f"NaN or Inf in {', '.join(broken)}" if broken else "no NaN or Inf",
        limit="none that the source does not have",
        advice="use --bits 8, or leave out --half",
    )
    numbers = [f for f in varying if not math.isnan(f.sqnr_db)]
    classes = [f for f in varying if math.isnan(f.sqnr_db)]
    more_bits = "--bits 8, a smaller --block-size (32)" if bits == 4 else "a smaller --block-size"
    samples = "--data your_samples.npz"
    advice = {
        16: "leave out --half, or lower --min-sqnr knowingly",
        4: f"use {more_bits}, or {samples}",
        8: f"use {samples} (real samples calibrate better), or lower --min-sqnr knowingly",
    }.get(bits or 0, "lower --min-sqnr knowingly, or look for the output that differs")
    if numbers:
        worst = min(numbers, key=lambda f: f.sqnr_db)
        floor = _of(FLOORS, bits) if min_sqnr is None else min_sqnr
        yield Check(
            name="fidelity",
            passed=worst.sqnr_db >= floor,
            found=f"{_db(worst.sqnr_db)} ({worst.output})",
            limit=f"{floor:g} dB or more",
            advice=advice,
        )
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


def _constant(outputs: tuple[Fidelity, ...]) -> str:
    names = [f.output for f in outputs if f.constant]
    if not outputs:
        return "no output was compared"
    return f"{', '.join(names)} is one value throughout" if names else "it does"


def _db(value: float) -> str:
    return "identical" if value == math.inf else f"{value:.1f} dB"


def _of(table: Mapping[int | None, float], bits: int | None) -> float:
    return table[bits] if bits in table else table[None]


def _speed(pair: PairResult, prefer: str, bits: int | None) -> Check | None:
    ratio = pair.ratio
    if ratio is None:
        return None
    asked = prefer not in _SPEED_NOT_ASKED
    found = f"{ratio.estimate:.2f} of the source's time ({ratio.low:.2f} to {ratio.high:.2f})"
    return Check(
        name="not slower",
        passed=not (asked and pair.slower),
        found=found,
        limit=f"at most {SLOWER:.2f}" if asked else f"not asked (--prefer {prefer})",
        advice="use --prefer size if speed does not matter"
        + (", --data your_samples.npz, or --bits 8" if bits in (8, 4) else ""),
    )
