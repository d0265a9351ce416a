"""Results as CSV (RFC 4180): one line a figure, for a spreadsheet or a script.

``baseline`` and ``verdict`` are filled in lines that compare (their value is the ratio to the
baseline's). ``low`` and ``high`` bound the 95% interval, empty where there is none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from edgeopt.core import Results
from edgeopt.numerics.derive import Derived, Figure

__all__ = ["COLUMNS", "results_csv"]

_CONDITIONS = ("runtime", "device", "threads", "batch", "seq", "workload", "tokens")

COLUMNS = (
    "subject",
    "baseline",
    "metric",
    "statistic",
    *_CONDITIONS,
    "value",
    "low",
    "high",
    "unit",
    "samples",
    "processes",
    "verdict",
)

#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

_FIDELITY = {"sqnr_db": "dB", "cosine": "", "max_abs": "", "top1": "", "kl": "nat"}


def results_csv(results: Results, derived: Derived) -> str:
    """The figures as one CSV text, lines ended by CR LF.

    A name that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    for line in _lines(results, derived):
        writer.writerow({name: _cell(value) for name, value in line.items()})
    return out.getvalue()


def _lines(results: Results, derived: Derived) -> Iterator[dict[str, Any]]:
    for row in derived.rows:
        where = {"subject": row.subject, "metric": row.metric, **_known(row.conditions)}
        for statistic, figure in row.figures.items():
            yield {**where, "statistic": statistic, **_numbers(figure)}
    for contrast in derived.contrasts:
        yield {
            "subject": contrast.subject,
            "baseline": contrast.baseline,
            "metric": contrast.metric,
            "statistic": contrast.statistic,
            **_known(contrast.conditions),
            **_numbers(contrast.ratio),
            "verdict": contrast.verdict,
        }
    for subject, outputs in results.fidelity.items():
        for output in outputs:
            for name, unit in _FIDELITY.items():
                if (value := getattr(output, name)) is not None:
                    yield {
                        "subject": subject,
                        "baseline": results.baseline,
                        "metric": f"fidelity.{name}",
                        "statistic": output.output,
                        "value": value,
                        "unit": unit,
                        "samples": output.samples,
                    }
    for quality in results.quality:
        yield {
            "subject": quality.subject,
            "metric": f"quality.{quality.metric}",
            "statistic": "value",
            "value": quality.value,
            "samples": quality.samples,
        }


def _known(conditions: Mapping[str, Any]) -> dict[str, Any]:
    return {name: conditions.get(name) for name in _CONDITIONS}


def _numbers(figure: Figure) -> dict[str, Any]:
    return {
        name: getattr(figure, name)
        for name in ("value", "low", "high", "unit", "samples", "processes")
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return repr(value)
