from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.core import InputSpec
from edgeopt.data.inputspec import INPUT_DTYPES, parse_input, parse_inputs
from edgeopt.errors import UsageError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("x:float32[1,3,224,224]", InputSpec("x", "float32", (1, 3, 224, 224))),
        ("ids: int64[ batch, seq ]", InputSpec("ids", "int64", ("batch", "seq"))),
        ("float[1,28,28]", InputSpec("input", "float32", (1, 28, 28))),
        ("t:float32[]", InputSpec("t", "float32", ())),
        ("serving_default/x:0:float32[2]", InputSpec("serving_default/x:0", "float32", (2,))),
    ],
)
def test_forms(text, spec):
    assert parse_input(text) == spec


@pytest.mark.no_cover  # the other tests cover it; nearly all the time is hypothesis' own
@settings(max_examples=30)
@given(
    st.from_regex(r"[a-zA-Z_][\w.]{0,8}", fullmatch=True),
    st.sampled_from(INPUT_DTYPES),
    st.lists(st.integers(1, 10**6) | st.from_regex(r"[a-z]\w{0,4}", fullmatch=True)),
)
def test_what_str_writes_is_read_back(name, dtype, shape):
    spec = InputSpec(name, dtype, tuple(shape))
    assert parse_input(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no dtype"),
        ("x", "has no dtype"),
        ("x:1,3,224,224", "has no dtype"),
        ("x:float32", "has no dtype"),
        ("x:float32[1,3", "has no dtype"),
        ("x:float33[1]", "'float33'"),
        ("x:float32[0]", "dimension '0'"),
        ("x:float32[-1,3]", "dimension '-1'"),
        ("x:float32[1,,3]", "dimension ''"),
        ("x:float32[1.5]", "dimension '1.5'"),
        ("x:float32[99999999999]", "dimension '99999999999'"),
    ],
)
def test_refusals_are_one_line_with_the_remedy(text, says):
    with pytest.raises(UsageError, match=says) as caught:
        parse_input(text)
    assert "\n" not in str(caught.value)


def test_names_are_given_once():
    assert [s.name for s in parse_inputs(["a:float32[1]", "b:int64[1]"])] == ["a", "b"]
    with pytest.raises(UsageError, match="'a' twice"):
        parse_inputs(["a:float32[1]", "a:int64[1]"])
