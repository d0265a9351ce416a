"""How often the statistics are right, on synthetic series whose answers are known.

    python benchmarks/measure_synthetic.py

Three questions. How often does a 95% interval of five processes hold the truth, where samples are
autocorrelated and processes differ? How often is a steady state found where it begins, and how
often is one claimed of a series that never settles? How often do two copies of one file get a
verdict, and how often is 5% more found? Results go to ``benchmarks/results/measure_synthetic.json``
and ``measure_synthetic.md``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
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
from benchmarks._series import (
    MACHINES,
    NEVER,
    STEADY,
    TURNS,
    Labelled,
    Machine,
    in_turns,
    start_is_right,
)
from edgeopt.numerics.bootstrap import MEAN, chances, resample
from edgeopt.numerics.decide import compare_turns, rule_of, turn_ratios, verdict
from edgeopt.numerics.steady import steady_start

#: Processes of a bench that nobody sets a number for: what verdicts are drawn from.
DEFAULT = 8

PROCESSES, SAMPLES = 5, 400
STATISTICS: Mapping[str, float | str] = {"p50": 50.0, "p90": 90.0, "mean": MEAN}


def coverage(kind: Machine, trials: int, rng: np.random.Generator) -> dict[str, float]:
    """The share of intervals that hold the truth, ours and the plain percentile bootstrap's."""
    # The truth: thousands of processes, pooled.
    crowd = kind.draw(rng, 40_000, 60).reshape(-1)
    truth = {"p50": np.median(crowd), "p90": np.percentile(crowd, 90), "mean": crowd.mean()}
    held = dict.fromkeys((*STATISTICS, *(f"{name}, plain" for name in STATISTICS)), 0)
    left = trials
    while left:
        batch = min(left, 200)
        series = kind.draw(rng, batch * PROCESSES, SAMPLES).reshape(batch, PROCESSES, SAMPLES)
        left -= batch
        for groups in series:
            found = resample(list(groups), (50.0, 90.0))
            for name, key in STATISTICS.items():
                interval = found[key].interval()
                assert interval is not None
                held[name] += bool(interval.low <= truth[name] <= interval.high)
                low, high = _percentiles(found[key].draws)
                held[f"{name}, plain"] += bool(low <= truth[name] <= high)
    return {name: count / trials for name, count in held.items()}


def _percentiles(draws: Any) -> tuple[float, float]:
    """2.5% and 97.5% of the draws, each as often as it comes up."""
    order = np.argsort(draws)
    up_to = np.cumsum(chances(PROCESSES)[order])
    return draws[order][np.searchsorted(up_to, 0.025)], draws[order][np.searchsorted(up_to, 0.975)]


def steady(
    make: Callable[[np.random.Generator], Labelled], trials: int, rng: np.random.Generator
) -> dict[str, float]:
    """The shares of right answers and of claims of a steady state, true or not."""
    right = claimed = 0
    for _ in range(trials):
        series, start = make(rng)
        found = steady_start(series)
        claimed += found is not None
        right += found is None if start is None else start_is_right(found, start, len(series))
    return {"right": right / trials, "called steady": claimed / trials}


def verdicts(kind: str, trials: int, rng: np.random.Generator) -> dict[str, float]:
    """Copies that get a verdict, 5% that is found, and intervals that hold the true ratio."""
    rule = rule_of("latency", "p50")
    alarms = found = held = 0
    for slowdown in (1.0, 1.05):
        for _ in range(trials):
            base, other, blocks = in_turns(rng, kind, slowdown, processes=DEFAULT)
            ratio = compare_turns(turn_ratios(base, blocks, other, blocks))
            interval = ratio.interval(rule.confidence)
            assert interval is not None
            said = verdict(interval, rule.effect)
            alarms += slowdown == 1.0 and said != "not significant"
            found += slowdown != 1.0 and said == "worse"
            held += interval.low <= slowdown <= interval.high
    return {
        "false alarms": alarms / trials,
        "5% found": found / trials,
        "ratio held": held / (2 * trials),
    }


def goals(
    covered: Mapping[str, Mapping[str, float]],
    settled: Mapping[str, Mapping[str, float]],
    judged: Mapping[str, Mapping[str, float]],
) -> list[Goal]:
    found = []
    for name in STATISTICS:
        share = float(np.mean([row[name] for row in covered.values()]))
        found.append(Goal(f"intervals of the {name} that hold the truth", share, 0.93, False))
        found.append(Goal(f"intervals of the {name} that hold the truth", share, 0.97, True))
    for name, row in covered.items():
        worst = min(row[s] for s in STATISTICS)
        best = max(row[s] for s in STATISTICS)
        found.append(Goal(f"{name}: least of p50, p90, mean", worst, 0.93, False))
        found.append(Goal(f"{name}: most of p50, p90, mean", best, 0.97, True))
    right = float(np.mean([settled[name]["right"] for name in STEADY]))
    false = float(np.mean([settled[name]["called steady"] for name in NEVER]))
    found.append(Goal("steady states found where they begin", right, 0.95, False))
    found.append(Goal("series that never settle, called steady", false, 0.05, True))
    alarms = float(np.mean([row["false alarms"] for row in judged.values()]))
    power = float(np.mean([row["5% found"] for row in judged.values()]))
    found.append(Goal("copies that get a verdict", alarms, 0.01, True))
    found.append(Goal("slowdowns of 5% that are found", power, 0.95, False))
    return found


def page(document: Mapping[str, Any], reached: list[Goal]) -> list[str]:
    def rows(part: str) -> list[tuple[str, ...]]:
        return [
            (name, *(f"{100 * share:.1f}%" for share in row.values()))
            for name, row in document[part].items()
        ]

    def header(part: str) -> tuple[str, ...]:
        return ("series", *next(iter(document[part].values())))

    trials = document["trials"]
    return [
        "# Statistics on synthetic series",
        "",
        f"{trials} series of each kind, seeded; one standard error of a share near 95% is "
        f"{100 * (0.95 * 0.05 / trials) ** 0.5:.1f}%.",
        "",
        *goals_table(reached),
        "## Intervals",
        "",
        f"{PROCESSES} processes of {SAMPLES} samples each; plain: percentiles of the same draws "
        "of processes, without the widening for few of them.",
        "",
        *table(header("coverage"), rows("coverage")),
        "## Steady state",
        "",
        "Right: found within 5% of the series or five samples of where it begins, or none where "
        "there is none. 60 to 2,000 samples.",
        "",
        *table(header("steady"), rows("steady")),
        "## Verdicts",
        "",
        f"{DEFAULT} processes, 20 turns of each of two subjects.",
        "",
        *table(header("verdicts"), rows("verdicts")),
        *machine_list(document["machine"]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000, help="series of each kind")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    trials = arguments.trials
    covered, settled, judged = {}, {}, {}
    for i, (name, kind) in enumerate(MACHINES.items()):
        covered[name] = coverage(kind, trials, np.random.default_rng((1, i)))
        print(f"intervals: {name}", flush=True)
    for i, (name, make) in enumerate({**STEADY, **NEVER}.items()):
        settled[name] = steady(make, trials, np.random.default_rng((2, i)))
        print(f"steady state: {name}", flush=True)
    for i, name in enumerate(TURNS):
        judged[name] = verdicts(name, trials, np.random.default_rng((3, i)))
        print(f"verdicts: {name}", flush=True)
    reached = goals(covered, settled, judged)
    document = {
        "trials": trials,
        "goals": [goal.to_json() for goal in reached],
        "coverage": covered,
        "steady": settled,
        "verdicts": judged,
        "machine": machine(("numpy",)),
    }
    write_results(arguments.out, "measure_synthetic", document, page(document, reached))
    return 0


if __name__ == "__main__":
    sys.exit(main())
