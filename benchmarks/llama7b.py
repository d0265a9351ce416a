"""The headline: LLaMA-7B from 13 GB to 3.9 GB, opened 100 times faster, in half the memory.

    python -m benchmarks.llama7b --folder WORK

Random weights of LLaMA-7B's true shapes in FP16 (13.5 GB, in shards, as it was published), made
into Q4_0 by ``edgeopt quantize``. Then the file's two ways into memory side by side: read into the
heap, as programs did, and mapped, as ``load_weights`` does. Needs 20 GB of disk and some minutes,
so it is run by hand; the result is committed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from models.random_llama import SHAPES, make

from benchmarks import _common as common
from benchmarks._processes import run

ROUNDS = 5
PROCESSES = 4
_PAGE = mmap.PAGESIZE


# ---------------------------------------------------------------------------------------------
# what a child process does


def read_into_heap(path: Path) -> list[Any]:
    """Every tensor's bytes in memory of its own, the way of 2022."""
    from edgeopt.files.gguf import read_header

    header = read_header(path)
    held = []
    with path.open("rb", buffering=0) as stream:
        for info in header.tensors:
            stream.seek(header.data_offset + info.offset)
            block = np.empty(info.nbytes, np.uint8)
            view, at = memoryview(block.data), 0
            while at < info.nbytes:
                at += stream.readinto(view[at:])
            held.append(block)
    return held


def touch(weights: Any) -> int:
    """One byte of every page of every tensor, through the mapping; returns their sum."""
    total = 0
    for weight in weights.source.weights:
        raw = weight.array().reshape(-1).view(np.uint8)
        total += int(raw[::_PAGE].sum(dtype=np.int64))
    return total


def child(what: str, path: Path) -> dict[str, Any]:
    """One measurement in a fresh process; times in seconds, memory in bytes."""
    import edgeopt
    from edgeopt.files import gguf  # noqa: F401  both ways have it imported

    edgeopt.load_weights  # noqa: B018  resolved before the clock starts
    began = time.perf_counter()
    held: Any = None
    said: dict[str, Any] = {}
    if what == "read":
        held = read_into_heap(path)
    elif what == "open":
        held = edgeopt.load_weights(path)
        said["tensors"] = len(held)
    elif what == "touch":
        held = edgeopt.load_weights(path)
        touch(held)
    else:
        from edgeopt.runtimes.llamacpp import LlamaSession

        mapped, repack = {"llama-mmap": (True, False), "llama-read": (False, False),
                          "llama-default": (True, True)}[what]  # fmt: skip
        held = LlamaSession.open(path, threads=2, context=64, mmap=mapped, repack=repack)
        said["open_s"] = time.perf_counter() - began
        held.generate([1], 1)
        said["session"] = {k: held.info()[k] for k in ("mmap", "repack", "pages_shared")}
    said["seconds"] = time.perf_counter() - began
    said |= memory()
    print(json.dumps(said), flush=True)
    if not sys.stdin.isatty():
        sys.stdin.readline()  # stay, so that the parent can look at memory that is shared
    del held
    return said


def memory() -> dict[str, int]:
    """This process's memory, in bytes."""
    fields = {}
    for file in ("/proc/self/status", "/proc/self/smaps_rollup"):
        for line in Path(file).read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("RssAnon", "RssFile", "Pss"):
                fields[name] = int(rest.split()[0]) * 1024
    return {"anon": fields["RssAnon"], "file": fields["RssFile"], "pss": fields["Pss"]}


# ---------------------------------------------------------------------------------------------
# what the parent does


class ChildDied(Exception):
    """A child process ended without an answer."""


def started(what: str, path: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.llama7b", "--child", what, str(path)]
    process = subprocess.Popen(
        command, cwd=common.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ChildDied(f"the child for {what!r} ended with {process.wait()}")
    return process, json.loads(line)


def finish(process: subprocess.Popen[str]) -> None:
    process.communicate("\n")


def in_cache(path: Path) -> int:
    """Bytes of a file that lie in the page cache (mincore)."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = path.stat().st_size
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        address = np.frombuffer(mapped, np.uint8).ctypes.data
        seen = (ctypes.c_ubyte * (-(-size // _PAGE)))()
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), seen):
            raise OSError(ctypes.get_errno(), "mincore")
    return int((np.frombuffer(seen, np.uint8) & 1).sum()) * _PAGE


def evict(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(path: Path) -> dict[str, Any]:
    """Each way ROUNDS times in turn, the file in the page cache; raw values."""
    ways = ("read", "open", "touch", "llama-read", "llama-mmap", "llama-default")
    subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)
    found: dict[str, Any] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way in list(found):
            try:
                process, said = started(way, path)
            except ChildDied as died:
                # llama.cpp's repacking uses instructions that some virtual machines announce
                # and do not have.
                print(died, flush=True)
                del found[way]
                continue
            finish(process)
            found[way].append(said)
    return found


def heap_and_cache(path: Path) -> dict[str, dict[str, int]]:
    """Each way from an empty cache: what the process holds, and what the page cache holds."""
    found = {}
    for way in ("read", "touch"):
        evict(path)
        before = in_cache(path)
        process, said = started(way, path)
        found[way] = {"cache_before": before, "anon": said["anon"], "cache": in_cache(path)}
        finish(process)
    return found


def shared(path: Path) -> dict[str, Any]:
    """PSS of one process that has touched every page, and of four at once."""
    process, said = started("touch", path)
    finish(process)
    children = [started("touch", path) for _ in range(PROCESSES)]
    together = []
    for process, _ in children:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        line = next(line for line in rollup if line.startswith("Pss:"))
        together.append(int(line.split()[1]) * 1024)
    for process, _ in children:
        finish(process)
    return {"one": said["pss"], "together": together}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(asked.child[0], Path(asked.child[1]))
        return
    if asked.folder is None:
        print("skipped: needs 20 GB of disk; run it by hand with --folder WORK")
        return
    os.environ.setdefault("PYTHONPATH", str(common.ROOT / "src"))
    folder: Path = asked.folder
    model, out = folder / "llama-7b", folder / "llama-7b-Q4_0.gguf"
    if not (model / "model.safetensors.index.json").exists():
        make(model, SHAPES["llama-7b"], shards=3)
    source_bytes = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "edgeopt", "quantize", str(model), "-o", str(out)]
    command += ["--to", "gguf", "--type", "Q4_0", "--prove", "none"]
    quantizing = run(command, cwd=common.ROOT)
    loads, cached, processes = loading(out), heap_and_cache(out), shared(out)
    document = {
        "machine": common.machine(["gguf", "llama-cpp-python", "numba", "numpy"]),
        "source_bytes": source_bytes,
        "artifact_bytes": out.stat().st_size,
        "quantizing": {"seconds": quantizing.seconds, "peak_anon": quantizing.peak_anon},
        "loading": loads,
        "heap_and_cache": cached,
        "processes": processes,
    }
    goals = goals_of(document)
    document["goals"] = [goal.to_json() for goal in goals]
    common.write_results(common.RESULTS, "llama7b", document, page(document, goals))


def goals_of(document: dict[str, Any]) -> list[common.Goal]:
    seconds = _medians(document)
    cached, processes = document["heap_and_cache"], document["processes"]
    both = {way: one["anon"] + one["cache"] for way, one in cached.items()}
    return [
        common.Goal("file, GB", document["artifact_bytes"] / 1e9, 3.9, True),
        common.Goal("anonymous MB at peak while quantizing",
                    document["quantizing"]["peak_anon"] / 1e6, 300, True),
        common.Goal("read / open, times", seconds["read"] / seconds["open"], 100, False),
        common.Goal("heap and page cache, mapped / read", both["touch"] / both["read"], 0.51, True),
        common.Goal(f"PSS of {PROCESSES} processes / one",
                    sum(processes["together"]) / processes["one"], 1.2, True),
    ]  # fmt: skip


def _medians(document: dict[str, Any]) -> dict[str, float]:
    loads = document["loading"]
    return {way: statistics.median(each["seconds"] for each in loads[way]) for way in loads}


_SAID = {
    "read": "read into the heap",
    "open": "`load_weights`: open, every tensor ready to be used",
    "touch": "`load_weights`, then first touch of every page",
    "llama-read": "llama.cpp, read, to the first token",
    "llama-mmap": "llama.cpp, mapped, no repacking, to the first token",
    "llama-default": "llama.cpp's defaults (mapped, repacking), to the first token",
}


def page(document: dict[str, Any], goals: list[common.Goal]) -> list[str]:
    loads, seconds = document["loading"], _medians(document)
    rows = []
    for way, runs in loads.items():
        opened = [each["open_s"] for each in runs if "open_s" in each]
        rows.append(
            (
                _SAID[way],
                f"{statistics.median(opened) * 1e3:.0f}" if opened else "",
                f"{seconds[way] * 1e3:.4g}",
                f"{statistics.median(each['anon'] for each in runs) / 1e6:.0f}",
                f"{statistics.median(each['file'] for each in runs) / 1e6:.0f}",
            )
        )
    cached = [
        (
            _SAID[way],
            f"{one['anon'] / 1e9:.2f}",
            f"{one['cache'] / 1e9:.2f}",
            f"{(one['anon'] + one['cache']) / 1e9:.2f}",
        )
        for way, one in document["heap_and_cache"].items()
    ]
    quantizing = document["quantizing"]
    return [
        "# LLaMA-7B's shapes, random weights: FP16 folder to Q4_0",
        "",
        f"{document['source_bytes'] / 1e9:.2f} GB of FP16 became "
        f"{document['artifact_bytes'] / 1e9:.2f} GB in {quantizing['seconds']:.1f} s "
        "(whole command, without proof), at most "
        f"{quantizing['peak_anon'] / 1e6:.0f} MB of anonymous memory.",
        "",
        f"## Loading, warm page cache, fresh processes in turn, median of {ROUNDS}",
        "",
        *common.table(("way", "session open, ms", "ms", "anonymous MB", "mapped MB"), rows),
        "Opening a mapping reads nothing but the header; what is not touched is not loaded. A "
        "dense model touches every page at its first token, so the line with first touch is what a "
        "program waits for when it needs all of it.",
        "",
        "## Memory from an empty page cache",
        "",
        *common.table(("way", "heap GB", "page cache GB", "together GB"), cached),
        "One process that has touched everything: PSS "
        f"{document['processes']['one'] / 1e9:.2f} GB; "
        f"{PROCESSES} at once, summed: {sum(document['processes']['together']) / 1e9:.2f} GB.",
        "",
        *common.goals_table(goals),
        *common.machine_list(document["machine"]),
    ]


if __name__ == "__main__":
    main()
