"""A file is there whole or not at all, whatever goes wrong and whenever."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgeopt.errors import OutputError
from edgeopt.files import atomic
from edgeopt.files.atomic import checked_output, writing, writing_folder, writing_group


def listing(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_new_file_appears_at_the_end_and_not_before(tmp_path):
    target = tmp_path / "model.onnx"
    with writing(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert listing(tmp_path) == ["model.onnx"]


def test_permissions_follow_the_umask_or_the_file_replaced(tmp_path):
    target = tmp_path / "x"
    before = os.umask(0o027)
    try:
        with writing(target) as temporary:
            temporary.write_bytes(b"1")
        assert target.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
    target.chmod(0o604)
    with writing(target) as temporary:
        temporary.write_bytes(b"2")
    assert target.stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_any_exception_leaves_what_was_there(tmp_path, error, old):
    target = tmp_path / "x.bin"
    if old is not None:
        target.write_bytes(old)
    with pytest.raises(error), writing(target) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert listing(tmp_path) == ([] if old is None else ["x.bin"])
    assert old is None or target.read_bytes() == old


def test_a_symbolic_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "x", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with writing(link) as temporary:
        assert temporary.parent == real.parent
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_long_name_still_leaves_room_for_the_temporary_one(tmp_path):
    target = tmp_path / ("n" * 250 + ".onnx")
    with writing(target) as temporary:
        temporary.write_bytes(b"1")
    assert target.read_bytes() == b"1"
    with pytest.raises(OutputError, match="too long"), writing(tmp_path / ("n" * 300)):
        pass


def test_no_overwriting_when_told_so(tmp_path):
    target = tmp_path / "x"
    with writing(target, overwrite=False) as temporary:
        temporary.write_bytes(b"first")
    with pytest.raises(OutputError, match="exists"), writing(target, overwrite=False):
        raise AssertionError("not reached")
    target.unlink()
    # another process takes the name while this one is busy
    with pytest.raises(OutputError, match="exists"), writing(target, overwrite=False) as temporary:
        temporary.write_bytes(b"second")
        target.write_bytes(b"other")
    assert target.read_bytes() == b"other"
    assert listing(tmp_path) == ["x"]


# ---------------------------------------------------------------------------------------------
# where output may go


def test_outputs_that_are_refused(tmp_path):
    source = tmp_path / "model.pt"
    source.write_bytes(b"weights")
    (tmp_path / "soft").symlink_to(source)
    os.link(source, tmp_path / "hard")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "fifo")
    refused = {
        source: "is the source itself",
        tmp_path / "soft": "is the source itself",
        tmp_path / "hard": "is the source itself",
        tmp_path / "folder" / ".." / "model.pt": "is the source itself",
        folder / "config.json": "would replace a file of the source folder",
        folder: "is a folder",
        tmp_path / "fifo": "no regular file",
        tmp_path / "missing" / "x": "does not exist; make it first",
        source / "x": "no folder|does not exist",
        Path("/dev/null"): "no regular file",
        Path("/"): "is a folder",
    }
    for path, message in refused.items():
        with pytest.raises(OutputError, match=message) as caught:
            checked_output(path, [source, folder])
        assert "\n" not in str(caught.value)
    assert checked_output(folder / "new.onnx", [source, folder]) == folder / "new.onnx"
    assert checked_output(tmp_path / "out.onnx", [source, folder]) == tmp_path / "out.onnx"
    with pytest.raises(OutputError, match="source itself"), writing(source, source_paths=[source]):
        raise AssertionError("not reached")
    assert source.read_bytes() == b"weights"


def test_a_link_loop_is_refused(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OutputError, match="leads to itself"), writing(tmp_path / "a"):
        raise AssertionError("not reached")


def test_a_read_only_folder_in_the_eyes_of_a_user_without_privileges(tmp_path):
    """Permissions do not hold for root, so a child gives its privileges up first."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents[:3]):  # one more where tests run side by side
        parent.chmod(parent.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        code = 9
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            try:
                with writing(closed / "x"):
                    code = 1
            except OutputError as error:
                code = 0 if "read-only" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert listing(closed) == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EROFS, "file system is read-only"),
        (errno.EACCES, "permission denied"),
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EIO, "write error"),
    ],
)
def test_what_the_system_says_becomes_one_line(tmp_path, code, message):
    with pytest.raises(OutputError, match=message) as caught, writing(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half")
        raise OSError(code, os.strerror(code))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "x") in str(caught.value)
    assert listing(tmp_path) == []


def test_errors_about_other_files_are_not_blamed_on_the_output(tmp_path):
    with pytest.raises(PermissionError), writing(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "denied", "/elsewhere/source.bin")
    with pytest.raises(OSError, match="odd"), writing(tmp_path / "x"):
        raise OSError(errno.ESPIPE, "odd")
    assert listing(tmp_path) == []


# ---------------------------------------------------------------------------------------------
# faults


@pytest.mark.parametrize("limit", [0, 1, 4095, 4096, 50_000, 99_999])
def test_disk_full_at_any_point(tmp_path, limit):
    """A limit on file size stands in for a full disk: the write fails part of the way."""
    target = tmp_path / "x"
    target.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError, match="size limit"), writing(target) as temporary:
            temporary.write_bytes(bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert target.read_bytes() == b"old"
    assert listing(tmp_path) == ["x"]


CHILD = """
import sys, time
from pathlib import Path
from edgeopt.files.atomic import writing
with writing(Path(sys.argv[1])) as temporary:
    with temporary.open("wb") as stream:
        stream.write(b"h" * 1000)
        stream.flush()
        print("writing", flush=True)
        for _ in range(600):
            time.sleep(0.1)
"""


def start(target: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(atomic.__file__).parents[2])},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"writing\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_signals(tmp_path, number):
    target = tmp_path / "x"
    target.write_bytes(b"old")
    child = start(target)
    child.send_signal(number)
    code = child.wait(20)
    child.stdout.close()
    assert target.read_bytes() == b"old"
    if number == signal.SIGKILL:
        # nothing can clean up, but what is left is hidden and under another name
        assert code == -signal.SIGKILL
        assert [name for name in listing(tmp_path) if not name.startswith(".")] == ["x"]
    else:
        assert code == (-number if number == signal.SIGINT else 128 + number)
        assert listing(tmp_path) == ["x"]


def test_killed_at_random_points(tmp_path):
    """Whatever the moment, the file is one of the whole versions."""
    target = tmp_path / "x"
    target.write_bytes(b"a" * 200_000)
    rng = random.Random(1)
    for _ in range(25):
        child = os.fork()
        if child == 0:
            for letter in itertools.cycle((b"a", b"b")):
                with writing(target) as temporary, temporary.open("wb") as stream:
                    for _ in range(20):
                        stream.write(letter * 10_000)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert target.read_bytes() in (b"a" * 200_000, b"b" * 200_000)


def test_handlers_are_given_back_and_left_alone(tmp_path):
    mine = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with writing(tmp_path / "x"):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, mine)


def test_two_writers_each_whole(tmp_path):
    target = tmp_path / "x"

    def write(letter: bytes) -> None:
        with writing(target) as temporary, temporary.open("wb") as stream:
            for _ in range(50):
                stream.write(letter * 1000)
                time.sleep(0.0005)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() in (b"a" * 50_000, b"b" * 50_000)
    assert listing(tmp_path) == ["x"]


# ---------------------------------------------------------------------------------------------
# a file with sidecars


def test_a_group_appears_together_main_file_last(tmp_path, monkeypatch):
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    data, main = tmp_path / "m.onnx.data", tmp_path / "m.onnx"
    with writing_group([data, main]) as (one, two):
        one.write_bytes(b"data")
        two.write_bytes(b"main")
    assert order == ["m.onnx.data", "m.onnx"]
    assert (data.read_bytes(), main.read_bytes()) == (b"data", b"main")
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_sidecar_that_was_not_needed(tmp_path):
    with writing_group([tmp_path / "data", tmp_path / "main"]) as (one, two):
        one.unlink()
        two.write_bytes(b"main")
    assert listing(tmp_path) == ["main"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("links", [False, True])
def test_a_rename_that_fails_takes_the_others_back(tmp_path, monkeypatch, old, links):
    names = ["data", "plan", "main"]
    paths = [tmp_path / name for name in names]
    if old:
        for path in paths:
            path.write_bytes(b"old " + path.name.encode())
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if Path(target).name == "main":
            raise OSError(errno.ENOSPC, "full")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    if not links:

        def no_links(*_: object) -> None:
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(OutputError, match="disk is full"), writing_group(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_bytes(b"new")
    assert listing(tmp_path) == (sorted(names) if old else [])
    for path in paths if old else []:
        assert path.read_bytes() == b"old " + path.name.encode()


def test_a_group_without_overwriting(tmp_path):
    data, main = tmp_path / "data", tmp_path / "main"
    with pytest.raises(OutputError), writing_group([data, main], overwrite=False) as (one, two):
        one.write_bytes(b"1")
        two.write_bytes(b"2")
        main.write_bytes(b"taken")
    assert listing(tmp_path) == ["main"]
    main.unlink()
    with writing_group([data, main], overwrite=False):
        pass
    assert listing(tmp_path) == ["data", "main"]


def test_a_group_needs_different_names(tmp_path):
    with pytest.raises(OutputError, match="two outputs"), writing_group([tmp_path / "x"] * 2):
        pass


def test_a_file_system_that_cannot_sync_a_folder(tmp_path, monkeypatch):
    sync = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EINVAL, "no")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    with writing(tmp_path / "x") as temporary:
        temporary.write_bytes(b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


# ---------------------------------------------------------------------------------------------
# files that name one another


def test_named_temporaries_are_called_as_they_will_be(tmp_path):
    data, main = tmp_path / "m.onnx.data", tmp_path / "m.onnx"
    main.write_bytes(b"old")
    main.chmod(0o604)
    with writing_group([data, main], named=True) as temporaries:
        assert [t.name for t in temporaries] == ["m.onnx.data", "m.onnx"]
        (folder,) = {t.parent for t in temporaries}
        assert folder.parent == tmp_path and folder.name.startswith(".")
        for temporary in temporaries:
            temporary.write_bytes(temporary.name.encode())
        (folder / "left by somebody").write_bytes(b"")
    assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]
    assert (main.read_bytes(), data.read_bytes()) == (b"m.onnx", b"m.onnx.data")
    assert main.stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_named_temporaries_go_whatever_happens(tmp_path, error):
    (tmp_path / "a").write_bytes(b"old")
    paths = [tmp_path / "a.data", tmp_path / "a"]
    expected = OutputError if isinstance(error, OSError) else error
    with pytest.raises(expected), writing_group(paths, named=True) as temporaries:
        temporaries[0].write_bytes(b"half")
        raise error
    assert listing(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_an_error_about_a_named_temporary_is_the_outputs(tmp_path):
    with (
        pytest.raises(OutputError, match=r"/m: the folder does not exist"),
        writing_group([tmp_path / "m"], named=True) as (temporary,),
    ):
        temporary.unlink()
        temporary.read_bytes()


@pytest.mark.parametrize("old", [False, True])
def test_a_sidecar_whose_rename_fails_keeps_one_name(tmp_path, monkeypatch, old):
    """A second name left behind would make readers refuse the file, as one with hard links."""
    sidecar, main = tmp_path / "a.data", tmp_path / "a"
    if old:
        sidecar.write_bytes(b"old")

    def fails(temporary, target, overwrite):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic, "_take_name", fails)
    with pytest.raises(OutputError, match="write error"), writing_group([sidecar, main]):
        pass
    assert listing(tmp_path) == (["a.data"] if old else [])
    assert not old or (sidecar.read_bytes(), sidecar.stat().st_nlink) == (b"old", 1)


def test_a_folder_appears_whole_at_the_end(tmp_path):
    target = tmp_path / "model"
    with writing_folder(target) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "config.json").write_text("{}")
        assert not target.exists()
    assert listing(tmp_path) == ["model"]
    assert (target / "part" / "config.json").read_text() == "{}"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_folder_that_failed_leaves_nothing(tmp_path, error):
    target = tmp_path / "model"
    target.mkdir()  # an empty folder is no hindrance, and stays
    with pytest.raises(error), writing_folder(target) as folder:
        (folder / "x").write_text("half")
        raise error
    assert listing(tmp_path) == ["model"]
    assert listing(target) == []


def test_a_full_disk_is_one_line_below_a_folder_too(tmp_path):
    with pytest.raises(OutputError, match="disk is full"), writing_folder(tmp_path / "m") as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "part" / "x"))
    assert listing(tmp_path) == []


def test_a_folder_is_refused_where_it_would_replace_or_lie_in_another(tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    (held / "mine").write_text("keep")
    (tmp_path / "file").write_text("")
    source = tmp_path / "source"
    source.mkdir()
    refused = [
        (held, "holds files"),
        (source, "is or lies in the source folder"),
        (source / "out", "is or lies in the source folder"),
        (tmp_path / "file", "no folder"),
        (tmp_path / "missing" / "out", "does not exist"),
    ]
    for path, words in refused:
        with pytest.raises(OutputError, match=words), writing_folder(path, source_paths=[source]):
            pass
    assert listing(held) == ["mine"]


def test_a_folder_whose_name_was_taken_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(OutputError, match="holds files"), writing_folder(target):
        target.mkdir()
        (target / "theirs").write_text("")
    assert listing(tmp_path) == ["model"]
    assert listing(target) == ["theirs"]
