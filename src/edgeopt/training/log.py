"""The course of a training as JSON lines, one a record, written as it happens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError, OutputError, SourceError
from edgeopt.files.atomic import writing

__all__ = ["LogRecord", "append", "read", "rewrite"]


@dataclass(frozen=True)
class LogRecord:
    """How the training stood after ``step`` updates.

    ``loss`` and ``parts`` (every loss by itself, unweighted) are means over the updates since the
    last record; ``lr`` and ``grad_norm`` (before clipping) are the last update's. ``metric`` is
    None where nothing was evaluated, ``seconds`` the time spent so far. Step 0 is the start.
    """

    step: int
    epoch: float
    loss: float | None
    parts: Mapping[str, float] = field(default_factory=dict)
    lr: float = 0.0
    grad_norm: float | None = None
    metric: float | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it: what is not finite is null."""
        document = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        return {**document, "parts": {name: _plain(value) for name, value in self.parts.items()}}

    @classmethod
    def from_json(cls, document: Any) -> LogRecord:
        """Raises ValueError for what :meth:`to_json` does not give."""
        if not isinstance(document, dict) or set(document) != set(cls.__dataclass_fields__):
            raise ValueError("is no record of a training")
        numbers = {name: value for name, value in document.items() if name != "parts"}
        parts = document["parts"]
        if not isinstance(parts, dict):
            raise ValueError("parts are no losses by name")
        for name, value in [*numbers.items(), *parts.items()]:
            if value is not None and type(value) not in (int, float):
                raise ValueError(f"{name} is no number")
        nan = {name: math.nan if value is None else value for name, value in parts.items()}
        if any(numbers[name] is None for name in ("step", "epoch", "lr", "seconds")):
            raise ValueError("lacks its place")
        return cls(**numbers, parts=nan)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: LogRecord) -> str:
    return json.dumps(record.to_json(), separators=(",", ":")) + "\n"


def append(path: Path, record: LogRecord) -> None:
    """Add one line. Raises OutputError where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(_line(record))
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}; give another file") from error


def rewrite(path: Path, records: Iterable[LogRecord]) -> None:
    """The log with these records and no others, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text("".join(map(_line, records)), encoding="utf-8")


def read(path: Path) -> tuple[LogRecord, ...]:
    """The records of a log; half a line at its end, of a run that was killed, is left out.

    Raises SourceError where there is no file, FormatError naming the line that is no record.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    records = []
    # What comes after the last line end is nothing, or cut off.
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            records.append(LogRecord.from_json(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise FormatError(path, str(error)[:200], field=f"line {number}") from error
    return tuple(records)
