"""``edgeopt quantize``: a smaller, faster file, and the proof of what it is worth."""

from __future__ import annotations

from pathlib import Path

from edgeopt.core import Plan, Proof
from edgeopt.files.open import open_source
from edgeopt.options.table import Quantize
from edgeopt.targets.base import deliver, planned, requested
from edgeopt.verbs.calling import asking

__all__ = ["make_plan", "quantize"]


@asking(Quantize)
def quantize(source: str | Path, options: Quantize) -> Proof:
    """Quantize ``source``, write the artifact, and prove the written file.

    Args:
        source: a model file or folder, recognised by content; or a model in memory.
        {options}

    Returns:
        The proof. Where ``proof.proven`` is false and ``force`` was not given, nothing was kept.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    return deliver(open_source(source), requested("quantize", options))


@asking(Quantize)
def make_plan(source: str | Path, options: Quantize) -> Plan:
    """The plan that :func:`quantize` would carry out, which takes the same; nothing is written."""
    plan = planned(open_source(source), requested("quantize", options))
    assert plan is not None  # quantizing always is a choice
    return plan
