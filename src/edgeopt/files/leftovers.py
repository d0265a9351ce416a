"""What a run that was killed leaves behind, and the next run there removes.

Temporary files and folders carry their owner in the name: the machine, its start, the process and
when that began. A name whose owner is no more is a leftover. What another machine, another user or
a run in progress made is left alone, and so is whatever has another name; links are removed, never
followed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

__all__ = ["clear", "owned_name"]

_OWNED = re.compile(
    r"(?P<lead>.*?)(?P<host>[0-9a-f]{6})(?P<boot>[0-9a-f]{6})-(?P<pid>\d{1,10})-(?P<start>\d{1,20})"
    r"-[0-9a-f]{12}(?P<rest>.*)"
)


def owned_name() -> str:
    """A part of a name that nobody has, and that says whose it is."""
    pid = os.getpid()
    return f"{_host()}{_boot()}-{pid}-{_start(pid) or 0}-{secrets.token_hex(6)}"


def clear(folder: Path, lead: str, rest: str = "") -> None:
    """Remove from ``folder`` what is called ``LEAD...owner...REST...`` and has no owner any more.

    What cannot be removed stays: it is not this run's task.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        named = _OWNED.fullmatch(entry.name)
        if named is None or not named["lead"].startswith(lead):
            continue
        if not named["rest"].startswith(rest) or not _is_dead(named):
            continue
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid != os.getuid():
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                Path(entry.path).unlink()


def _is_dead(named: re.Match[str]) -> bool:
    if named["host"] != _host() or not Path("/proc/self/stat").exists():
        return False  # another machine's, which only that one knows about
    if named["boot"] != _boot():
        return True
    start = _start(int(named["pid"]))
    return start is None or str(start) != named["start"]


@functools.cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]


@functools.cache
def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        boot = b""
    return hashlib.sha256(boot).hexdigest()[:6]


def _start(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine's start; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name, in brackets, may hold anything: fields are counted from behind it.
    return int(stat.rpartition(b")")[2].split()[19])
