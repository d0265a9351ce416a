"""Footprint: in fresh processes, against allocations and mapped files of known size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgeopt import errors
from edgeopt.measure import footprint
from edgeopt.measure.footprint import Footprint, FootprintReading

MB = 1 << 20

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")

#: Begins a footprint on the file named, does what it is told, and says what was read.
CHILD = """
import dataclasses, json, mmap, resource, sys
from pathlib import Path
from edgeopt.measure.footprint import Footprint
from edgeopt.measure.sysfiles import kilobytes

def touch(pages):
    return sum(pages[i] for i in range(0, len(pages), 4096))

file = Path(sys.argv[1]) if len(sys.argv) > 1 else None
stream = file.open("rb") if file else None
footprint = Footprint.begin([file] if file else [])
BODY
found = dataclasses.asdict(footprint.read())
# The kernel's own sum, from another file than the parts are read from.
found["seen"] = kilobytes(Path("/proc/self/smaps_rollup"))["Rss"]
found["maxrss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(found))
"""

#: Touches as many MB as it is told, then starts a child of its own.
PARENT = """
import subprocess, sys
block = bytearray(int(sys.argv[1]) << 20)
block[::4096] = b"x" * len(block[::4096])
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[2]]).returncode)
"""


def run(*command: str) -> dict[str, int]:
    root = str(Path(errors.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", *command],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def child(body: str, *files: Path) -> dict[str, int]:
    return run(CHILD.replace("BODY", body), *map(str, files))


def assert_parts_sum_to_rss(found: dict[str, int]) -> None:
    parts = found["baseline"] + found["anonymous"] + found["mapped"] + found["other"]
    assert abs(parts - found["seen"]) <= 0.01 * found["seen"]


@needs_proc
def test_a_large_parent_does_not_shift_its_childs_peak() -> None:
    """Not with the peak set back at the baseline, nor (VmHWM being the process's own) without."""
    body = "touch(bytearray(8 << 20)); footprint._reset = False"
    script = CHILD.replace("BODY", body)
    small, large = run(PARENT, "1", script), run(PARENT, "600", script)
    assert abs(large["peak"] - small["peak"]) < MB
    assert large["peak"] < 100 * MB
    # What this guards against: the counter that everybody reads does shift.
    assert large["maxrss"] - small["maxrss"] > 500 * MB


@needs_proc
def test_what_is_added_is_a_peak_that_may_be_gone_again_and_none_from_before() -> None:
    block = "block = mmap.mmap(-1, 64 << 20); block.write(b'x' * (64 << 20)); block.close()"
    assert 120 * MB < child(block)["added"] < 160 * MB  # the bytes, and the mapping they go to
    before = CHILD.replace("footprint =", f"{block}\nfootprint =").replace("BODY", "")
    assert run(before)["added"] < 16 * MB


@needs_proc
def test_a_mapped_model_is_mapped_and_not_anonymous(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    with path.open("wb") as stream:
        for _ in range(200):
            stream.write(b"x" * MB)
    # Just written: its pages are still dirty, and are the file's all the same.
    found = child(
        "pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ); touch(pages)", path
    )
    assert abs(found["mapped"] - 200 * MB) <= 4 * MB
    assert found["anonymous"] < 5 * MB
    assert found["other"] < 5 * MB
    assert found["peak"] >= found["rss"] > 200 * MB
    assert found["pss"] > 200 * MB
    assert_parts_sum_to_rss(found)


@needs_proc
def test_heap_and_copies_of_mapped_pages_are_anonymous(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * (32 * MB))
    found = child(
        "pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY); touch(pages)\n"
        + "for i in range(0, 8 << 20, 4096): pages[i] = 1\n"
        + "heap = bytearray(16 << 20); heap[::4096] = bytes(len(heap[::4096]))\n"
        + "shared = mmap.mmap(-1, 4 << 20); shared.write(b'x' * (4 << 20))",
        path,
    )
    assert abs(found["mapped"] - 24 * MB) < MB
    assert 28 * MB <= found["anonymous"] < 32 * MB
    assert_parts_sum_to_rss(found)


@needs_proc
def test_a_hard_link_a_symlink_and_a_removed_file_are_still_the_models(tmp_path: Path) -> None:
    path, link, soft = (tmp_path / name for name in ("a b.bin", "hard", "soft"))
    path.write_bytes(b"x" * (4 * MB))
    link.hardlink_to(path)
    soft.symlink_to(path)
    opened = "pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ); touch(pages)"
    assert child(opened, soft)["mapped"] == 4 * MB
    found = child(opened + f"\nPath({str(link)!r}).unlink()", link)
    assert found["mapped"] == 4 * MB


@needs_proc
def test_other_files_are_not_the_models(tmp_path: Path) -> None:
    path, library = tmp_path / "model", tmp_path / "library"
    path.write_bytes(b"x" * MB)
    library.write_bytes(b"x" * (8 * MB))
    found = child(
        f"library = Path({str(library)!r}).open('rb')\n"
        "pages = mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ); touch(pages)",
        path,
    )
    assert found["mapped"] == 0
    assert 8 * MB <= found["other"] < 10 * MB


MAPPING = "00400000-00500000 r--p 00000000 {device} {inode} {path}\n"


def fake_proc(folder: Path, *maps: tuple[str, int, int], hwm: int = 1000) -> Path:
    """Mappings as (path, kB resident, kB of them anonymous)."""
    folder.mkdir(exist_ok=True)
    (folder / "status").write_text(f"VmHWM:\t{hwm} kB\nVmRSS:\t{sum(m[1] for m in maps)} kB\n")
    (folder / "smaps").write_text(
        "".join(
            MAPPING.format(device="fe:00", inode=7 if path else 0, path=path)
            + f"Size: 9999 kB\nRss: {rss} kB\nPss: {rss // 2} kB\nAnonymous: {anonymous} kB\n"
            + "Swap: 3 kB\nVmFlags: rd mr mw me\n"
            for path, rss, anonymous in maps
        )
    )
    return folder


def test_what_the_baseline_gave_back_is_no_negative_growth(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path / "self", ("", 300, 300), ("/lib/x.so", 200, 10))
    meter = Footprint.begin([], proc)
    fake_proc(proc, ("", 100, 100), ("/lib/x.so", 250, 10), ("/dev/shm/y", 40, 0), hwm=700)
    found = meter.read()
    assert found == FootprintReading(
        baseline=(150 + 190) * 1024,
        peak=700 * 1024,
        added=200 * 1024,
        rss=390 * 1024,
        anonymous=0,
        mapped=0,
        other=50 * 1024,
        pss=(50 + 125 + 20) * 1024,
        swapped=9 * 1024,
        how="VmHWM since the baseline",
    )


def test_a_peak_that_could_not_be_set_back_is_labelled(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path / "self", ("", 2000, 2000))
    (proc / "clear_refs").mkdir()  # cannot be written
    found = Footprint.begin([], proc).read()
    assert found.how == "VmHWM since the process began"
    assert found.peak == found.rss == 2000 * 1024  # a counter that lags behind the pages
    meter = Footprint.begin([], proc)
    fake_proc(proc, ("", 1200, 1200), hwm=1500)
    assert meter.read().added == 500 * 1024  # what exceeds the old peak, and no more


def test_a_kernel_without_smaps_gives_what_status_says(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path / "self", ("", 500, 500))
    (proc / "smaps").unlink()
    found = Footprint.begin([], proc).read()
    assert (found.peak, found.rss) == (1000 * 1024, 500 * 1024)
    assert found.baseline is found.anonymous is found.mapped is found.other is found.pss is None


def test_without_proc_psutil_says_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([(10, None), (15, None), (10, 30), (8, 30)])

    class Process:
        def memory_info(self) -> object:
            rss, peak = next(sizes)
            return type("info", (), {"rss": rss, **({"peak_wset": peak} if peak else {})})()

    monkeypatch.setattr(psutil, "Process", Process)
    found = Footprint.begin([tmp_path / "model"], tmp_path / "none").read()
    assert found == FootprintReading(baseline=10, added=5, rss=15, how="resident size")
    found = Footprint.begin([], tmp_path / "none").read()
    assert (found.baseline, found.peak, found.added, found.rss) == (8, 30, 0, 8)

    class Denied:
        def memory_info(self) -> object:
            raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", Denied)
    assert Footprint.begin([], tmp_path / "none").read().rss is None
    monkeypatch.setitem(sys.modules, "psutil", None)
    found = Footprint.begin([], tmp_path / "none").read()
    assert (found.rss, found.peak) == (None, None)
    assert "no psutil" in found.how
    assert footprint._inode(str(tmp_path / "missing")) is None
