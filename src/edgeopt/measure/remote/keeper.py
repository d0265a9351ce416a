"""The runner's own process on another machine: takes files, runs jobs, and cleans up.

Requests come as JSON lines on its input, files as bytes behind them; answers go back as JSON
lines. Whatever ends the connection ends this process, its workers and the folder with it: the
other side's end, a signal, or silence for longer than a live connection is ever silent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

from edgeopt.errors import EdgeoptError
from edgeopt.measure.remote.requests import REQUESTS

__all__ = ["SILENCE", "SLOWEST", "Keeper", "main"]

#: Seconds without a byte from the other side, which gives a sign every 20, before it is gone.
SILENCE = 180.0

#: Bytes a second that the slowest disk writes.
SLOWEST = 1e6

#: Seconds between two progress lines: each wakes processes on a machine that is being timed.
_QUIET = 0.5

#: Seconds that saying goodbye may take.
_LAST_WORD = 3.0

_CHUNK = 1 << 20


class Keeper:
    """Serves the requests of one connection in ``folder``, which it removes at the end."""

    def __init__(self, folder: Path, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.folder = folder
        self._stdin = stdin
        self._stdout = stdout
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._heard = self._spoke = time.monotonic()

    def serve(self) -> NoReturn:
        """Answer until the connection ends."""
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            while True:
                self._answer(self._waiting.get())
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            self.leave()

    def say(self, message: Mapping[str, Any]) -> None:
        """Send a line to the other side; there being no other side any more, leave."""
        line = b"edgeopt " + json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._stdout.write(line)
                self._stdout.flush()
        except (OSError, ValueError):
            self.leave()

    def progress(self, step: str, fraction: float | None) -> None:
        now = time.monotonic()
        if now - self._spoke >= _QUIET:
            self._spoke = now
            self.say({"step": step, "fraction": fraction})

    def leave(self) -> NoReturn:
        """End the workers, remove the folder, say so, and be gone."""
        self._ending.acquire()  # for good: who comes second waits for the end of the process
        for _ in range(5):  # what a worker wrote meanwhile goes in the next turn
            _end_children()
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                break
            time.sleep(0.05)
        last = threading.Timer(_LAST_WORD, os._exit, (0,))  # where nobody reads what we say
        last.daemon = True
        last.start()
        with contextlib.suppress(OSError, ValueError):
            self._stdout.write(b'edgeopt {"bye": %s}\n' % _json(not self.folder.exists()))
            self._stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    # -- what the other side says -------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while line := self._stdin.readline():
                self._heard = time.monotonic()
                request = json.loads(line)
                if request["do"] == "ping":
                    self.say({"pong": True})
                elif request["do"] == "put":
                    self._take(request)
                else:
                    self._waiting.put(request)
        except (OSError, ValueError, KeyError, EOFError):
            traceback.print_exc()
        finally:
            self.leave()

    def _watch(self) -> None:
        while (left := self._heard + SILENCE - time.monotonic()) > 0:
            time.sleep(left)
        self.leave()

    def _take(self, request: Mapping[str, Any]) -> None:
        """Write a file as it comes. Its bytes are taken to the end, come what may."""
        path = self.folder / _inside(request["name"])
        left = int(request["size"])
        digest = hashlib.sha256()
        problem = ""
        stream: IO[bytes] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("wb", buffering=0)
        except OSError as error:
            problem = error.strerror or str(error)
        while left:
            chunk = self._stdin.read(min(_CHUNK, left))
            if not chunk:
                raise EOFError("the connection ended in a file")
            self._heard = time.monotonic()
            left -= len(chunk)
            digest.update(chunk)
            if stream is not None and not problem:
                problem = _write(stream, chunk)
        if stream is not None:
            # Nothing is heard while a slow disk writes what was only in memory.
            self._heard = time.monotonic() + int(request["size"]) / SLOWEST
            problem = _close(stream, problem)
        told = json.loads(self._stdin.readline())["sha256"]
        if not problem and digest.hexdigest() != told:
            problem = "it arrived damaged (another SHA-256)"
        if problem:
            with contextlib.suppress(OSError):
                path.unlink()
            self.say(_error("OutputError", problem))
        else:
            self.say({"result": {"path": str(path), "free": shutil.disk_usage(self.folder).free}})

    # -- what it asks for ---------------------------------------------------------------------

    def _answer(self, request: Mapping[str, Any]) -> None:
        try:
            result = REQUESTS[request["do"]](self, request)
        except EdgeoptError as error:
            self.say(_error(type(error).__name__, str(error)))
        except OSError as error:  # its disk is full, as a rule
            self.say(_error("OutputError", error.strerror or str(error)))
        else:
            self.say({"result": result})


def main(folder: Path, stdin: IO[bytes], stdout: IO[bytes]) -> NoReturn:
    """Take over from the boot code, in ``folder``."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)  # and nothing is left elsewhere
    os.chdir(folder)
    keeper = Keeper(folder, stdin, stdout)

    def end(signum: int, frame: object) -> None:
        threading.Thread(target=keeper.leave, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    keeper.say({"ready": True})
    keeper.serve()


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name}: not a name inside the folder")
    return path


def _write(stream: IO[bytes], chunk: bytes) -> str:
    """Write all of it; or say why not."""
    view = memoryview(chunk)
    try:
        while view:
            view = view[stream.write(view) :]
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _close(stream: IO[bytes], problem: str) -> str:
    """Down to the disk: pages not yet written cannot be evicted, and no load would be cold."""
    try:
        with stream:
            os.fsync(stream.fileno())
    except OSError as error:
        return problem or error.strerror or str(error)
    return problem


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message, "subject": ""}}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _end_children() -> None:
    """Kill the groups of our children (each worker leads one) where /proc names them. Elsewhere
    they end by themselves: the pipes that they listen on close with us."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        if int(fields[1]) == os.getpid():
            child = int(stat.parent.name)
            with contextlib.suppress(OSError):
                (os.killpg if int(fields[2]) == child else os.kill)(child, signal.SIGKILL)
