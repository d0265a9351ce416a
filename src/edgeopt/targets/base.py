"""What every deliverable has in common: what was asked, who takes it, and the way to a proven file.

A target is a form that is delivered. A verb fills in a :class:`Request`, and :func:`deliver` walks
it through the target that takes it: begin, plan, write, prove, keep what is proven.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Protocol

from edgeopt.core import Change, Plan, Proof, Source
from edgeopt.errors import SourceError
from edgeopt.options.kinds import PLAN, TEXT
from edgeopt.options.option import option
from edgeopt.options.table import Export, Quantize, Verify
from edgeopt.targets.asked import Asked
from edgeopt.targets.gguf.options import GgufOptions
from edgeopt.targets.keep import external_over, write_proven
from edgeopt.targets.options import require_meaning
from edgeopt.targets.plans import read_plan

__all__ = [
    "Job",
    "Request",
    "Target",
    "deliver",
    "planned",
    "prove_artifact",
    "requested",
    "targets",
]

#: A module each, which has a ``TARGET``; the first that accepts a request gets it.
_TARGETS = ("gguf", "packed", "onnx")


@dataclass(frozen=True)
class Request(Quantize, Export, Verify):
    """What was asked of a verb; nothing is decided here.

    :mod:`edgeopt.options.table` says what each option means. ``verb`` is the one that was called,
    ``plan`` has been read.
    """

    verb: str = option("", TEXT, None)
    plan: Plan | None = option(None, PLAN, None)

    def __post_init__(self) -> None:
        self.asked()
        external_over(self.external_data)
        if self.verb != "verify":
            self.gguf.check()

    @property
    def gguf(self) -> GgufOptions:
        """What only GGUF knows of it."""
        return GgufOptions(**{f.name: getattr(self, f.name) for f in fields(GgufOptions)})

    def asked(self) -> Asked:
        """The bits and what to prefer, checked; a plan that is replayed has its own."""
        return Asked(
            self.bits or 8,
            self.prefer,
            self.target,
            self.block_size,
            self.min_sqnr,
            self.threads,
            None if self.method == "auto" else self.method,
        )

    def step(self, what: str) -> None:
        """Say what is being done, to whoever listens."""
        if self.progress is not None:
            self.progress(what, None)


def requested(verb: str, options: Quantize | Export | Verify) -> Request:
    """What a verb was called with, its plan read."""
    said = dict(vars(options))
    said["plan"] = read_plan(said.get("plan"))
    return Request(verb=verb, **said)


class Job(Protocol):
    """One request that a target has begun: what was read of the source waits in it."""

    def plan(self) -> Plan | None:
        """What will be done, decided or taken from the request; None where there is no choice."""

    def write(self, plan: Plan | None, path: Path) -> tuple[Change, ...]:
        """Write the artifact to ``path``, a temporary name; one Change a tensor that changed."""

    def prove(
        self, plan: Plan | None, changes: tuple[Change, ...], written: Path, final: Path
    ) -> Proof:
        """Measure the ``written`` file against the source; it will be called ``final``."""


class Target(Protocol):
    """A form that is delivered.

    Attributes:
        form: its name in messages, and in the table of options.
        kinds: what :attr:`edgeopt.core.Source.kind` its artifacts have.
    """

    form: str
    kinds: frozenset[str]

    def accepts(self, source: Source, request: Request) -> bool:
        """Whether this is what is asked for; UsageError where it is and cannot be."""

    def place(self, source: Source, request: Request) -> Path:
        """The artifact's path, checked before any work. OutputError, UsageError."""

    def beside(self, path: Path, request: Request) -> Path | None:
        """The file that may be written beside the artifact, where the form knows one."""

    def begin(self, source: Source, request: Request) -> AbstractContextManager[Job]:
        """Read what planning needs. SourceError, UsageError."""

    def prove(self, source: Source, artifact: Source, request: Request) -> Proof:
        """The proof of any artifact of this form, of edgeopt or of anybody: ``edgeopt verify``."""


def targets() -> Iterator[Target]:
    """All that can be delivered, in the order in which they are asked; imported as they are."""
    for name in _TARGETS:
        yield import_module(f"edgeopt.targets.{name}.target").TARGET


def _chosen(source: Source, request: Request) -> Target:
    target = next(target for target in targets() if target.accepts(source, request))
    require_meaning(target.form, source)
    return target


def planned(source: Source, request: Request) -> Plan | None:
    """The plan that :func:`deliver` would carry out; nothing is written."""
    with _chosen(source, request).begin(source, request) as job:
        return job.plan()


def deliver(source: Source, request: Request) -> Proof:
    """Write the artifact, prove the written file, and keep it if it is proven (or forced)."""
    target = _chosen(source, request)
    path = target.place(source, request)
    beside = target.beside(path, request)
    with target.begin(source, request) as job:
        plan = job.plan()

        def make(temporary: Path) -> Proof:
            changes = job.write(plan, temporary)
            return job.prove(plan, changes, temporary, path)

        sources = (source.path, *source.files)
        return write_proven(path, plan, request.force, make, data=beside, sources=sources)


def prove_artifact(source: Source, artifact: Source, request: Request) -> Proof:
    """The proof of a file that is there already. SourceError where its form is none of ours."""
    for target in targets():
        if artifact.kind in target.kinds:
            require_meaning(target.form, source)
            return target.prove(source, artifact, request)
    raise SourceError(
        f"{artifact.path}: is {artifact.kind}; verify takes an ONNX file, packed safetensors or"
        " GGUF"
    )
