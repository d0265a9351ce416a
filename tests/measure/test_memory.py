"""Memory: against an allocation of known size, and on systems that say less or nothing."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import psutil
import pytest

from edgeopt.measure import memory
from edgeopt.measure.memory import MemoryMeter

MB = 1 << 20

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@needs_proc
def test_a_peak_that_is_gone_again_is_seen() -> None:
    meter = MemoryMeter()
    block = mmap.mmap(-1, 64 * MB)
    block.write(b"x" * (64 * MB))
    block.close()
    use = meter.stop()
    assert use is not None
    assert 60 * MB < use.peak < 200 * MB
    assert use.how == "VmHWM"
    if use.anonymous is not None:
        assert use.anonymous < 60 * MB


@needs_proc
def test_a_peak_from_before_is_not_ours() -> None:
    block = bytearray(64 * MB)
    block[::4096] = b"x" * len(block[::4096])
    del block
    use = MemoryMeter().stop()
    assert use is not None
    assert use.peak < 32 * MB


@needs_proc
def test_mapped_pages_are_told_from_heap(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (32 * MB))
    with path.open("rb") as stream:
        meter = MemoryMeter()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert sum(mapped[i] for i in range(0, len(mapped), 4096)) > 0
            use = meter.stop()
    assert use is not None
    if use.mapped is None:
        pytest.skip("no smaps_rollup here")
    assert use.mapped >= 30 * MB
    assert use.anonymous is not None
    assert use.anonymous < 16 * MB


def fake_proc(folder: Path, hwm: int, rss: int, rollup: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "status").write_text(f"Name:\tpython\nVmHWM:\t{hwm} kB\nVmRSS:\t{rss} kB\n")
    if rollup is not None:
        (folder / "smaps_rollup").write_text(rollup)
    return folder


def test_without_a_reset_only_what_exceeds_the_old_peak_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "reset_peak", lambda proc: False)
    proc = fake_proc(tmp_path / "self", hwm=1000, rss=400)
    meter = MemoryMeter(proc)
    fake_proc(proc, hwm=1500, rss=600)
    use = meter.stop()
    assert use is not None
    assert (use.peak, use.anonymous, use.mapped) == (500 * 1024, None, None)


def test_a_reset_that_is_refused_is_noticed(tmp_path: Path) -> None:
    assert not memory.reset_peak(tmp_path / "nowhere")


def test_rollup_splits_heap_from_files(tmp_path: Path) -> None:
    proc = fake_proc(
        tmp_path / "self", 1000, 400, "5-7 ---p [rollup]\nRss: 400 kB\nAnonymous: 100 kB\n"
    )
    meter = MemoryMeter(proc)
    fake_proc(proc, 1200, 700, "5-7 ---p [rollup]\nRss: 700 kB\nAnonymous: 150 kB\n")
    use = meter.stop()
    assert use is not None
    assert (use.anonymous, use.mapped) == (50 * 1024, 250 * 1024)


def test_a_system_that_says_nothing_gives_none_not_zero(tmp_path: Path) -> None:
    empty = tmp_path / "self"
    empty.mkdir()
    assert MemoryMeter(empty).stop() is None


def test_without_proc_the_present_size_is_labelled_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()  # what earlier tests left behind must not leave while this is measured
    meter = MemoryMeter(tmp_path / "none")
    block = bytearray(b"x") * (128 * MB)
    use = meter.stop()
    del block
    assert use is not None
    assert use.how == "resident size at the end"
    assert use.peak > 30 * MB

    class Windows:
        def memory_info(self) -> object:
            return type("info", (), {"rss": 5, "peak_wset": 9})()

    monkeypatch.setattr(psutil, "Process", Windows)
    use = MemoryMeter(tmp_path / "none").stop()
    assert use is not None
    assert use.how == "peak working set"

    class Denied:
        def memory_info(self) -> object:
            raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", Denied)
    assert MemoryMeter(tmp_path / "none").stop() is None
