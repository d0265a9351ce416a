"""Eviction: really evicted, and never claimed where it was not."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from edgeopt import errors
from edgeopt.errors import SourceError
from edgeopt.measure import cold
from edgeopt.measure.cold import Eviction, evict, file_system, resident_bytes, warm

MB = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are counted on Linux")


def model(path: Path, size: int = 4 * MB + 123) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(size))
    return path


def on_disk(path: Path) -> bool:
    return file_system(path) in ("ext4", "xfs", "btrfs", "overlay", "f2fs")


def test_a_just_written_file_goes_and_comes_back(tmp_path: Path) -> None:
    if not on_disk(tmp_path):
        pytest.skip(f"temporary files lie on {file_system(tmp_path)}")
    first, second = model(tmp_path / "a b.onnx"), model(tmp_path / "a.onnx.data", 3 * MB)
    size = 7 * MB + 123
    found = evict([first, second, first])
    assert found == Eviction(True, 0, size, "", before=size)
    assert warm([first, second]) == size
    assert resident_bytes(first) == 4 * MB + 123
    with first.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, MB, os.POSIX_FADV_DONTNEED)
    part = resident_bytes(first)
    assert part is not None
    assert abs(part - (3 * MB + 123)) <= MB // 2


def test_pages_that_are_mapped_stay_and_it_is_said_whose(tmp_path: Path) -> None:
    path = model(tmp_path / "model.gguf")
    if not on_disk(tmp_path):
        pytest.skip(f"temporary files lie on {file_system(tmp_path)}")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert sum(held[i] for i in range(0, len(held), 4096)) > 0
        found = evict([path])
        assert not found.verified
        assert found.resident
        assert found.reason == f"{found.resident} bytes stay in memory: this process maps the file"
    assert evict([path]).verified


def test_another_process_that_maps_the_file_is_named(tmp_path: Path) -> None:
    path = model(tmp_path / "model.gguf")
    if not on_disk(tmp_path):
        pytest.skip(f"temporary files lie on {file_system(tmp_path)}")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import mmap, sys; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, "
            "access=mmap.ACCESS_READ); m[:]; print('held', flush=True); sys.stdin.read()",
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    found = evict([path])
    holder.communicate()
    assert not found.verified
    assert found.reason.endswith(f"process {holder.pid} maps the file")


def test_a_file_in_memory_cannot_be_cold() -> None:
    folder = Path("/dev/shm")
    if not folder.is_dir() or file_system(folder) != "tmpfs":
        pytest.skip("no tmpfs here")
    path = folder / f"edgeopt-test-{os.getpid()}"
    try:
        found = evict([model(path)])
    finally:
        path.unlink()
    assert not found.verified
    assert found.reason == f"{path.name} lies on tmpfs, which is memory"
    assert found.resident == found.total == 4 * MB + 123


@pytest.mark.parametrize("kind", ["zfs", "fuse.sshfs", "virtiofs"])
def test_a_file_system_with_a_cache_of_its_own_is_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(cold, "file_system", lambda path: kind)
    found = evict([model(tmp_path / "model")])
    assert not found.verified
    assert found.reason.startswith(f"model lies on {kind}: ")


def test_who_may_not_ask_is_told_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux would say "all resident" to them, which must not be taken for a fact."""
    path = model(tmp_path / "model")
    warm([path])
    monkeypatch.setattr(cold, "_may_ask", lambda path: False)
    assert resident_bytes(path) is None
    monkeypatch.setattr(cold, "_advise_away", lambda path: None)
    found = evict([path])
    assert (found.verified, found.resident, found.before) == (False, None, None)
    assert found.reason.startswith("mincore tells only")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs two users")
def test_the_kernels_own_answer_to_a_stranger() -> None:
    """Another user's process, really: whatever the kernel says, nothing false is claimed."""
    script = (
        "import os, sys; from pathlib import Path; from edgeopt.measure.cold import *\n"
        "os.setuid(65534); print(resident_bytes(Path(sys.argv[1])))"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # pytest's own folders are closed to other users
        path = model(folder / "model")
        path.chmod(0o644)
        evict([path])
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)],
            env={**os.environ, "PYTHONPATH": str(Path(errors.__file__).parent.parent)},
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.strip() in ("None", "0")


def test_without_mincore_or_fadvise_the_reason_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(tmp_path / "model")
    monkeypatch.setattr(cold, "_mincore", lambda: None)
    monkeypatch.setattr(cold, "file_system", lambda path: "ext4")
    found = evict([path])
    assert (found.verified, found.resident) == (False, None)
    assert "no mincore" in found.reason
    monkeypatch.setattr(cold, "_mincore", lambda: lambda *args: -1)
    assert resident_bytes(path) is None
    monkeypatch.delattr(os, "posix_fadvise")
    assert "no posix_fadvise" in evict([path]).reason


def test_files_that_are_missing_empty_or_unreadable(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    found = evict([missing])
    assert not found.verified
    assert found.reason == f"{missing}: No such file or directory"
    with pytest.raises(SourceError, match="No such file"):
        warm([missing])
    (tmp_path / "empty").write_bytes(b"")
    assert resident_bytes(tmp_path / "empty") == 0


def test_windows_of_a_large_file_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model(tmp_path / "model", 5 * MB + 1)
    warm([path])
    monkeypatch.setattr(cold, "_WINDOW", 2 * MB)
    assert resident_bytes(path) == 5 * MB + 1


def test_the_file_system_is_found_by_device(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    device = tmp_path.stat().st_dev
    (tmp_path / "proc/self/mountinfo").write_text(
        "21 1 0:99 / /a rw - proc proc rw\n"
        f"22 1 {os.major(device)}:{os.minor(device)} / /b rw shared:1 - btrfs /dev/sda rw\n"
    )
    assert file_system(tmp_path, tmp_path) == "btrfs"
    assert file_system(tmp_path, tmp_path / "none") == ""
