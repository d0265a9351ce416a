"""Where a benchmark runs: here, or on the machine that ``--on`` names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from edgeopt.core import Progress
from edgeopt.measure.bench import Bench, run_bench
from edgeopt.measure.environment import environment
from edgeopt.measure.trial import BenchSettings, Trial
from edgeopt.runtimes.devices import resolve

__all__ = ["BenchMachine", "place"]


class BenchMachine(Protocol):
    """A machine that trials run on."""

    def resolve(self, device: str, runtime: str) -> str:
        """The device that ``--device`` means for a runtime. Raises UsageError for one that is not
        there, HostError where the runtime is not."""

    def environment(self, *, threads: int = 1) -> dict[str, Any]:
        """The machine, as it says of itself."""

    def run(
        self,
        trials: Sequence[Trial],
        settings: BenchSettings,
        *,
        progress: Progress | None = None,
        on_round: Callable[[Bench], None] | None = None,
    ) -> Bench:
        """As :func:`edgeopt.measure.bench.run_bench`."""


class _Here:
    resolve = staticmethod(resolve)
    environment = staticmethod(environment)
    run = staticmethod(run_bench)


@contextmanager
def place(on: str | None, python: str = "python3") -> Iterator[BenchMachine]:
    """This machine, or a connection to the one that ``on`` names, for as long as it is needed.

    Raises UsageError where ``on`` names none, HostError where it cannot be used.
    """
    if on is None:
        yield _Here()
        return
    from edgeopt.measure.remote.bench import RemoteBench
    from edgeopt.measure.remote.host import connect
    from edgeopt.measure.remote.target import parse_target

    with connect(parse_target(on), python=python) as host:
        yield RemoteBench(host)
