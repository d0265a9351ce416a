"""Memory as ``edgeopt bench`` reports it, where the truth is known beforehand."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import ROOT

MB = 1 << 20
#: Rows of 16 bytes, 256 of them a page: touching one row of each page makes all pages resident.
_COLUMNS, _PAGE = 4, 4096

#: A bench called by a process that holds MB of its own.
_PARENT = """
import json, sys
from edgeopt.verbs.bench import bench
held = bytearray(int(sys.argv[1]) << 20)
held[::4096] = b"x" * len(held[::4096])
found = bench([sys.argv[2]], batch=[1], seq=16, seconds=1.0, cold=False)
peaks = next(m.values for m in found.measurements if m.metric == "memory.peak")
held_kb = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
print(json.dumps({"peaks": [p[0] for p in peaks], "held": int(held_kb.split()[1]) * 1024}))
"""

#: A bench's worker step by step, and the kernel's own sum of what is resident just afterwards.
_WORKER = """
import json, sys
from pathlib import Path
import numpy as np
from edgeopt.measure.bench_worker import BenchWorker
from edgeopt.measure.sysfiles import kilobytes
from edgeopt.runtimes.engine import Case
path, files = Path(sys.argv[1]), tuple(Path(f) for f in sys.argv[2:-1])
feed = dict(np.load(sys.argv[-1])) if sys.argv[-1] else {}
runtime = "onnxruntime" if path.suffix == ".onnx" else "weights"
workload = "inference" if feed else "read"
case = Case(runtime=runtime, path=path, files=files, device="cpu", threads=1, workload=workload)
worker = BenchWorker(case, feed, lambda doing: None)
worker.imports({})
if worker.load({"cold": False})["repeats"]:
    worker.first({})
    worker.turn({"seconds": 0.2, "limit": 50})
found = worker.memory({})["memory"]
found["kernel"] = kilobytes(Path("/proc/self/smaps_rollup"))["Rss"]
print(json.dumps(found))
"""


def _child(*command: str) -> dict[str, Any]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", *command], capture_output=True, text=True, check=False, env=env
    )
    if done.returncode != 0:
        raise SystemExit(f"measuring memory failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def peaks_of_parents(model: Path, large_mb: int = 600) -> dict[str, dict[str, Any]]:
    """The workers' peaks (bytes, one a process) of a bench called by a small and a large parent."""
    return {
        name: _child(_PARENT, str(size), str(model))
        for name, size in (("small", 1), ("large", large_mb))
    }


def shift(parents: Mapping[str, Mapping[str, Any]]) -> float:
    """Bytes by which the median peak moves with the parent's size."""
    small, large = (statistics.median(parents[name]["peaks"]) for name in ("small", "large"))
    return abs(large - small)


def write_mapped(folder: Path, size: int = 200 * MB) -> dict[str, tuple[Path, list[Path], Path]]:
    """Models of ``size`` bytes that their runtimes map: the path, its files, its feed.

    An ONNX file with its table outside, of which one row a page is looked up (a table that is
    multiplied with would be copied for the kernels, which is not what is asked here); and a
    safetensors file, every byte of which is read.
    """
    import onnx
    from onnx import TensorProto, helper
    from safetensors.numpy import save_file

    rows = size // (4 * _COLUMNS)
    table = np.random.default_rng(0).standard_normal((rows, _COLUMNS)).astype(np.float32)
    weights = folder / "table.safetensors"
    save_file({"table": table}, weights)
    data, model, feed = folder / "table.bin", folder / "table.onnx", folder / "feed.npz"
    table.tofile(data)
    tensor = TensorProto(
        name="table", dims=table.shape, data_type=TensorProto.FLOAT, data_location=1
    )
    for key, value in (("location", data.name), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "rows"], ["found"])],
        "lookup",
        [helper.make_tensor_value_info("rows", TensorProto.INT64, ["count"])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["count", _COLUMNS])],
        [tensor],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), model)
    np.savez(feed, rows=np.arange(0, rows, _PAGE // (4 * _COLUMNS), dtype=np.int64))
    return {
        "ONNX, external data": (model, [model, data], feed),
        "safetensors": (weights, [weights], Path()),
    }


def kinds(path: Path, files: list[Path], feed: Path) -> dict[str, Any]:
    """The footprint of a worker that has ``path`` open, and ``kernel``: the kernel's own sum."""
    given = str(feed) if feed.name else ""
    return _child(_WORKER, str(path), *map(str, files), given)
