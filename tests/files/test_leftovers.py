"""What a killed run left is gone after the next one; what anybody else has stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgeopt.files import leftovers
from edgeopt.files.atomic import writing, writing_folder, writing_group

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from edgeopt.files.atomic import writing, writing_folder, writing_group
    from edgeopt.targets.keep import scratch
    out = Path(sys.argv[1])
    how = sys.argv[2]
    if how == "file":
        block = writing(out / "m.onnx")
    elif how == "group":
        block = writing_group([out / "m.onnx.plan.json", out / "m.onnx"], named=True)
    elif how == "folder":
        block = writing_folder(out / "m")
    else:
        block = scratch()
    with block as made:
        if how == "scratch":
            (made / "copy.onnx").write_bytes(b"x" * 99)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(folder: Path, how: str) -> list[Path]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), how],
        env={**os.environ, "TMPDIR": str(folder)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    left = list(folder.iterdir())
    assert left, "the kill left nothing: nothing is tested"
    return left


@pytest.mark.parametrize("how", ["file", "group", "folder", "scratch"])
def test_the_next_run_removes_what_a_killed_one_left(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, how)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if how == "scratch":
        leftovers.clear(tmp_path, "edgeopt-")
    else:
        with writing(tmp_path / "other.onnx") as made:
            made.write_bytes(b"1")
        (tmp_path / "other.onnx").unlink()
    assert list(tmp_path.iterdir()) == []


def test_what_others_have_stays(tmp_path: Path) -> None:
    """A run in progress, another machine's, other names, and what a link leads to."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"1")
    mine = leftovers.owned_name()
    host, boot = mine[:6], mine[6:12]
    dead = f"{host}{boot}-{2**22 + 1}-7-{'0' * 12}"
    other = f"{'f' * 6}{boot}-1-7-{'0' * 12}"
    for name in (f".m.{mine}.tmp", f".m.{other}.tmp", f"m.{dead}.tmp", ".m.0123456789ab.tmp"):
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / f".link.{dead}.tmp").symlink_to(kept)
    (tmp_path / f".gone.{dead}.tmp.onnx").write_bytes(b"1")
    before = set(tmp_path.iterdir())
    leftovers.clear(tmp_path, ".", ".tmp")
    gone = {path.name.split(".")[1] for path in before - set(tmp_path.iterdir())}
    assert gone == {"link", "gone"}
    assert (kept / "file").exists()


def test_a_process_number_that_is_used_again(tmp_path: Path) -> None:
    """Alive, and not the owner: it began at another time."""
    mine = leftovers.owned_name()
    machine, pid, start, rest = mine.split("-")
    again = tmp_path / f".m.{machine}-{pid}-{int(start) + 1}-{rest}.tmp"
    again.write_bytes(b"1")
    leftovers.clear(tmp_path, ".", ".tmp")
    assert not again.exists()
    with writing_folder(tmp_path / "f") as folder:
        (folder / "x").write_bytes(b"1")
    with writing_group([tmp_path / "a", tmp_path / "b"]) as both:
        for path in both:
            path.write_bytes(b"1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "f"]
