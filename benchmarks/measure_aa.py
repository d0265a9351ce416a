"""False alarms between copies of one file, and 5% more that is found, by edgeopt's own bench.

    python benchmarks/measure_aa.py --runs 200

Each run measures three copies of a small convolutional net side by side, as ``edgeopt bench`` does:
the baseline, a copy, and a copy whose inferences take 5% longer (it spins, see
``_slowed_worker.py``). A run is a false alarm where the copy is called better or worse by its
median latency, and a find where the slowed one is called worse. The verdicts on everything else
that is compared (tails, loads, memory) are counted too. Less ``--seconds`` makes a run shorter,
and its verdicts less certain. Results go to ``benchmarks/results/measure_aa.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from benchmarks._common import (
    RESULTS,
    Goal,
    goals_table,
    machine,
    machine_list,
    table,
    write_results,
)
from edgeopt.core import Results, Subject
from edgeopt.measure import relay
from edgeopt.measure.bench import BenchSettings, Trial, run_bench
from edgeopt.numerics.decide import turn_ratios
from edgeopt.numerics.derive import Contrast, derive
from edgeopt.runtimes.engine import Case

BASE, COPY, SLOWED = "base", "copy", "slowed"
SLOWDOWN = 1.05
CONDITIONS = {
    "runtime": "onnxruntime",
    "device": "cpu",
    "threads": 1,
    "batch": 1,
    "seq": None,
    "workload": "inference",
}


def write_model(path: Path, channels: int = 32, depth: int = 6, side: int = 32) -> None:
    """A plain convolutional net, about a millisecond an inference on one core."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "image"
    for i in range(depth):
        kernel = rng.normal(size=(channels, channels, 3, 3)) / (9 * channels) ** 0.5
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last = f"r{i}"
    shape = [1, channels, side, side]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        weights,
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def one_run(folder: Path, settings: BenchSettings, model: Path) -> tuple[Results, float]:
    """The results of one run, and the seconds that it took."""
    trials, subjects = [], []
    feed = {"image": np.random.default_rng(0).normal(size=(1, 32, 32, 32)).astype(np.float32)}
    for name in (BASE, COPY, SLOWED):
        path = folder / f"{name}.onnx"
        if not path.exists():
            shutil.copyfile(model, path)
        options = {"slowdown": SLOWDOWN} if name == SLOWED else {}
        case = Case(path, (path,), "onnxruntime", options=options)
        trials.append(Trial(name, case, CONDITIONS, feed))
        files = ((path.name, path.stat().st_size),)
        subjects.append(Subject(name, str(path), "onnx", "onnxruntime", files, ""))
    start = time.perf_counter()
    found = run_bench(trials, settings)
    took = time.perf_counter() - start
    if found.failures:
        raise SystemExit(f"a run failed: {dict(found.failures)}")
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    results = Results("bench", made, BASE, tuple(subjects), found.measurements, {}, {})
    return results, took


def described(contrast: Contrast) -> dict[str, Any]:
    return {
        "verdict": contrast.verdict,
        "ratio": contrast.ratio.value,
        "low": contrast.ratio.low,
        "high": contrast.ratio.high,
    }


def by_process(results: Results) -> dict[str, list[float]]:
    """The median ratio of turns to the baseline's, of each process of the other two."""
    taken = {m.subject: m for m in results.measurements if m.metric == "latency"}
    base = taken[BASE]
    return {
        name: [
            round(float(np.median(ratios)), 5)
            for ratios in turn_ratios(
                base.values, base.blocks, taken[name].values, taken[name].blocks
            )
        ]
        for name in (COPY, SLOWED)
    }


def share_of(runs: list[dict[str, Any]], subject: str, key: str, verdicts: set[str]) -> float:
    said = [run["contrasts"][subject][key]["verdict"] for run in runs]
    return sum(verdict in verdicts for verdict in said) / len(said)


def goals(runs: list[dict[str, Any]]) -> list[Goal]:
    alarms = share_of(runs, COPY, "latency.p50", {"better", "worse"})
    found = share_of(runs, SLOWED, "latency.p50", {"worse"})
    return [
        Goal(f"copies that get a verdict, of {len(runs)} runs", alarms, 0.01, True),
        Goal(f"slowdowns of 5% that are found, of {len(runs)} runs", found, 0.95, False),
    ]


def page(document: Mapping[str, Any], reached: list[Goal]) -> list[str]:
    runs = document["runs"]
    rows = []
    for key in runs[0]["contrasts"][COPY]:
        cells = [key]
        for subject in (COPY, SLOWED):
            said = Counter(run["contrasts"][subject][key]["verdict"] for run in runs)
            cells.append(", ".join(f"{n} {verdict}" for verdict, n in said.most_common()))
            logs = np.log([run["contrasts"][subject][key]["ratio"] for run in runs])
            cells.append(f"{np.exp(np.median(logs)):.4f}, {100 * logs.std():.1f}%")
        rows.append(tuple(cells))
    inside = [
        ratio["low"] <= true <= ratio["high"]
        for run in runs
        for subject, true in ((COPY, 1.0), (SLOWED, SLOWDOWN))
        if (ratio := run["contrasts"][subject]["latency.p50"])["low"] is not None
    ]
    loads = [run["load"] for run in runs]
    noises = [run["noise"] for run in runs if run["noise"] is not None]
    return [
        "# Copies of one file, and 5% more",
        "",
        f"{len(runs)} runs of `edgeopt bench`'s engine on three copies of a small ONNX file, "
        f"{document['processes']} processes, {document['seconds']:g} s of timing a subject, "
        f"{np.median([run['took_s'] for run in runs]):.0f} s a run. The machine's load was "
        f"{min(loads):.1f} to {max(loads):.1f} (1 minute) while it ran; turns scattered by "
        f"{np.median(noises):.1%} in the median run, {np.max(noises):.1%} at most.",
        "",
        *goals_table(reached),
        f"95% intervals of the p50's ratio that hold the true one: {100 * np.mean(inside):.1f}%.",
        "",
        "## Verdicts",
        "",
        "Ratio: the median over the runs, and the standard deviation of one run's. What spinning "
        "does to caches makes the slowed copy a little slower than the 5% that it spins.",
        "",
        *table(("statistic", "copy", "ratio", "5% slower", "ratio"), rows),
        *machine_list(document["machine"]),
    ]


def save(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    reached = goals(runs)
    document = {
        "goals": [goal.to_json() for goal in reached],
        "slowdown": SLOWDOWN,
        "processes": arguments.processes,
        "seconds": arguments.seconds,
        "runs": runs,
        "machine": machine(("numpy", "onnxruntime")),
    }
    write_results(arguments.out, "measure_aa", document, page(document, reached))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing a subject and run")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    relay._WORKER = "benchmarks._slowed_worker"
    settings = BenchSettings(
        processes=arguments.processes, seconds=arguments.seconds, cold=False, energy=False
    )
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.onnx"
        write_model(model)
        for number in range(arguments.runs):
            results, took = one_run(folder, settings, model)
            derived = derive(results)
            contrasts: dict[str, dict[str, Any]] = {COPY: {}, SLOWED: {}}
            for c in derived.contrasts:
                contrasts[c.subject][f"{c.metric}.{c.statistic}"] = described(c)
            row = derived.row(BASE, "latency", CONDITIONS)
            runs.append(
                {
                    "contrasts": contrasts,
                    "processes": by_process(results),
                    "noise": row.noise if row else None,
                    "settled": row.steady["settled"] if row and row.steady else None,
                    "load": os.getloadavg()[0],
                    "took_s": took,
                }
            )
            said = [
                f"{subject} {c['ratio']:.3f} {c['verdict']}"
                for subject in (COPY, SLOWED)
                for c in [contrasts[subject]["latency.p50"]]
            ]
            if number % 20 == 19:  # an hour's work is not to be lost
                save(runs, arguments)
            print(
                f"run {number + 1} of {arguments.runs}, {took:.0f} s: {', '.join(said)}", flush=True
            )
    save(runs, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
