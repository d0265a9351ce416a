"""The language of --fail-if: what it says, and the one line where it says nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.core import METRICS
from edgeopt.errors import UsageError
from edgeopt.results.conditions import (
    FIDELITY,
    LONGEST,
    RATES,
    SHARES,
    STATISTICS,
    UNITS,
    Condition,
    Expression,
    parse,
    parse_all,
)


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "kind", "limit"),
    [
        ("latency.p50 > +5%", "latency", "p50", "ratio", 0.05),
        ("latency > 10ms", "latency", "p50", "value", 0.01),
        ("latency.p99>=1.5 s", "latency", "p99", "value", 1.5),
        ("load.cold > 250us", "load.cold", "", "value", 250e-6),
        ("latency.mean > +3 µs", "latency", "mean", "difference", 3e-6),
        ("file > 4MB", "file", "", "value", 4e6),
        ("file > 4MiB", "file", "", "value", 4 * 1024.0**2),
        ("memory.peak > +10%", "memory.peak", "", "ratio", 0.1),
        ("memory.anonymous > +64 KiB", "memory.anonymous", "", "difference", 65536),
        ("energy > 3mJ", "energy", "", "value", 0.003),
        ("throughput < -5%", "throughput", "", "ratio", -0.05),
        ("tokens_per_s < 20/s", "tokens_per_s", "", "value", 20),
        ("tokens_per_s < 20 tokens/s", "tokens_per_s", "", "value", 20),
        ("fidelity.top1 < 99%", "fidelity.top1", "", "value", 0.99),
        ("fidelity.top1 < .99", "fidelity.top1", "", "value", 0.99),
        ("fidelity.sqnr_db < 30", "fidelity.sqnr_db", "", "value", 30),
        ("fidelity.sqnr_db < -3 dB", "fidelity.sqnr_db", "", "value", -3),
        ("fidelity.kl > 1e-3", "fidelity.kl", "", "value", 0.001),
        ("quality.spearman < -0.01", "quality.spearman", "", "difference", -0.01),
        ("quality.perplexity > +1%", "quality.perplexity", "", "ratio", 0.01),
        ("quality.accuracy < 97.5%", "quality.accuracy", "", "value", 0.975),
        ("quality.my-own.metric > 3", "quality.my-own.metric", "", "value", 3),
    ],
)
def test_what_a_condition_means(
    text: str, metric: str, statistic: str, kind: str, limit: float
) -> None:
    (condition,) = parse(text).conditions
    assert (condition.metric, condition.statistic, condition.kind) == (metric, statistic, kind)
    assert condition.limit == pytest.approx(limit, rel=1e-12)


def test_and_binds_closer_than_or() -> None:
    expression = parse("file > 4MB or load.warm > 1s and first > 2s or energy > 1J")
    assert [[c.metric for c in each] for each in expression.alternatives] == [
        ["file"],
        ["load.warm", "first"],
        ["energy"],
    ]


def test_selectors() -> None:
    (condition,) = parse("latency.p95[int8, mine (2)]@threads=2,device=cpu > 3ms").conditions
    assert condition.subject == "int8, mine (2)"
    assert condition.where == (("threads", "2"), ("device", "cpu"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"the end is no name of a metric; write it as 'latency.p50 > \+5%'"),
        ("   ", "the end is no name"),
        ("> 5", "'> 5' at column 1 is no name"),
        ("latncy.p50 > +5%", r"at column 1 is nothing that is measured; is latency.p50 meant\?"),
        ("latency.p98 > 5ms", "'latency.p98' at column 1 is nothing"),
        ("warmup > 5ms", "'warmup' at column 1 is nothing"),
        ("zzzzzz > 5ms", "is nothing that is measured; there are file, import, load.cold"),
        ("quality. > 5", "'quality' at column 1"),
        ("fidelity.psnr < 3", "fidelity.psnr' at column 1"),
        ("file", "the end stands where >, >=, < or <= is needed"),
        ("file = 4MB", "'= 4MB' at column 6 stands where >, >=, < or <= is needed"),
        ("file > ", "the end stands where a number is needed"),
        ("file > four", "'four' at column 8 stands where a number"),
        ("file > nanMB", "'nanMB' at column 8 stands where a number"),
        ("file > ++4MB", r"'\+\+4MB' at column 8 stands where a number"),
        ("file > 1e999MB", "'1e999' at column 8 is too large a number"),
        ("file > 4mb", "'mb' at column 9 is no unit; there are B, kB"),
        ("file > 4ms", "'4ms' at column 8 has the wrong unit for file; write a limit as '4MB'"),
        ("latency > 4", "'4' at column 11 has no unit; write a limit as '10ms'"),
        ("latency > 5%", r"'5%' at column 11 is a share.* write '\+5%' for a change"),
        ("fidelity.top1 < 99", "'99' at column 17 is more than all; write '99%'"),
        ("fidelity.sqnr_db < +3", r"'\+3' at column 20 is a change.* leave the sign out"),
        ("fidelity.sqnr_db < 3%", "'3%' at column 20 is a share"),
        ("fidelity.top1 < -1%", "is a change"),
        ("file > 4MB or", "the end is no name"),
        ("file > 4MB xor first > 1s", "'xor first > ' at column 12 is neither 'and' nor 'or'"),
        ("file > 4MB, first > 1s", "', first > 1s' at column 11 is neither"),
        ("file > 4MB first > 1s", "'first > 1s' at column 12 is neither"),
        ("file[] > 4MB", r"at column 5 stands where >"),
        ("latency@threads > 4ms", "'@threads > 4' at column 8 stands where >"),
        ("file > 4MB\x00", r"'MB\\x00' at column 9 is no unit"),
        ("file > 4MB\nfile", "'file' at column 12 is neither"),
        ("file > \N{ARABIC-INDIC DIGIT FOUR}MB", "stands where a number is needed"),
        ("x" * 2001, "has 2001 characters, 2000 are allowed"),
    ],
)
def test_the_one_line_for_what_does_not_parse(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("--fail-if") and "\n" not in message and len(message) < 500
    assert caught.value.exit_code == 2


def test_an_error_in_a_later_one_is_found_before_anything_is_measured() -> None:
    assert len(parse_all(["file > 4MB", "first > 1s"])) == 2
    with pytest.raises(UsageError, match="'mistake'"):
        parse_all(["file > 4MB", "mistake"])


NAMES = st.one_of(
    st.sampled_from(
        [
            *(m for m in METRICS if m not in ("warmup", "latency")),
            *(f"latency.{s}" for s in STATISTICS),
            *RATES,
            *(f"fidelity.{f}" for f in FIDELITY),
            "quality.f1",
        ]
    )
)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    name = draw(NAMES)
    room, _, part = name.partition(".")
    metric, statistic = (room, part) if room == "latency" else (name, "")
    unit = {
        **{m: METRICS[m].unit for m in METRICS},
        **RATES,
        **{f"fidelity.{k}": v for k, v in FIDELITY.items()},
    }.get(metric, "")
    kinds = ["value"] if room == "fidelity" else ["value", "ratio", "difference"]
    kind = draw(st.sampled_from(kinds))
    fitting = [u for u, (measures, _) in UNITS.items() if measures == unit]
    if unit in ("", "dB") and kind != "ratio":
        fitting.append("")
    if unit == "" and kind == "value":
        fitting.append("%")
    number = draw(st.floats(0, 1 if metric in SHARES else 1e30, allow_nan=False))
    signed = kind != "value" or (room == "fidelity" and metric not in SHARES)
    given = "%" if kind == "ratio" else draw(st.sampled_from(fitting))
    if (signed and given != "%") or kind == "ratio":
        number = math.copysign(number, draw(st.sampled_from([1, -1])))
    where = draw(st.dictionaries(st.sampled_from(["threads", "device"]), st.sampled_from("a1")))
    return Condition(
        metric,
        statistic,
        draw(st.sampled_from(["<", "<=", ">", ">="])),
        number,
        given,
        kind,  # type: ignore[arg-type]
        draw(st.text(st.characters(exclude_characters="[]"), max_size=9).filter(fits)),
        tuple(where.items()),
    )


def fits(name: str) -> bool:
    return name == "" or not name.isspace()


@settings(max_examples=40)
@given(st.lists(st.lists(conditions(), min_size=1, max_size=3), min_size=1, max_size=3))
def test_what_is_written_is_read_back(alternatives: list[list[Condition]]) -> None:
    expression = Expression("", tuple(map(tuple, alternatives)))
    text = str(expression)
    if len(text) <= LONGEST:
        assert parse(text).alternatives == expression.alternatives


@given(
    st.one_of(
        st.text(max_size=40),
        st.lists(
            st.sampled_from(
                [
                    *"<>=+-%.,[]@ 0123456789e",
                    *UNITS,
                    "latency",
                    "file",
                    "fidelity.top1",
                    "quality.f1",
                    " and ",
                    " or ",
                    "p50",
                    "threads=1",
                    "inf",
                    "nan",
                    "\N{FULLWIDTH DIGIT FOUR}",
                ]
            ),
            max_size=14,
        ).map("".join),
    )
)
def test_any_text_parses_or_gets_one_line(text: str) -> None:
    try:
        expression = parse(text)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert parse(str(expression)).alternatives == expression.alternatives
        assert all(math.isfinite(c.limit) for c in expression.conditions)
