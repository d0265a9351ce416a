"""Whole commands, timed and watched: wall time, and the anonymous memory of their processes."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Run", "run"]

#: Seconds between two looks at a process: often enough for a peak that lasts a tensor.
_EVERY = 0.02


@dataclass(frozen=True)
class Run:
    """One command: how long it took, and the highest anonymous memory seen (bytes)."""

    seconds: float
    peak_anon: int
    output: str


def run(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Run:
    """Run a command to its end. SystemExit with its last lines where it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=None if env is None else dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{output[-2000:]}")
    return Run(seconds, peak[0], output)


def _watch(pid: int, peak: list[int]) -> None:
    """Keep the highest RssAnon of a process and its children, summed, until it ends."""
    while True:
        try:
            parent = psutil.Process(pid)
            if parent.status() == psutil.STATUS_ZOMBIE:
                return
            family = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], sum(_anonymous(member.pid) for member in family))
        time.sleep(_EVERY)


def _anonymous(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
