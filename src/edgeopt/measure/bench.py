"""Benchmark artifacts side by side, in fresh worker processes that take turns.

A *trial* is one artifact under one set of conditions. Trials under equal conditions run together:
in every process round each gets a fresh worker, loads alone, and then all take turns in blocks of
20 ms, forwards and backwards (A B B A), so that what the machine does meanwhile falls on all alike
(google/benchmark found random interleaving to cut the variance by 40%). On a noisy virtual machine
the ratio of two copies scattered by 0.7 to 2% between processes with turns of 100 ms, and by 0.2 to
0.6% with these, in the same time. Cold loads have workers of their own.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeopt.core import Measurement, Progress, Unavailable
from edgeopt.measure.activity import between, snapshot
from edgeopt.measure.probe import without_repacking
from edgeopt.measure.relay import Runner, SubjectError, runner
from edgeopt.measure.samples import RawSamples
from edgeopt.measure.sysfiles import kilobytes
from edgeopt.measure.trial import BenchSettings, Trial, write_job

__all__ = ["Bench", "BenchSettings", "Trial", "run_bench"]


#: Bytes that a loaded artifact takes for each byte of its files: the weights, copies in the layout
#: that kernels like, activations.
_MEMORY_PER_BYTE = 2.0


@dataclass(frozen=True)
class Bench:
    """What was measured. ``info`` is what the runtime did, and ``failures`` why a subject's
    measuring stopped, by subject; what it had given until then is among the measurements.
    ``activity`` is what the machine did meanwhile."""

    measurements: tuple[Measurement, ...]
    unavailable: tuple[Unavailable, ...]
    info: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, str]
    warnings: tuple[str, ...]
    activity: Mapping[str, Any] = field(default_factory=dict)


def run_bench(
    trials: Sequence[Trial],
    settings: BenchSettings,
    *,
    progress: Progress | None = None,
    on_round: Callable[[Bench], None] | None = None,
) -> Bench:
    """Measure every trial. ``on_round`` gets what there is after each process round.

    A subject that fails is left out of what follows, and named in ``failures``; the others go on.
    Raises InputsError for a feed that is no array of numbers, OutputError where temporary files
    cannot be written.
    """
    if settings.memory is None:
        available = kilobytes(Path("/proc/meminfo")).get("MemAvailable")
        settings = replace(settings, memory=available)
    trials, warnings = without_repacking(trials, settings)
    session = _Session(tuple(trials), settings, progress, warnings)
    from edgeopt.files import leftovers  # not there on a machine that is measured on

    leftovers.clear(Path(tempfile.gettempdir()), "edgeopt-")
    with tempfile.TemporaryDirectory(
        prefix=f"edgeopt-{leftovers.owned_name()}-", ignore_cleanup_errors=True
    ) as name:
        folder = Path(name).resolve()
        jobs = {id(trial): write_job(trial, folder, i) for i, trial in enumerate(trials)}
        session.steps = settings.processes * len(session.groups)
        for process in range(settings.processes):
            for group in session.groups.values():
                for part in session.alive_together(group, process):
                    session.round(part, jobs, process)
                session.done += 1
                session.latest = snapshot()
                if on_round is not None:
                    on_round(session.result())
    return session.result()


class _Session:
    """The state of one benchmark: what was taken, who failed, how far it is."""

    def __init__(
        self,
        trials: tuple[Trial, ...],
        settings: BenchSettings,
        progress: Progress | None,
        warnings: Sequence[str],
    ) -> None:
        self.trials = trials
        self.settings = settings
        self.progress = progress
        self.warnings = tuple(warnings)
        self.began = self.latest = snapshot()
        self.taken = {id(trial): RawSamples(trial.subject, trial.conditions) for trial in trials}
        self.failures: dict[str, str] = {}
        self.info: dict[str, dict[str, Any]] = {}
        self.pinning: dict[str, dict[str, str]] = {}
        #: What there is to mind of what runtimes and workers did, each once.
        self.notes: dict[str, None] = {}
        self.steps = 1
        self.done = 0
        self.groups: dict[str, list[Trial]] = {}
        for trial in trials:
            self.groups.setdefault(trial.group, []).append(trial)
        first: dict[str, Trial] = {}
        for trial in trials:
            first.setdefault(trial.subject, trial)
        #: Opening a file does not depend on threads or batch: one trial a subject does it cold.
        self.cold = {id(trial) for trial in first.values()} if settings.cold else set()

    def result(self) -> Bench:
        measurements: list[Measurement] = []
        unavailable: list[Unavailable] = []
        warnings = [*self.warnings, *self.notes]
        for trial in self.trials:
            taken = self.taken[id(trial)]
            together = not self._too_large(self.groups[trial.group])
            measurements.extend(
                # Turns of processes that did not live together are no pairs.
                m if together else replace(m, blocks=())
                for m in taken.measurements()
            )
            unavailable.extend(taken.unavailable())
            warnings.extend(taken.warnings())
        if any(map(self._too_large, self.groups.values())):
            warnings.append(
                "the artifacts do not fit in memory together and were measured one at a time: "
                "what the machine did meanwhile may have fallen on one of them"
            )
        return Bench(
            tuple(measurements),
            tuple(dict.fromkeys(unavailable)),
            dict(self.info),
            dict(self.failures),
            tuple(dict.fromkeys(warnings)),
            between(self.began, self.latest).to_json(),
        )

    def alive_together(self, group: Sequence[Trial], process: int) -> list[Sequence[Trial]]:
        """The group whole, or its trials one by one where memory does not hold all of them."""
        if not self._too_large(group):
            return [group]
        ordered = group if process % 2 == 0 else reversed(group)
        return [[trial] for trial in ordered]

    def _too_large(self, group: Sequence[Trial]) -> bool:
        limit = self.settings.memory
        if limit is None or len(group) == 1:
            return False
        sizes = (file.stat().st_size for t in group for file in t.case.files if file.is_file())
        return _MEMORY_PER_BYTE * sum(sizes) > limit

    def round(self, group: Sequence[Trial], jobs: Mapping[int, Path], process: int) -> None:
        """One process round of one group: every trial a fresh worker, then turns."""
        order = list(group) if process % 2 == 0 else list(reversed(group))
        with ExitStack() as stack:
            live: list[tuple[Trial, Runner]] = []
            for trial in order:
                if trial.subject in self.failures:
                    continue
                with self._failing():
                    if id(trial) in self.cold:
                        self._say(f"{trial.subject}: cold load", process)
                        self._cold(trial, jobs[id(trial)])
                    self._say(f"{trial.subject}: loading", process)
                    worker = stack.enter_context(
                        runner(trial.subject, jobs[id(trial)], self.settings.silence)
                    )
                    if self._warm(trial, worker):
                        live.append((trial, worker))
            self._turns(live, process)
            for trial, worker in live:
                if trial.subject not in self.failures:
                    with self._failing():
                        self._memory(trial, worker)

    def _cold(self, trial: Trial, job: Path) -> None:
        with runner(trial.subject, job, self.settings.silence) as worker:
            worker.ask("imports", pin=self.settings.pin)
            found = worker.ask("load", cold=True)
        self.taken[id(trial)].cold(found["seconds"], found["verified"], found["reason"])

    def _warm(self, trial: Trial, worker: Runner) -> bool:
        """Import, load, first inference; whether there is more to run."""
        taken = self.taken[id(trial)]
        imported = worker.ask("imports", pin=self.settings.pin)
        taken.add("import", imported["seconds"])
        self._pinned(trial, imported["pinned"])
        loaded = worker.ask("load", cold=False)
        taken.add("load.warm", loaded["seconds"])
        if not loaded["repeats"]:
            self._memory(trial, worker)
            return False
        taken.add("first", worker.ask("first")["seconds"])
        return True

    def _turns(self, live: Sequence[tuple[Trial, Runner]], process: int) -> None:
        settings = self.settings
        target = settings.seconds / settings.processes
        turn = settings.turn
        if any(trial.case.device != "cpu" for trial, _ in live):
            turn = max(turn, _DEVICE_TURN)
        limit = max(1, math.ceil(settings.samples * turn / max(target, turn)))
        spent = {id(trial): 0.0 for trial, _ in live}
        for trial, _ in live:
            self.taken[id(trial)].begin_turns()
        forward = True
        turns = 0
        while live and not (turns >= _FEWEST_TURNS and self._enough(live, spent, target)):
            for trial, worker in live if forward else reversed(live):
                if trial.subject in self.failures:
                    continue
                with self._failing():
                    answer = worker.ask("turn", seconds=turn, limit=limit, energy=settings.energy)
                    self.taken[id(trial)].turn(answer)
                    spent[id(trial)] += answer["seconds"]
            live = [pair for pair in live if pair[0].subject not in self.failures]
            forward = not forward
            turns += 1
            if live:
                share = min(spent[id(trial)] / max(target, 1e-9) for trial, _ in live)
                self._say("timing " + ", ".join(t.subject for t, _ in live), process, share)

    @staticmethod
    def _enough(
        live: Sequence[tuple[Trial, Runner]], spent: Mapping[int, float], target: float
    ) -> bool:
        """All have had their time; or, where a turn of some takes far longer than that of others,
        all together a multiple of it."""
        times = [spent[id(trial)] for trial, _ in live]
        return min(times, default=0.0) >= target or sum(times) >= _OVERTIME * target * len(times)

    def _memory(self, trial: Trial, worker: Runner) -> None:
        answer = worker.ask("memory")
        self.taken[id(trial)].memory(answer["memory"])
        info = dict(answer["info"])
        self.info[trial.subject] = {**info, "pinning": self.pinning[trial.subject]}
        if fallback := info.get("fallback"):
            listed = ", ".join(f"{name or 'unnamed'} ({operator})" for name, operator in fallback)
            self.notes[
                f"{trial.subject}: {len(fallback)} nodes stayed on the CPU: {_cut(listed)}"
            ] = None

    def _pinned(self, trial: Trial, pinned: Mapping[str, Any] | None) -> None:
        """How a worker's threads were kept in place, by number of threads; said where they were
        not."""
        how = str(pinned["how"]) if pinned else "not asked to be"
        self.pinning.setdefault(trial.subject, {})[str(trial.case.threads)] = how
        if pinned and not pinned["pinned"]:
            self.notes[f"threads {how}"] = None

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What ends a subject's measuring ends no other's."""
        try:
            yield
        except SubjectError as problem:
            self.failures[problem.subject] = str(problem.error)

    def _say(self, step: str, process: int, share: float = 0.0) -> None:
        if self.progress is not None:
            text = f"process {process + 1} of {self.settings.processes}, {step}:"
            self.progress(text, min(1.0, (self.done + min(1.0, share)) / self.steps))


def _cut(listed: str) -> str:
    """A list of nodes that fits a line or three; all of them are in the document."""
    return listed if len(listed) <= _LISTED else f"{listed[:_LISTED]}..."


#: Characters of the nodes that a warning lists.
_LISTED = 200

#: Seconds of a turn on a GPU at least: its energy counter moves about every 0.1 s.
_DEVICE_TURN = 0.1

#: Turns that every trial gets in any case: one A B B A.
_FEWEST_TURNS = 2

#: How many times its time a round may take so that the quick ones have theirs.
_OVERTIME = 3.0
