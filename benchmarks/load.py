"""Opening a 1 GB ``.pt``: ``edgeopt.load_weights`` against ``torch.load``, in turns.

    python benchmarks/load.py

Every round starts a fresh process for each way, in an order drawn anew; the file is in the page
cache (each process reads it once before the clock starts). What opens by mapping is opened nine
times in its process, and the median counts. Written down: seconds to open, what is
resident then, and seconds until every byte has been touched. Results go to
``benchmarks/results/load.json`` and ``load.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from benchmarks._common import (
    RESULTS,
    ROOT,
    Goal,
    goals_table,
    machine,
    machine_list,
    ratio,
    table,
    with_interval,
    write_results,
)

TENSORS, COLUMNS, ROWS = 20, 4096, 6104  # float16: 1.0 GB

_CHILD = """
import json, sys, time
way, path = sys.argv[1:]

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith(field)).split()[1]) * 1024

with open(path, "rb", buffering=0) as stream:  # into the page cache
    room = bytearray(1 << 22)
    while stream.readinto(room):
        pass
del room

if way == "load_weights":
    import numpy, edgeopt
    load = lambda: edgeopt.load_weights(path)
    edgeopt.load_weights(path)  # imports what it needs
else:
    import numpy, torch
    torch.set_num_threads(1)
    load = lambda: torch.load(path, mmap=way == "torch.load, mmap", weights_only=True)
    torch.load(path, mmap=True, weights_only=True)  # likewise

rss, heap = resident("VmRSS:"), resident("RssAnon:")
begin = time.perf_counter()
weights = load()
times = [time.perf_counter() - begin]
rss_open, heap_open = resident("VmRSS:") - rss, resident("RssAnon:") - heap
if way != "torch.load":  # a moment that another process took is not to stand for it
    for _ in range(8):
        again = time.perf_counter()
        weights = load()
        times.append(time.perf_counter() - again)
begin = time.perf_counter()
total = 0
for name in weights:
    array = weights[name]
    array = array if isinstance(array, numpy.ndarray) else array.numpy()
    total += int(array.view(numpy.uint64).sum())
touched = time.perf_counter() - begin
opened = sorted(times)[len(times) // 2]
print(json.dumps({"open_s": opened, "open_all_s": times, "touched_s": opened + touched,
                  "rss_at_open": rss_open, "heap_at_open": heap_open,
                  "heap_at_end": resident("RssAnon:") - heap, "sum": total}))
"""

WAYS = ("load_weights", "torch.load", "torch.load, mmap")


def write_model(path: Path) -> None:
    import torch

    rng = np.random.default_rng(0)
    part = rng.standard_normal((ROWS, COLUMNS), np.float32).astype(np.float16)
    torch.save({f"layer.{i}.weight": torch.from_numpy(part.copy()) for i in range(TENSORS)}, path)


def measure(path: Path, way: str) -> dict[str, Any]:
    command = [sys.executable, "-c", _CHILD, way, str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise SystemExit(f"{way} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the 1 GB file is put, for this run only")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    raw: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "model.pt"
        write_model(path)
        nbytes = path.stat().st_size
        for turn in range(arguments.rounds):
            for at in rng.permutation(len(WAYS)):
                raw[WAYS[at]].append(measure(path, WAYS[at]))
            print(f"round {turn + 1} of {arguments.rounds}", flush=True)
    if len({sample["sum"] for samples in raw.values() for sample in samples}) != 1:
        raise SystemExit("the ways do not read the same bytes")

    def column(way: str, field: str) -> list[float]:
        return [float(sample[field]) for sample in raw[way]]

    faster = ratio(column("torch.load", "open_s"), column("load_weights", "open_s"))
    whole = ratio(column("torch.load", "touched_s"), column("load_weights", "touched_s"))
    resident = max(column("load_weights", "rss_at_open")) / 1e6
    goals = [
        Goal("load_weights opens faster than torch.load, times", faster[0], 200, False),
        Goal("resident after load_weights, MB", resident, 10, True),
    ]
    rows = [
        (
            way,
            f"{statistics.median(column(way, 'open_s')) * 1e3:.2f}",
            f"{statistics.median(column(way, 'touched_s')) * 1e3:.0f}",
            f"{statistics.median(column(way, 'rss_at_open')) / 1e6:.1f}",
            f"{statistics.median(column(way, 'heap_at_end')) / 1e6:.1f}",
        )
        for way in WAYS
    ]
    env = machine(["numpy", "torch"])
    lines = [
        f"# Opening a {nbytes / 1e9:.2f} GB .pt, in the page cache",
        "",
        f"{TENSORS} tensors of float16, medians of {arguments.rounds} processes each, taken in "
        "turns. Touched: every byte summed by numpy.",
        "",
        *table(("way", "open ms", "open and touch ms", "MB resident at open", "MB heap"), rows),
        f"torch.load / load_weights, round by round: open {with_interval(faster)}, open and touch "
        f"{with_interval(whole)}.",
        "",
        *goals_table(goals),
        *machine_list(env),
    ]
    document = {
        "nbytes": nbytes,
        "samples": raw,
        "goals": [goal.to_json() for goal in goals],
        "machine": env,
    }
    write_results(RESULTS, "load", document, lines)
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
