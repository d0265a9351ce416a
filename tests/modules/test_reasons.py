from __future__ import annotations

import pytest

from edgeopt.modules.reasons import attempt, is_data_dependent, one_line


def test_the_deepest_cause_is_quoted_in_one_line():
    try:
        try:
            raise ValueError("Cannot view a tensor\nwith many\nlines")
        except ValueError as inner:
            raise RuntimeError("Failed to export.\n## What to do\n- Please report") from inner
    except RuntimeError as error:
        assert one_line(error) == "ValueError: Cannot view a tensor"


def test_a_long_reason_is_cut_and_an_empty_one_is_named():
    assert len(one_line(ValueError("must " + "x" * 900))) == 220
    assert one_line(KeyError()) == "KeyError"


def test_data_dependence_is_found_along_the_chain():
    inner = RuntimeError("Could not guard on data-dependent expression u0 > 0")
    outer = RuntimeError("failed")
    outer.__cause__ = inner
    assert is_data_dependent(outer)
    assert not is_data_dependent(RuntimeError("Unsupported operator"))


def test_attempt_passes_interrupts_and_memory_errors():
    def give(error):
        raise error

    assert attempt(lambda: 3) == (3, None)
    value, error = attempt(lambda: give(KeyError("k")))
    assert value is None and isinstance(error, KeyError)
    for passing in (MemoryError(), KeyboardInterrupt()):
        with pytest.raises(type(passing)):
            attempt(lambda passing=passing: give(passing))
