"""Our side of another machine: connect, send files, ask, and leave nothing behind.

One connection carries everything. Whoever holds a :class:`Host` sleeps while the other machine
works; a sign of life goes each way every 20 seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import queue
import shlex
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edgeopt.core import Progress, format_bytes
from edgeopt.errors import EdgeoptError, HostError, OutputError, SourceError, WorkerError
from edgeopt.measure.child import rebuilt
from edgeopt.measure.remote import boot
from edgeopt.measure.remote.bundle import make_bundle
from edgeopt.measure.remote.target import Target
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
)

#: Seconds between our signs of life, and without one of theirs after which they are gone.
_PING = 20.0
_GONE = 120.0

#: Seconds for the first word (a small board's Python takes its time), and for the last.
_HELLO = 60.0
_BYE = 10.0

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

_MARK = b"edgeopt "


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
        self.python = python
        self.facts = _Facts("", "", "", "", {}, 0)
        self._transport = transport
        self._log = log
        self._lock = threading.Lock()
        self._sent: dict[str, tuple[str, tuple[int, int]]] = {}
        self._closed = threading.Event()
        self._removed: bool | None = None
        command = f"exec {_quote(python)} -u -c {shlex.quote(_COMMAND)}"
        self._process = transport.start(command, log)
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._forward, daemon=True).start()

    # -- opening and closing ------------------------------------------------------------------

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
        self._write(json.dumps(first).encode() + b"\n")
        hello = self._read("connecting", _HELLO)
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
        self._write(bundle.data)
        self._answer("starting the runner", None, _HELLO)
        threading.Thread(target=self._ping, daemon=True).start()

    def close(self) -> bool:
        """End the connection; whether the folder on the other machine is known to be gone."""
        if self._removed is None:
            self._removed = self._leave()
        return self._removed

    def _leave(self) -> bool:
        self._closed.set()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        gone = not self.facts.folder
        with contextlib.suppress(EdgeoptError):
            while not gone:
                gone = self._read("leaving", _BYE).get("bye") is True
        _end(self._process, 1.0 if gone else 0.0)
        if not gone:
            gone = self._remove()
        return gone

    def _remove(self) -> bool:
        """Over a connection of its own, where the runner did not get to it."""
        folder = self.facts.folder
        if not PurePosixPath(folder).name.startswith("edgeopt-"):
            return False
        remover: subprocess.Popen[bytes] | None = None
        try:
            remover = self._transport.start(f"rm -rf -- {shlex.quote(folder)}", self._log)
            remover.communicate(timeout=2 * _BYE)
        except (EdgeoptError, OSError, subprocess.TimeoutExpired):
            return False
        finally:
            if remover is not None:
                _end(remover, 0.0)
        return remover.returncode == 0

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
        with self._lock, path.open("rb", buffering=0) as stream:
            self._write_locked(
                json.dumps({"do": "put", "name": name, "size": size}).encode() + b"\n"
            )
            while left:
                chunk = stream.read(min(_CHUNK, left))
                if not chunk:
                    self._closed.set()
                    raise SourceError(f"{path}: it became shorter while it was sent; try again")
                digest.update(chunk)
                self._write_locked(chunk)
                left -= len(chunk)
                if progress is not None:
                    done = before + size - left
                    progress(f"sending to {self.target.host}", done / total)
            self._write_locked(json.dumps({"sha256": digest.hexdigest()}).encode() + b"\n")
        try:
            answer = self._answer(f"taking {path.name}", None, _GONE)
        except OutputError as error:
            place = self.facts.folder.rpartition("/")[0] or "/"
            raise OutputError(
                f"{self.target}: {path.name} cannot be written in {place} ({error}); free some"
                " space, or name another folder, as ssh://user@host/folder"
            ) from None
        self.facts = replace(self.facts, free=answer["free"])
        return str(answer["path"])

    # -- requests -----------------------------------------------------------------------------

    def ask(self, request: Mapping[str, Any], doing: str, progress: Progress | None = None) -> Any:
        """The result of a request; raises what it raised there, WorkerError where the machine or
        the connection is lost meanwhile."""
        self._write(json.dumps(request).encode() + b"\n")
        return self._answer(doing, progress, _GONE)

    def environment(self, threads: int = 1) -> dict[str, Any]:
        """The machine, as its own :func:`edgeopt.measure.environment.environment` says."""
        found = self.ask({"do": "environment", "threads": threads}, "describing the machine")
        return {**found, "on": str(self.target)}

    def _answer(
        self,
        doing: str,
        progress: Progress | None,
        patience: float,
        on_part: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> Any:
        while True:
            message = self._read(doing, patience)
            if "result" in message:
                return message["result"]
            if "ready" in message:
                return None
            if "error" in message:
                raise rebuilt(message["error"])
            if "bye" in message:
                raise self._lost(doing)
            if "part" in message and on_part is not None:
                on_part(message["part"])
            if "step" in message and progress is not None:
                progress(message["step"], message["fraction"])

    # -- bytes --------------------------------------------------------------------------------

    def _forward(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError, OSError):  # closed under us at the end
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _read(self, doing: str, patience: float) -> dict[str, Any]:
        """The next message; whatever else a login prints before the first is passed over."""
        while True:
            try:
                line = self._lines.get(timeout=patience)
            except queue.Empty:
                raise self._lost(doing, f"no sign of it for {patience:.0f} s") from None
            if line is None:
                self._lines.put(None)
                raise self._lost(doing)
            if line.startswith(_MARK):
                message: dict[str, Any] = json.loads(line[len(_MARK) :])
                return message

    def _write(self, data: bytes) -> None:
        with self._lock:
            self._write_locked(data)

    def _write_locked(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._lost("sending") from None

    def _ping(self) -> None:
        while not self._closed.wait(_PING):
            with contextlib.suppress(EdgeoptError):
                self._write(b'{"do": "ping"}\n')

    def _lost(self, doing: str, reason: str = "") -> EdgeoptError:
        """What to raise now that the connection is gone: why it was refused, or when it broke."""
        self._closed.set()
        _end(self._process, 1.0)
        code = self._process.returncode
        self._log.flush()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")
        why = self._transport.explain(code, said)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = f" ({lines[-1][:200]})" if lines else ""
        if self.facts.folder:  # it had been there
            reason = reason or (last[2:-1] if last else "the connection or its Python ended")
            return WorkerError(
                f"{self.target}: lost while {doing}: {reason}; check the machine (memory, power,"
                " network) and run it again"
            )
        if why is not None:
            return why
        if code in (126, 127):
            return HostError(
                f"{self.target}: no {self.python} there{last}; install Python 3.10 or later, or"
                " name it with --remote-python PATH"
            )
        return HostError(
            f"{self.target}: no answer from {self.python} there ({reason or f'code {code}'})"
            f"{last}; try it by hand"
        )


@contextmanager
def connect(
    target: Target, *, python: str = "python3", runtimes: Sequence[str] = ()
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


def _quote(program: str) -> str:
    """Quoted for the shell there, which still finds its user's own folder."""
    home, found, rest = program.partition("~/")
    return f"~/{shlex.quote(rest)}" if found and not home else shlex.quote(program)


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=patience)
    if process.returncode is None:
        process.kill()
        process.wait()
