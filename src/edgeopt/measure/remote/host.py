"""Our side of another machine: connect, send the runner and files, ask, and leave nothing behind.

One connection carries everything. Whoever holds a :class:`Host` sleeps while the other machine
works.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeAlias

from edgeopt.core import Progress, format_bytes
from edgeopt.errors import HostError, OutputError, SourceError, WorkerError
from edgeopt.files.sniff import FORMATS
from edgeopt.measure.child import rebuilt
from edgeopt.measure.remote import boot, link
from edgeopt.measure.remote.bundle import make_bundle
from edgeopt.measure.remote.keeper import SLOWEST
from edgeopt.measure.remote.link import Link
from edgeopt.measure.remote.target import RemoteTarget
from edgeopt.measure.remote.transport import Transport, open_transport
from edgeopt.runtimes.engine import ENGINES

__all__ = ["ENTRIES", "PACKAGES", "Host", "connect"]

#: The packages that a runtime is, where it runs: what is imported -> what pip installs.
PACKAGES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "onnxruntime": (("numpy", "numpy"), ("onnxruntime", "onnxruntime")),
    "llama.cpp": (("numpy", "numpy"), ("llama_cpp", "llama-cpp-python")),
    "weights": (("numpy", "numpy"),),
}

#: What the runner begins with there; the rest is what these import.
ENTRIES = (
    "edgeopt.measure.remote.keeper",
    "edgeopt.measure.worker",
    "edgeopt.measure.bench_worker",
    *(ENGINES[runtime].partition(":")[0] for runtime in PACKAGES),
    # What is imported by name only: the front door of weights files, and their formats.
    "edgeopt.files.weights",
    *(row.module for row in FORMATS),
)

#: Seconds for the first word: a small board's Python takes its time.
_HELLO = 60.0

#: Bytes that must stay free on the other machine beside what is sent: jobs, logs, samples.
_SPARE = 32 << 20

_CHUNK = 1 << 20

#: Runs what comes on the first line; what a Python too old for it answers, it can parse itself.
_COMMAND = (
    "import json,sys;"
    "sys.path[:]=[p for p in sys.path if p];"
    "a=json.loads(sys.stdin.buffer.readline().decode());"
    'exec(a["source"] if sys.version_info>=(3,10) else a["old"])'
)
_OLD = (
    'print("edgeopt "+json.dumps({"old":".".join(map(str,sys.version_info[:3])),'
    '"executable":sys.executable}))'
)
_START = """
import os
# What anything prints goes to the log: the pipe carries messages alone.
_pipe = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
boot(a, sys.stdin.buffer, _pipe)
"""

_OnPart: TypeAlias = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class _Facts:
    """What the other machine said of itself."""

    folder: str
    python: str
    executable: str
    machine: str
    packages: Mapping[str, str | None]
    free: int


class Host:
    """A machine we are connected to, with a folder of ours on it. Made by :func:`connect`."""

    def __init__(self, transport: Transport, python: str, log: IO[bytes]) -> None:
        self.target = transport.target
        self.facts = _Facts("", "", "", "", {}, 0)
        command = f"exec {_quote(python)} -u -c {shlex.quote(_COMMAND)}"
        self._link = Link(transport, python, command, log)
        self._sent: dict[str, tuple[str, tuple[int, int]]] = {}

    def open(self) -> None:
        """Hear what the machine is, and send it the runner."""
        bundle = make_bundle(ENTRIES)
        packages = dict(pair for pairs in PACKAGES.values() for pair in pairs)
        source = Path(boot.__file__).read_text(encoding="utf-8") + _START
        first = {
            "source": source,
            "old": _OLD,
            "folder": self.target.folder,
            "packages": packages,
            "size": len(bundle.data),
            "sha256": bundle.sha256,
            "main": ENTRIES[0],
        }
        self._link.send(first)
        hello = self._link.read("connecting", _HELLO)
        if "old" in hello:
            raise HostError(
                f"{self.target}: {hello['executable']} is Python {hello['old']}, the runner needs"
                " 3.10; name another with --remote-python PATH"
            )
        if "problem" in hello:
            raise HostError(
                f"{self.target}: no folder for the files ({hello['problem']}); name one it can"
                " write to, as ssh://user@host/folder"
            )
        self.facts = _Facts(**{name: hello[name] for name in _Facts.__dataclass_fields__})
        self._link.folder = self.facts.folder
        with self._link.sending() as write:
            write(bundle.data)
        self._answer("starting the runner", _HELLO)
        self._link.beat()

    def close(self) -> bool:
        """End the connection; whether the folder on the other machine is known to be gone."""
        return self._link.close()

    # -- files --------------------------------------------------------------------------------

    def need(self, runtimes: Iterable[str]) -> None:
        """Raise HostError where a runtime's packages are not installed there."""
        wanted = [pair for runtime in runtimes for pair in PACKAGES[runtime]]
        missing = [dist for name, dist in wanted if not self.facts.packages.get(name)]
        if missing:
            names = list(dict.fromkeys(missing))
            there = self.facts.executable
            raise HostError(
                f"{self.target}: its Python ({there}) has no {' and no '.join(names)}; there:"
                f" {shlex.quote(there)} -m pip install {' '.join(names)}, or name another with"
                " --remote-python PATH"
            )

    def room(self, nbytes: int) -> None:
        """Raise OutputError where that many bytes more do not fit there."""
        if nbytes + _SPARE > self.facts.free:
            place = self.facts.folder.rpartition("/")[0] or "/"
            raise OutputError(
                f"{self.target}: {format_bytes(nbytes + _SPARE)} are needed in {place}, which has"
                f" {format_bytes(self.facts.free)} free; free some, or name another folder, as"
                " ssh://user@host/folder"
            )

    def put(
        self, files: Mapping[str, Path], progress: Progress | None = None, *, instead_of: str = ""
    ) -> dict[str, str]:
        """Send files to the names they get in the folder there; name -> full path there.

        What is there already is not sent again. Where room is short, other files whose names begin
        with ``instead_of`` go first. Raises OutputError where it does not fit or cannot be
        written, SourceError where a file cannot be read.
        """
        try:
            stats = {name: path.stat() for name, path in files.items()}
        except OSError as error:
            raise SourceError(f"{error.filename}: {error.strerror}; it cannot be sent") from None
        seals = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
        new = [name for name in files if self._sent.get(name, ("", None))[1] != seals[name]]
        total = sum(stats[name].st_size for name in new)
        if instead_of and total + _SPARE > self.facts.free:
            self.drop([n for n in self._sent if n.startswith(instead_of) and n not in files])
        self.room(total)
        sent = 0
        for name in new:
            if progress is not None:
                progress(f"sending to {self.target.host}", sent / total if total else None)
            there = self._send(name, files[name], stats[name].st_size, progress, sent, total)
            self._sent[name] = (there, seals[name])
            sent += stats[name].st_size
        return {name: self._sent[name][0] for name in files}

    def drop(self, names: Iterable[str]) -> None:
        """Remove files from the folder there."""
        gone = [name for name in names if self._sent.pop(name, None)]
        if gone:
            answer = self.ask({"do": "drop", "names": gone}, "removing files")
            self.facts = replace(self.facts, free=answer["free"])

    def _send(
        self, name: str, path: Path, size: int, progress: Progress | None, before: int, total: int
    ) -> str:
        """Send one file; where it is there."""
        digest = hashlib.sha256()
        left = size
        with self._link.sending() as write, path.open("rb", buffering=0) as stream:
            write(_line({"do": "put", "name": name, "size": size}))
            while left:
                chunk = stream.read(min(_CHUNK, left))
                if not chunk:
                    self._link.abandon()
                    raise SourceError(f"{path}: it became shorter while it was sent; try again")
                digest.update(chunk)
                write(chunk)
                left -= len(chunk)
                if progress is not None:
                    done = before + size - left
                    progress(f"sending to {self.target.host}", done / total)
            write(_line({"sha256": digest.hexdigest()}))
        try:
            answer = self._answer(f"taking {path.name}", link.GONE + size / SLOWEST)
        except OutputError as error:
            place = self.facts.folder.rpartition("/")[0] or "/"
            raise OutputError(
                f"{self.target}: {path.name} cannot be written in {place} ({error}); free some"
                " space, or name another folder, as ssh://user@host/folder"
            ) from None
        self.facts = replace(self.facts, free=answer["free"])
        return str(answer["path"])

    # -- requests -----------------------------------------------------------------------------

    def ask(
        self,
        request: Mapping[str, Any],
        doing: str,
        progress: Progress | None = None,
        on_part: _OnPart | None = None,
    ) -> Any:
        """The result of a request, its parts to ``on_part`` as they come; raises what it raised
        there, WorkerError where the machine or the connection is lost meanwhile."""
        self._link.send(dict(request))
        return self._answer(doing, progress=progress, on_part=on_part)

    def environment(self, threads: int = 1) -> dict[str, Any]:
        """The machine, as its own :func:`edgeopt.measure.environment.environment` says."""
        found = self.ask({"do": "environment", "threads": threads}, "describing the machine")
        return dict(found)

    def _answer(
        self,
        doing: str,
        patience: float | None = None,
        progress: Progress | None = None,
        on_part: _OnPart | None = None,
    ) -> Any:
        while True:
            message = self._link.read(doing, link.GONE if patience is None else patience)
            if "result" in message:
                return message["result"]
            if "ready" in message:
                return None
            if "error" in message:
                raise rebuilt(message["error"])
            if "bye" in message:
                raise self._link.lost(doing)
            if "part" in message and on_part is not None:
                on_part(message["part"])
            if "step" in message and progress is not None:
                progress(message["step"], message["fraction"])


@contextmanager
def connect(
    target: RemoteTarget, *, python: str = "python3", runtimes: Sequence[str] = ()
) -> Iterator[Host]:
    """A connection to ``target``, whose ``python`` has the packages of ``runtimes``.

    Whatever happens, the processes there end and the files there are removed; where that cannot
    be made sure of, the error says so. Raises HostError where the machine cannot be used.
    """
    with tempfile.TemporaryFile(prefix="edgeopt-") as log:
        host = Host(open_transport(target), python, log)
        try:
            host.open()
            host.need(runtimes)
            yield host
        except WorkerError as error:
            if host.close():
                raise
            raise WorkerError(f"{error} ({_left_behind(host)})") from error
        finally:
            removed = host.close()
        if not removed:
            warnings.warn(f"{target}: {_left_behind(host)}", stacklevel=3)


def _left_behind(host: Host) -> str:
    return f"its folder {host.facts.folder} could not be removed"


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _quote(program: str) -> str:
    """Quoted for the shell there, which still finds its user's own folder."""
    home, found, rest = program.partition("~/")
    return f"~/{shlex.quote(rest)}" if found and not home else shlex.quote(program)
