"""Every error a user can meet, with the exit code it gives on the command line.

::

    EdgeoptError                      1
    +-- UsageError                    2   an option that cannot be honoured
    |   +-- CallError                 2   a wrong call from Python; a TypeError too
    +-- SourceError                   2   the input cannot be used
    |   +-- FormatError               2   a file that breaks its format (file, field, offset)
    |   +-- UnsafeError               2   loading it would run code: needs the user's word
    |   +-- CaptureError              2   the model could not be turned into a graph
    |   +-- InputsError               2   example inputs are missing or do not fit the model
    +-- OutputError                   2   the result cannot be written where it was asked
    +-- HostError                     2   another machine cannot be reached, or lacks something
    +-- MissingExtraError             2   an optional package is not installed
    +-- WorkerError                   3   a worker process died or gave no answer
    +-- ProofFailed                   3   the artifact was made, and is not worth having
    +-- GateFailed                    4   what --fail-if asked about did happen

A message is one line: the value met, the limit it broke, and what to do about it.
"""

from __future__ import annotations

import os

__all__ = [
    "CallError",
    "CaptureError",
    "EdgeoptError",
    "FormatError",
    "GateFailed",
    "HostError",
    "InputsError",
    "MissingExtraError",
    "OutputError",
    "ProofFailed",
    "SourceError",
    "UnsafeError",
    "UsageError",
    "WorkerError",
    "install_line",
]


class EdgeoptError(Exception):
    """Base of every error that edgeopt raises on purpose."""

    exit_code = 1


class UsageError(EdgeoptError):
    """An option, or a pair of options, that cannot be honoured."""

    exit_code = 2


class CallError(UsageError, TypeError):
    """A function was called with a keyword that it does not have, or with a value of a kind that it
    does not take: what Python itself calls a TypeError."""


class SourceError(EdgeoptError):
    """The source cannot be used: missing, empty, of no known kind, or with nothing to work on."""

    exit_code = 2


class FormatError(SourceError):
    """A file that breaks the rules of its own format.

    ``field`` names the part of the format, ``offset`` the byte where it stands (when known).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        problem: str,
        *,
        field: str | None = None,
        offset: int | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.problem = problem
        self.field = field
        self.offset = offset
        where = ""
        if field is not None:
            where += f", {field}"
        if offset is not None:
            where += f" at byte {offset}"
        super().__init__(f"{self.path}{where}: {problem}")


class UnsafeError(SourceError):
    """Loading the file would run code that it carries, and nobody has allowed that."""


class CaptureError(SourceError):
    """The model could not be turned into an ONNX graph; carries the exporter's reason."""


class InputsError(SourceError):
    """Example inputs are missing, or do not fit the model's names, shapes or dtypes."""


class OutputError(EdgeoptError):
    """The result cannot be written: folder missing, read-only, disk full, or it is the source."""

    exit_code = 2


class HostError(EdgeoptError):
    """Another machine cannot be used: unreachable, not trusted, or without what is needed there."""

    exit_code = 2


class MissingExtraError(EdgeoptError):
    """An optional package is needed and not installed; says which extra brings it."""

    exit_code = 2

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: {install_line(extra)}")


def install_line(extra: str) -> str:
    """What installs an extra from where edgeopt itself came: a folder or a repository as pip noted
    it (PEP 610), else its name."""
    import json
    import shlex
    from importlib.metadata import PackageNotFoundError, distribution
    from pathlib import Path
    from urllib.parse import unquote, urlsplit

    try:
        noted = json.loads(distribution("edgeopt").read_text("direct_url.json") or "{}")
        url, vcs = str(noted.get("url", "")), noted.get("vcs_info", {}).get("vcs")
    except (PackageNotFoundError, ValueError, AttributeError):
        url, vcs = "", None
    path = unquote(urlsplit(url).path) if url.startswith("file:") else ""
    if vcs:
        what = f"edgeopt[{extra}] @ {vcs}+{url}"
    elif path and Path(path).exists():
        what = f"{path}[{extra}]"
    else:
        what = f"edgeopt[{extra}]"
    quoted = shlex.quote(what)
    return f"pip install {quoted}"


class WorkerError(EdgeoptError):
    """A worker process died (with its signal) or gave no answer in time."""

    exit_code = 3


class ProofFailed(EdgeoptError):
    """The artifact did not pass the proof: says which check failed and what to try."""

    exit_code = 3


class GateFailed(EdgeoptError):
    """A condition given with ``--fail-if`` holds: says which, and what was found."""

    exit_code = 4
