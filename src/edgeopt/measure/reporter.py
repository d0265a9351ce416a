"""How a job says what it is at: what every job is given, and none makes."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Reporter"]


class Reporter(Protocol):
    """Takes word of a job: what it is busy with, should the process die, and how far it is."""

    def busy(self, subject: str, doing: str) -> None: ...

    def progress(self, step: str, fraction: float | None) -> None: ...
