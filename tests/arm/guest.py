"""What runs inside the emulated CPU: edgeopt's own modules, numpy, ONNX Runtime, numba.

python guest.py features | answer FOLDER OUT | code FOLDER OUT | encode FOLDER OUT TYPE...
"""

from __future__ import annotations

import ctypes
import json
import platform
import sys
from pathlib import Path

import numpy as np

#: Bits of the auxiliary vector (Linux, arch/arm64/include/uapi/asm/hwcap.h): 16 is AT_HWCAP, 26
#: AT_HWCAP2.
_FEATURES = {"dotprod": (16, 20), "sve": (16, 22), "i8mm": (26, 13), "sme": (26, 23)}


def features() -> None:
    """What the CPU says of itself, as JSON."""
    value = ctypes.CDLL(None).getauxval
    value.restype, value.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    found = [name for name, (which, bit) in _FEATURES.items() if value(which) >> bit & 1]
    said = {"machine": platform.machine(), "python": platform.python_version(), "features": found}
    print(json.dumps(said))


def answer(folder: Path, out: Path) -> None:
    """Run every NAME.onnx of a folder on the arrays of its NAME.npz, once."""
    from edgeopt.runtimes.onnxruntime import OnnxSession

    for path in sorted(folder.glob("*.onnx")):
        with np.load(path.with_suffix(".npz")) as feed:
            np.savez(out / f"{path.stem}.npz", **OnnxSession.open(path).run(dict(feed)))


def code(folder: Path, out: Path) -> None:
    """Every affine method, calibrator and plain or decoded ggml type, in numpy alone."""
    from edgeopt.core import Affine
    from edgeopt.files.packed import PackedLayout
    from edgeopt.files.weights import load_weights
    from edgeopt.numerics import ggml
    from edgeopt.numerics.affine import dequantize
    from edgeopt.numerics.methods import METHODS
    from edgeopt.numerics.ranges import CALIBRATORS

    weights = load_weights(folder / "weights.safetensors")
    matrix, made = weights["matrix"], {}
    for name, method in METHODS.items():
        for bits, block in ((8, None), (8, 32), (4, 32), (4, 128)):
            for symmetric in (True, False):
                stored = {"bits": bits, "block": block, "symmetric": symmetric}
                codes = method(matrix, **stored, scale_dtype="float16")
                layout = PackedLayout.of(
                    weights.describe("matrix"), Affine(bits, block, symmetric, -1, "float16")
                )
                kind = f"{name}-{bits}-{block}-{'symmetric' if symmetric else 'affine'}"
                made[kind] = np.concatenate(layout.pack(codes))
                made[f"values-{kind}"] = dequantize(codes, block, matrix.shape[1])
    for name, maker in CALIBRATORS.items():
        calibrator = maker()
        for lo in range(0, len(matrix), 16):
            calibrator.observe(matrix[lo : lo + 16])
        made[f"range-{name}"] = np.asarray(calibrator.range(), np.float32)
    for kind in ("F16", "BF16"):
        made[f"encoded-{kind}"] = ggml.encode(kind, matrix)
    for path in sorted(folder.glob("*.npy")):
        raw, columns = np.load(path), matrix.shape[1]
        made[f"decoded-{path.stem}"] = ggml.decode(path.stem, raw, columns)
    np.savez(out / "code.npz", **made)


def encode(folder: Path, out: Path, *types: str) -> None:
    """Encode with the kernels that numba compiles for this CPU."""
    from edgeopt.files.weights import load_weights
    from edgeopt.numerics import ggml

    matrix = load_weights(folder / "weights.safetensors")["matrix"]
    for kind in types:
        np.save(out / f"{kind}.npy", ggml.encode(kind, matrix))


if __name__ == "__main__":
    job, *rest = sys.argv[1:]
    if job == "features":
        features()
    elif job == "encode":
        encode(Path(rest[0]), Path(rest[1]), *rest[2:])
    else:
        {"answer": answer, "code": code}[job](Path(rest[0]), Path(rest[1]))
