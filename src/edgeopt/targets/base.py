"""What every deliverable has in common: what was asked, who takes it, and the way to a proven file.

A target is a form that is delivered. A verb fills in a :class:`Request`, and :func:`deliver` walks
it through the target that takes it: begin, plan, write, prove, keep what is proven.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol

from edgeopt.core import Change, Plan, Progress, Proof, Source
from edgeopt.errors import SourceError
from edgeopt.targets.asked import Asked
from edgeopt.targets.gguf.options import GgufOptions
from edgeopt.targets.keep import external_over, write_proven
from edgeopt.targets.options import require_meaning

__all__ = ["Job", "Request", "Target", "deliver", "planned", "prove_artifact", "targets"]

#: A module each, which has a ``TARGET``; the first that accepts a request gets it.
_TARGETS = ("gguf", "packed", "onnx")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked of a verb, by the names of its parameters; nothing is decided here.

    See :func:`edgeopt.quantize` and :func:`edgeopt.export`, which say what each means. ``verb`` is
    the one that was called, ``plan`` has been read.
    """

    verb: str
    out: str | Path | None = None
    bits: int | None = None
    to: str | None = None
    data: str | None = None
    inputs: Sequence[str] = ()
    model: str | None = None
    trust_pickle: bool = False
    block_size: int | None = None
    method: str = "auto"
    prefer: str = "balanced"
    target: str = "here"
    plan: Plan | None = None
    half: bool = False
    opset: int | None = None
    external_data: str | int = "auto"
    min_sqnr: float | None = None
    min_same: float | None = None
    force: bool = False
    threads: int = 1
    on: str | None = None
    remote_python: str = "python3"
    text: str | Path | None = None
    chunks: int = 8
    context: int = 512
    gguf: GgufOptions = field(default_factory=GgufOptions)
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.asked()
        external_over(self.external_data)

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
