"""Plans as files: one that was kept beside an artifact, or that somebody wrote, read again."""

from __future__ import annotations

import json
from pathlib import Path

from edgeopt.core import Plan
from edgeopt.errors import UsageError

__all__ = ["read_plan"]


def read_plan(path: str | Path | Plan | None) -> Plan | None:
    """The plan in a file, or itself; UsageError where the file holds none."""
    if path is None or isinstance(path, Plan):
        return path
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--plan {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--plan {path}: not a plan (not JSON: {error})") from error
    try:
        plan = Plan.from_json(document)
        plan.digest()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--plan {path}: not a plan of this edgeopt ({error})") from error
    return plan
