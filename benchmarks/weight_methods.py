"""The table in docs/formats.md: SQNR of every rounding method, on real and on random weights.

python benchmarks/weight_methods.py path/to/all-MiniLM-L6-v2/model.safetensors
"""

from __future__ import annotations

import sys
import time

import numpy as np

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


def main() -> None:
    groups = matrices(sys.argv[1])
    header = ["bits", "block", "zero points", "method", *groups, "Mweight/s a core"]
    print("|", " | ".join(header), "|\n|", " | ".join("---" for _ in header), "|")
    for bits, blocks in BLOCKS.items():
        for block in blocks:
            for zero in (False, True):
                for method in METHODS:
                    began = time.process_time()
                    found = [sqnr(group, method, bits, block, zero) for group in groups.values()]
                    spent = time.process_time() - began
                    size = sum(w.size for group in groups.values() for w in group)
                    cells = [str(bits), str(block or "row"), "yes" if zero else "no", method]
                    cells += [f"{value:.2f}" for value in found] + [f"{size / spent / 1e6:.0f}"]
                    print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
