"""The other machine's side, spoken to in this process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.measure.remote import boot, keeper
from edgeopt.measure.remote.bundle import make_bundle
from edgeopt.measure.remote.host import ENTRIES


class Side:
    """A keeper in a thread, its pipes in our hands."""

    def __init__(self, folder: Path) -> None:
        down, up = os.pipe(), os.pipe()
        self.folder = folder
        self.write = os.fdopen(down[1], "wb", buffering=0)
        self.read = os.fdopen(up[0], "rb")
        self.keeper = keeper.Keeper(folder, os.fdopen(down[0], "rb"), os.fdopen(up[1], "wb"))
        threading.Thread(target=self.keeper.serve, daemon=True).start()

    def say(self, message: Mapping[str, Any], payload: bytes = b"") -> None:
        self.write.write(json.dumps(message).encode() + b"\n" + payload)

    def hear(self) -> dict[str, Any]:
        line = self.read.readline()
        assert line.startswith(b"edgeopt ")
        message: dict[str, Any] = json.loads(line[8:])
        return message

    def put(self, name: str, data: bytes, digest: str | None = None) -> dict[str, Any]:
        told = digest or hashlib.sha256(data).hexdigest()
        last = json.dumps({"sha256": told}).encode() + b"\n"
        self.say({"do": "put", "name": name, "size": len(data)}, data + last)
        return self.hear()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        if threading.current_thread() is threading.main_thread():
            raise SystemExit(code)
        threading.Event().wait()  # nothing of this thread happens any more

    monkeypatch.setattr(keeper.os, "_exit", leave)
    monkeypatch.setattr(keeper, "_end_children", lambda: None)
    monkeypatch.setattr(keeper, "_LAST_WORD", 1000.0)
    return codes


def ended(codes: list[int]) -> None:
    end = time.monotonic() + 10
    while not codes and time.monotonic() < end:
        time.sleep(0.01)
    assert codes


@pytest.fixture
def side(tmp_path: Path, exits: list[int]) -> Iterator[Side]:
    (tmp_path / "ours").mkdir()
    side = Side(tmp_path / "ours")
    yield side
    side.write.close()
    ended(exits)
    assert not side.folder.exists()


def test_files(side: Side) -> None:
    answer = side.put("a/b", b"\n{}" * 1000)["result"]
    assert Path(answer["path"]).read_bytes() == b"\n{}" * 1000
    assert answer["free"] > 0
    assert "arrived damaged" in side.put("c", b"x", "0" * 64)["error"]["message"]
    assert not (side.folder / "c").exists()
    (side.folder / "full").symlink_to("/dev/full")
    assert side.put("full", bytes(9))["error"]["type"] == "OutputError"
    assert "File exists" in side.put("a/b/c", b"x")["error"]["message"]
    side.say({"do": "drop", "names": ["a/b", "not there"]})
    assert side.hear()["result"]["free"] > 0
    assert not (side.folder / "a" / "b").exists()


def test_requests(side: Side, tmp_path: Path) -> None:
    side.say({"do": "ping"})
    assert side.hear() == {"pong": True}
    side.say({"do": "environment", "threads": 3})
    assert side.hear()["result"]["threads"] == 3
    side.say({"do": "resolve", "device": "cpu", "runtime": "onnxruntime"})
    assert side.hear()["result"] == "cpu"
    np.save(tmp_path / "sample.npy", np.ones((1, 16), np.float32))
    job = {"kind": "score", "source": "/none.onnx", "candidates": {}, "threads": 1}
    side.say(
        {
            "do": "job",
            "folder": "samples/0",
            "number": 4,
            "samples": {"count": 0, "names": []},
            "job": job,
            "silence": 60,
        }
    )
    answer = side.hear()["result"]
    assert answer["error"]["type"] == "SourceError"
    assert "/none.onnx: no such file" in answer["error"]["message"]
    settings = {"processes": 1, "seconds": 0.0}
    side.say({"do": "bench", "trials": [], "settings": settings})
    assert side.hear()["result"]["measurements"] == []


def test_a_request_that_fails(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(place: object, request: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeper, "REQUESTS", {"full": full})
    side.say({"do": "full"})
    assert side.hear()["error"] == {
        "type": "OutputError",
        "message": "No space left on device",
        "subject": "",
    }


def test_progress_is_not_said_all_the_time(side: Side) -> None:
    side.keeper._spoke = 0.0
    for part in range(50):
        side.keeper.progress("timing", part / 50)
    side.say({"do": "ping"})
    assert side.hear() == {"step": "timing", "fraction": 0.0}
    assert side.hear() == {"pong": True}


@pytest.mark.parametrize(
    "words", [b"no JSON\n", b"{}\n", b'{"do": "put", "name": "../x", "size": 0}\n']
)
def test_nonsense_ends_it(side: Side, exits: list[int], words: bytes) -> None:
    side.write.write(words)
    assert side.hear() == {"bye": True}


def test_an_unknown_request_ends_it(side: Side) -> None:
    side.say({"do": "something else"})
    assert side.hear() == {"bye": True}


def test_silence_ends_it(tmp_path: Path, exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SILENCE", 0.1)
    (tmp_path / "ours").mkdir()
    side = Side(tmp_path / "ours")
    assert side.hear() == {"bye": True}
    ended(exits)  # or what leaves is not the stand-in's process, but this one
    assert not side.folder.exists()
    side.write.close()


def test_nobody_listens_any_more(tmp_path: Path, exits: list[int]) -> None:
    (tmp_path / "ours").mkdir()
    side = Side(tmp_path / "ours")
    side.read.close()
    with pytest.raises(SystemExit):
        side.keeper.say({"step": "x" * 100_000})
    assert not side.folder.exists()


def test_children_are_killed() -> None:
    """In a process of its own: whatever else this one has started stays alive."""
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            os.setsid()
            signal.pause()
        os.write(write, str(child).encode())
        time.sleep(0.1)
        keeper._end_children()
        os._exit(0 if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) == 0
    os.close(read)
    os.close(write)


def test_main(tmp_path: Path, exits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", "elsewhere")
    monkeypatch.setattr(keeper.tempfile, "tempdir", None)
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(keeper.signal, "signal", handlers.__setitem__)
    (tmp_path / "ours").mkdir()
    out = io.BytesIO()
    pipes = (io.BytesIO(b""), out)
    threading.Thread(target=keeper.main, args=(tmp_path / "ours", *pipes), daemon=True).start()
    ended(exits)
    assert out.getvalue() == b'edgeopt {"ready": true}\nedgeopt {"bye": true}\n'
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} == set(handlers)
    assert os.environ["TMPDIR"] == str(tmp_path / "ours")


# -- before it ---------------------------------------------------------------------------------


def asked(folder: Path | None, data: bytes, **more: Any) -> dict[str, Any]:
    return {
        "folder": folder and str(folder),
        "packages": {"numpy": "numpy", "json": "no-such-package", "not_there": "not-there"},
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "main": "edgeopt.measure.remote.keeper",
        **more,
    }


def hello(out: io.BytesIO) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(out.getvalue().splitlines()[0].removeprefix(b"edgeopt "))
    return message


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    mask = os.umask(0o022)
    os.umask(mask)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    os.umask(mask)


def test_it_says_what_it_found_and_hands_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_bundle(ENTRIES).data
    taken: list[Path] = []
    monkeypatch.setattr(keeper, "main", lambda folder, *pipes: taken.append(folder))
    out = io.BytesIO()
    boot.boot(asked(tmp_path, data), io.BytesIO(data), out)
    said = hello(out)
    assert said["packages"] == {"numpy": np.__version__, "json": "unknown", "not_there": None}
    assert said["free"] > 0
    assert taken == [Path(said["folder"])]
    assert (taken[0] / "lib/edgeopt/measure/remote/keeper.py").is_file()
    assert taken[0].stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("sent", [b"", b"short", b"other bytes, as many"])
def test_without_the_runner_the_folder_goes(tmp_path: Path, sent: bytes) -> None:
    boot.boot(asked(tmp_path, bytes(20)), io.BytesIO(sent), io.BytesIO())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_full_for_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, into: Path) -> None:
        into.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(boot.zipfile.ZipFile, "extractall", full)
    data = make_bundle(ENTRIES).data
    out = io.BytesIO()
    boot.boot(asked(tmp_path, data), io.BytesIO(data), out)
    assert b"No space left on device" in out.getvalue().splitlines()[1]
    assert list(tmp_path.iterdir()) == []


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert boot._new_folder(None).parent == tmp_path
    monkeypatch.setattr(boot.os, "access", lambda place, how: False)
    monkeypatch.setattr(boot.tempfile, "tempdir", str(tmp_path))
    assert boot._new_folder(None).parent == tmp_path
    out = io.BytesIO()
    boot.boot(asked(tmp_path / "none", b""), io.BytesIO(), out)
    assert hello(out)["problem"] == "No such file or directory"
