"""Numbers in words: what is read back is the number, within what its digits can say."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.report.numbers import (
    SHAPES,
    Said,
    exactly,
    number,
    plain,
    pointer,
    printable,
    quantity,
    scale_of,
    shorten,
    span,
)

FACTORS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "": 1.0}
FACTORS |= {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9, "dB": 1.0, "x": 1.0, "%": 1.0}


def read(text: str) -> tuple[float, float]:
    """(number, half of its last digit)."""
    found = re.fullmatch(r"(-?[\d,]*\.?\d+) ?([^\d ]*)", text)
    assert found, text
    digits = found[1].replace(",", "")
    factor = FACTORS[found[2]]
    return float(digits) * factor, 0.5 * factor * 10.0 ** -len(digits.partition(".")[2])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0041, "s", "4.10 ms"),
        (0.9996, "s", "1.00 s"),
        (83e-6, "s", "83.0 µs"),
        (0.0, "s", "0 s"),
        (812, "B", "812 B"),
        (23_104_512, "B", "23.1 MB"),
        (999_600, "B", "1.00 MB"),
        (1226.77, "", "1,227"),
        (9.996, "", "10.0"),
        (31.24, "dB", "31.2 dB"),
        (-3.2, "dB", "-3.20 dB"),
        (math.inf, "dB", "∞"),
        (-math.inf, "dB", "-∞"),
        (math.nan, "s", "not a number"),
    ],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


@given(st.floats(1e-9, 1e9), st.sampled_from(["s", "dB", ""]))
def test_a_quantity_reads_back(value: float, unit: str) -> None:
    back, half = read(quantity(value, unit))
    assert abs(back - value) <= half * (1 + 1e-9)
    assert half <= 0.006 * value or unit != "" or value < 1


@given(st.integers(0, 10**14))
def test_bytes_read_back(value: int) -> None:
    back, half = read(quantity(value, "B"))
    assert abs(back - value) <= half * (1 + 1e-9)
    assert read(exactly(value, "B")) == (value, 0.5)


@given(st.floats(1e-3, 1e3))
def test_factors_read_back_either_way_round(value: float) -> None:
    for shape in ("value", "inverse"):
        back, half = read(number(value, "", "ratio", shape).text)
        assert abs(back - SHAPES[shape](value)) <= half * (1 + 1e-9)


@given(st.floats(0, 1))
def test_a_share_is_never_rounded_up(share: float) -> None:
    text = number(share, "", "", "percent").text
    back, half = read(text)
    assert -1e-9 <= 100 * share - back < 2 * half + 1e-9
    assert (text == "100%") == (share == 1)


def test_an_error_in_decibels_is_a_share_of_the_signal() -> None:
    assert number(20.0, "", "", "amplitude").text == "10%"
    assert number(40.0, "", "", "amplitude").text == "1.0%"


def test_a_span_says_its_unit_once() -> None:
    phrase = span(0.00409, 0.00413, "/low", "/high", "s")
    assert plain(phrase) == "4.09 to 4.13 ms"
    low, _, high, _ = phrase
    assert not isinstance(low, str) and not isinstance(high, str)
    assert float(low.text) * low.scale == pytest.approx(low.value)
    assert (low.key, high.key) == ("/low", "/high")


def test_pointers_escape_as_rfc_6901_says() -> None:
    assert pointer("a/b", "m~n", 0) == "/a~1b/m~0n/0"


@given(st.text(), st.integers(4, 40))
def test_a_name_is_cut_to_its_width(name: str, width: int) -> None:
    short = shorten(name, width)
    assert len(short) <= width
    assert short.isprintable()
    if len(printable(name)) > width:
        head, tail = short.split("…", 1) if "…" not in printable(name) else ("", "")
        assert printable(name).startswith(head) and printable(name).endswith(tail)


def test_scale_of_what_has_none() -> None:
    assert scale_of(5.0, "tokens/s") == (1.0, "tokens/s")
    assert scale_of(0.0, "s") == (1.0, "s")


def test_said_words_are_words() -> None:
    assert plain((Said("int8"), " at ", number(2.0, "", "s"))) == "int8 at 2.00 s"
