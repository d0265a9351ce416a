"""The log of a training: written line by line, read back, cut off or spoilt."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from edgeopt.errors import FormatError, OutputError, SourceError
from edgeopt.training.log import LogRecord, append, read, rewrite

floats = st.floats(allow_nan=False, allow_infinity=False)
records = st.builds(
    LogRecord,
    step=st.integers(0, 10**6),
    epoch=floats,
    loss=st.none() | floats,
    parts=st.dictionaries(st.sampled_from(["hard", "soft 2"]), floats),
    lr=floats,
    grad_norm=st.none() | floats,
    metric=st.none() | floats,
    seconds=floats,
)


@settings(max_examples=30)
@given(records)
def test_a_record_comes_back_as_it_was(record: LogRecord) -> None:
    assert LogRecord.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False))) == record


def test_half_a_line_at_the_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    some = [LogRecord(step, step / 2, 1.0 / (step + 1)) for step in range(3)]
    rewrite(path, some[:1])
    for record in some[1:]:
        append(path, record)
    assert read(path) == tuple(some)
    whole = path.read_bytes()
    for cut in (*range(0, len(whole), 13), len(whole) - 1, len(whole)):
        path.write_bytes(whole[:cut])
        assert read(path) == tuple(some[: whole[:cut].count(b"\n")])


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append(path, LogRecord(1, 0.1, math.nan, {"hard": math.inf}, metric=math.nan))
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    (back,) = read(path)
    assert back.loss is None and back.metric is None and math.isnan(back.parts["hard"])


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '{"step": 1}', "[" * 5000])
def test_a_spoilt_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    append(path, LogRecord(0, 0.0, None))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(FormatError, match="line 2"):
        read(path)


@pytest.mark.parametrize(
    ("field", "value"), [("step", None), ("loss", "high"), ("parts", [1]), ("lr", True)]
)
def test_a_record_of_other_kinds_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"number|losses|place"):
        LogRecord.from_json({**LogRecord(0, 0.0, None).to_json(), field: value})


def test_no_file_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing"):
        read(tmp_path / "nothing")
    with pytest.raises(OutputError, match="another file"):
        append(tmp_path / "no" / "log", LogRecord(0, 0.0, None))
