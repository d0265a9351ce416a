"""A machine at the other end of ssh: what works, what fails, and that nothing stays there.

The ``server`` fixture looks, after every test, whether the folder on the server is empty.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.sshd import Server

from edgeopt.errors import EdgeoptError, HostError, OutputError, SourceError, WorkerError
from edgeopt.measure.remote import host as host_module
from edgeopt.measure.remote import link
from edgeopt.measure.remote.host import Host, connect
from edgeopt.measure.remote.target import parse_target


@contextmanager
def connected(server: Server, url: str | None = None) -> Iterator[Host]:
    with connect(parse_target(url or server.url), python=sys.executable) as host:
        yield host


def why(server: Server, url: str | None = None, *, python: str = sys.executable) -> str:
    """The one line with which a connection is refused."""
    with (
        pytest.raises(HostError) as caught,
        connect(parse_target(url or server.url), python=python, runtimes=("onnxruntime",)),
    ):
        pass
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert message.startswith("ssh://")
    return message


def processes(server: Server) -> list[int]:
    """Those that work in the folder on the server."""
    return [int(p.name) for p in Path("/proc").glob("[0-9]*") if server.is_inside(p)]


def gone(server: Server, patience: float = 10.0) -> bool:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if not processes(server) and not list(server.space.iterdir()):
            return True
        time.sleep(0.02)
    return False


# -- what works --------------------------------------------------------------------------------


def test_files_arrive(host: Host, tmp_path: Path) -> None:
    big, small, empty = (tmp_path / name for name in ("big", "small", "empty"))
    big.write_bytes(np.random.default_rng(0).bytes(3_000_001))
    small.write_bytes(b"\n{}\n")
    empty.write_bytes(b"")
    steps: list[float | None] = []
    assert Path(host.facts.folder).stat().st_mode & 0o777 == 0o700
    files = {"m/a.onnx": big, "m/x/b": small, "c": empty}
    there = host.put(files, lambda step, part: steps.append(part))
    for name, path in files.items():
        assert Path(there[name]).read_bytes() == path.read_bytes()
    before = Path(there["m/a.onnx"]).stat().st_ino
    assert host.put(files) == there
    assert Path(there["m/a.onnx"]).stat().st_ino == before  # not sent again
    small.write_bytes(b"changed")
    assert Path(host.put({"m/x/b": small})["m/x/b"]).read_bytes() == b"changed"
    host.drop(["m/a.onnx"])
    assert not Path(there["m/a.onnx"]).exists()
    assert Path(host.put(files)["m/a.onnx"]).exists()
    assert steps[0] == 0.0
    assert steps[-1] == 1.0


def test_it_says_what_machine_it_is(host: Host) -> None:
    found = host.environment(threads=2)
    assert host.facts.executable == sys.executable
    assert host.facts.packages["numpy"] == np.__version__
    assert found["threads"] == 2
    assert found["machine"] == os.uname().machine


def test_what_a_login_prints_is_passed_over(server: Server, tmp_path: Path) -> None:
    chatty = tmp_path / "python"
    chatty.write_text(f'#!/bin/sh\necho welcome\necho "edgeo"\nexec {sys.executable} "$@"\n')
    chatty.chmod(0o700)
    with connect(parse_target(server.url), python=str(chatty)) as host:
        assert host.facts.folder


# -- what does not -----------------------------------------------------------------------------


def test_a_changed_host_key(server: Server) -> None:
    server.know("other")
    message = why(server)
    assert "not the one known" in message
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in message


def test_an_unknown_host_key_is_not_accepted_even_if_the_user_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.know(None)
    monkeypatch.setenv(
        "EDGEOPT_SSH_OPTIONS", f"{server.options} -o StrictHostKeyChecking=accept-new"
    )
    assert "host key is not known here; connect once by hand" in why(server)
    assert (server.folder / "known_hosts").read_text() == ""


def test_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "EDGEOPT_SSH_OPTIONS",
        f"-i {server.folder / 'stranger'} -o IdentityFile=none "
        f"-o IdentitiesOnly=yes -o UserKnownHostsFile={server.folder / 'known_hosts'} -F none",
    )
    assert "does not take any of your keys; set one up: ssh-copy-id" in why(server)


def test_nobody_listens(server: Server) -> None:
    assert "no SSH server listens" in why(server, f"ssh://127.0.0.1:1{server.space}")


def test_a_name_that_nobody_has(server: Server) -> None:
    assert "no machine of that name" in why(server, "ssh://no.such.machine.invalid")


def test_options_that_ssh_does_not_know(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEOPT_SSH_OPTIONS", "-o NoSuchOption=1")
    assert "does not accept its configuration; check ~/.ssh/config" in why(server)
    monkeypatch.setenv("EDGEOPT_SSH_OPTIONS", "'")
    with pytest.raises(EdgeoptError, match="quote it"):
        why(server)


def test_no_ssh_here(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EdgeoptError, match="ssh: not found; install it"):
        why(server)


def test_no_python_there(server: Server) -> None:
    message = why(server, python="python9")
    assert "no python9 there" in message
    assert "--remote-python PATH" in message


def test_a_program_that_is_no_python(server: Server) -> None:
    assert "no answer from true there" in why(server, python="true")


def test_a_python_too_old(server: Server, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text(
        f"#!/bin/sh\nshift 2\nexec {sys.executable} -u -c "
        '"import sys;sys.version_info=(3,8,10);$1" "$1"\n'
    )
    old.chmod(0o700)
    assert "is Python 3.8.10, the runner needs 3.10" in why(server, python=str(old))


def test_a_python_without_the_runtime(server: Server, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", symlinks=True)
    python = tmp_path / "bare" / "bin" / "python"
    message = why(server, python=str(python))
    assert "has no numpy and no onnxruntime" in message
    assert f"{python} -m pip install numpy onnxruntime" in message


def test_a_folder_that_is_not_there(server: Server) -> None:
    assert "no folder for the files (No such file" in why(server, f"{server.url}/none")


def test_files_that_do_not_fit_are_not_sent(host: Host, tmp_path: Path) -> None:
    hole = tmp_path / "hole"
    with hole.open("wb") as stream:
        stream.truncate(1 << 43)
    with pytest.raises(OutputError, match=r"8\.8 TB are needed in .*free some, or name"):
        host.put({"hole": hole})
    assert not (Path(host.facts.folder) / "hole").exists()


def test_where_room_is_short_earlier_files_go(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    there = host.put({"models/old": path, "samples/old": path})
    host.put({"models/new": path}, instead_of="models/")
    assert all(Path(name).exists() for name in there.values())
    monkeypatch.setattr(host_module, "_SPARE", 1 << 60)
    with pytest.raises(OutputError, match="are needed in"):
        host.put({"models/newer": path}, instead_of="models/")
    assert not Path(there["models/old"]).exists()
    assert Path(there["samples/old"]).exists()


def test_a_disk_that_fills_up_on_the_way(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(3 << 20))
    (Path(host.facts.folder) / "full").symlink_to("/dev/full")
    with pytest.raises(OutputError) as caught:
        host.put({"full": path})
    assert "model.onnx cannot be written in" in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert host.put({"fits": path})  # the connection goes on


def test_a_file_that_cannot_be_read(host: Host, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="it cannot be sent"):
        host.put({"none": tmp_path / "none"})


def test_a_damaged_file_is_noticed(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")

    class Wrong:
        def update(self, data: bytes) -> None: ...

        def hexdigest(self) -> str:
            return "0" * 64

    monkeypatch.setattr(host_module.hashlib, "sha256", Wrong)
    with pytest.raises(OutputError, match="arrived damaged"):
        host.put({"file": path})
    assert not (Path(host.facts.folder) / "file").exists()


def test_a_file_that_is_cut_short_while_it_is_sent(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5 << 20))
    with pytest.raises(SourceError, match="became shorter"), connected(server) as host:
        host.put({"file": path}, lambda step, part: os.truncate(path, 1 << 20))


def test_a_name_outside_the_folder_ends_the_connection(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(WorkerError), connected(server) as host:
        host.put({"../outside": path})


# -- nothing stays -----------------------------------------------------------------------------


def test_nothing_stays_after_an_interrupt(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt), connected(server) as host:
        host.put({"file": path})
        raise KeyboardInterrupt
    assert not list(server.space.iterdir())
    assert not processes(server)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_runner_is_killed(server: Server, number: int) -> None:
    with pytest.raises(WorkerError) as caught, connected(server) as host:
        (keeper,) = processes(server)
        os.kill(keeper, number)
        assert number == signal.SIGKILL or gone(server)
        host.environment()
    assert "lost while" in str(caught.value)
    assert "run it again" in str(caught.value)
    assert gone(server)


def test_the_connection_is_cut(server: Server) -> None:
    """Our ssh dies: the runner there ends by itself, and takes its folder along."""
    with pytest.raises(WorkerError), connected(server) as host:
        host._link._process.kill()
        assert gone(server)
        host.environment()


def test_we_are_killed(server: Server) -> None:
    """The whole client, beyond any cleaning up of its own."""
    code = (
        "import sys, time\n"
        "from edgeopt.measure.remote.host import connect\n"
        "from edgeopt.measure.remote.target import parse_target\n"
        f"with connect(parse_target({server.url!r}), python=sys.executable):\n"
        "    print('connected', flush=True)\n"
        "    time.sleep(60)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert client.stdout is not None
    with client:
        assert client.stdout.readline() == b"connected\n"
        assert processes(server)
        client.kill()
    assert gone(server)


def test_a_machine_that_goes_silent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "GONE", 0.3)
    with pytest.raises(WorkerError, match="no sign of it for 0 s"), connected(server) as host:
        (keeper,) = processes(server)
        os.kill(keeper, signal.SIGSTOP)
        try:
            host.environment()
        finally:
            os.kill(keeper, signal.SIGCONT)
    assert gone(server)


def test_a_sign_of_life_goes_each_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "PING", 0.02)
    with connected(server) as host:
        assert host._link._lines.get(timeout=5) == b'edgeopt {"pong": true}\n'


def test_a_folder_that_cannot_be_removed_is_named(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = link.Link.close
    monkeypatch.setattr(link.Link, "close", lambda self: close(self) and False)
    with pytest.warns(UserWarning, match="could not be removed"), connected(server):
        pass
