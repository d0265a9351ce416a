"""The machine that choices are made for: this one, or the one that ``--on`` names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgeopt.measure.environment import environment

if TYPE_CHECKING:
    from edgeopt.measure.remote.jobs import RemoteJobs

__all__ = ["connected", "machine"]


@contextmanager
def connected(on: str | None, python: str = "python3") -> Iterator[RemoteJobs | None]:
    """A connection to the machine that ``on`` names, with ONNX Runtime there; None for this one.

    Raises UsageError where ``on`` names none, HostError where it cannot be used.
    """
    if on is None:
        yield None
        return
    from edgeopt.measure.remote.host import connect
    from edgeopt.measure.remote.jobs import RemoteJobs
    from edgeopt.measure.remote.target import parse_target

    with connect(parse_target(on), python=python, runtimes=("onnxruntime",)) as host:
        yield RemoteJobs(host)


def machine(on: RemoteJobs | None, threads: int = 1) -> dict[str, Any]:
    """The machine's environment; of another one, with what ``--on`` calls it."""
    return environment(threads=threads) if on is None else on.environment(threads)
