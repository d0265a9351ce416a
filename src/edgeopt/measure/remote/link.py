"""A live connection to another machine: lines and bytes each way, signs of life, and its end.

What is received are JSON messages, one a line behind a mark: whatever else a login prints is
passed over. A sign of life goes each way every 20 seconds, so that either side notices the other's
silence.
"""

from __future__ import annotations

import contextlib
import io
import json
import queue
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, TypeAlias

from edgeopt.errors import EdgeoptError, HostError, WorkerError
from edgeopt.measure.remote.transport import Transport

__all__ = ["GONE", "Link", "Write"]

#: Seconds between our signs of life, and without one of theirs after which they are gone.
PING = 20.0
GONE = 120.0

#: Seconds for the last word.
_BYE = 10.0

_MARK = b"edgeopt "

Write: TypeAlias = Callable[[bytes], None]


class Link:
    """One remote command (``program`` is what it starts) and its pipes. ``log`` takes what is said
    on stderr; ``folder``, once it is known, is what the other side removes at its end."""

    def __init__(self, transport: Transport, program: str, command: str, log: IO[bytes]) -> None:
        self.target = transport.target
        self.folder = ""
        self._transport = transport
        self._program = program
        self._log = log
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._removed: bool | None = None
        self._process = transport.start(command, log)
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._forward, daemon=True).start()

    def beat(self) -> None:
        """Give signs of life from now on."""
        threading.Thread(target=self._ping, daemon=True).start()

    @contextmanager
    def sending(self) -> Iterator[Write]:
        """The right to write, for as long as what is written belongs together."""
        with self._lock:
            yield self._write

    def send(self, message: dict[str, Any]) -> None:
        """Send one JSON line. Raises as :meth:`read`."""
        with self._lock:
            self._write(json.dumps(message).encode() + b"\n")

    def read(self, doing: str, patience: float) -> dict[str, Any]:
        """The next message. Raises HostError where the connection was refused, WorkerError where
        it is lost; both say what went on meanwhile (``doing``)."""
        while True:
            try:
                line = self._lines.get(timeout=patience)
            except queue.Empty:
                raise self.lost(doing, f"no sign of it for {patience:.0f} s") from None
            if line is None:
                self._lines.put(None)
                raise self.lost(doing)
            if line.startswith(_MARK):
                message: dict[str, Any] = json.loads(line[len(_MARK) :])
                return message

    def abandon(self) -> None:
        """No more signs of life: what was begun to be sent cannot be finished."""
        self._closed.set()

    def close(self) -> bool:
        """End the connection; whether the folder on the other machine is known to be gone."""
        if self._removed is None:
            self._removed = self._leave()
        return self._removed

    def lost(self, doing: str, reason: str = "") -> EdgeoptError:
        """What to raise now that the connection is gone: why it was refused, or when it broke."""
        self._closed.set()
        _end(self._process, 0.0 if reason else 1.0)
        code = self._process.returncode
        self._log.flush()
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        last = lines[-1][:200] if lines else ""
        if self.folder:  # it had been there
            reason = reason or last or "the connection, or Python there, ended"
            return WorkerError(
                f"{self.target}: lost while {doing}: {reason}; check the machine (memory, power,"
                " network) and run it again"
            )
        why = self._transport.explain(code, said)
        if why is not None:
            return why
        shown = f" ({last})" if last else ""
        if code in (126, 127):
            return HostError(
                f"{self.target}: no {self._program} there{shown}; install Python 3.10 or later, or"
                " name it with --remote-python PATH"
            )
        return HostError(
            f"{self.target}: no answer from {self._program} there ({reason or f'code {code}'})"
            f"{shown}; try it by hand"
        )

    def _leave(self) -> bool:
        self._closed.set()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        gone = not self.folder
        with contextlib.suppress(EdgeoptError):
            while not gone:
                gone = self.read("leaving", _BYE).get("bye") is True
        _end(self._process, 1.0 if gone else 0.0)
        return gone or self._remove()

    def _remove(self) -> bool:
        """Over a connection of its own, where the other side did not get to it."""
        if not PurePosixPath(self.folder).name.startswith("edgeopt-"):
            return False
        remover: subprocess.Popen[bytes] | None = None
        try:
            remover = self._transport.start(f"rm -rf -- {shlex.quote(self.folder)}", self._log)
            remover.communicate(timeout=2 * _BYE)
        except (EdgeoptError, OSError, subprocess.TimeoutExpired):
            return False
        finally:
            if remover is not None:
                _end(remover, 0.0)
        return remover.returncode == 0

    def _forward(self) -> None:
        raw: Any = self._process.stdout  # unbuffered, as the transport made it
        with contextlib.suppress(ValueError, OSError):  # closed under us at the end
            for line in io.BufferedReader(raw):
                self._lines.put(line)
        self._lines.put(None)

    def _write(self, data: bytes) -> None:
        """Unbuffered: nothing may be left that closing would wait to write."""
        stdin = self._process.stdin
        assert stdin is not None
        view = memoryview(data)
        try:
            while view:
                view = view[stdin.write(view) :]
        except (OSError, ValueError):
            raise self.lost("sending") from None

    def _ping(self) -> None:
        while not self._closed.wait(PING):
            with contextlib.suppress(EdgeoptError):
                self.send({"do": "ping"})


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=patience)
    if process.returncode is None:
        process.kill()
        process.wait()
