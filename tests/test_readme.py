"""Every command that the documentation shows is run, in the order of the page, as it stands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.in_process import forked_command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Shell commands of a page: lines after ``$`` of console blocks, all lines of bash blocks."""
    found = []
    for block in FENCE.finditer(page.read_text()):
        lines = block["body"].replace("\\\n", " ").splitlines()
        if block["kind"] == "console":
            found += [line[2:] for line in lines if line.startswith("$ ")]
        elif block["kind"] == "bash":
            found += [line for line in lines if line and not line.startswith("#")]
    return found


def python_blocks(page: Path) -> list[str]:
    return [b["body"] for b in FENCE.finditer(page.read_text()) if b["kind"] == "python"]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages name: what ``make demo`` makes, untrained."""
    torch = pytest.importorskip("torch", reason="the pages quantize a torch model")
    pytest.importorskip("sklearn", reason="the pages use scikit-learn's digits")
    pytest.importorskip("torch_pruning", reason="the pages prune channels")
    pytest.importorskip("accelerate", reason="the pages train")
    np = pytest.importorskip("numpy")
    from models import digits
    from safetensors.numpy import save_file

    from edgeopt.files.open import open_source
    from edgeopt.files.sparse_write import write_sparse

    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "models", folder / "models")
    (folder / "demo").mkdir()
    images, labels = digits.digits()
    net = digits.train(images[:256], labels[:256], epochs=1)
    torch.save(net.state_dict(), folder / "demo" / "model.pt")
    np.savez(folder / "demo" / "digits.npz", image=images[300:364])
    np.savez(folder / "demo" / "digits-train.npz", image=images[:64], label=labels[:64])
    np.savez(folder / "demo" / "digits-test.npz", image=images[400:464], label=labels[400:464])
    shutil.copy(ROOT / "README.md", folder / "README.md")
    save_file(
        {"encoder.layer.0.weight": np.eye(64, dtype=np.float32)}, folder / "model.safetensors"
    )
    write_sparse(
        open_source(folder / "model.safetensors").weights, folder / "model-pruned.safetensors"
    )
    return folder


@pytest.fixture(scope="session")
def seen() -> set[str]:
    """Commands that have run: what a second page repeats has done its work."""
    return set()


def environment() -> dict[str, str]:
    """Without coverage's hooks, and with this interpreter's scripts first on the path."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / "src")}


#: Run as a user would, every step in a process of its own, when first met; the other commands in
#: copies of this process, which has torch.
AS_A_USER = ("quantize", "inspect")

#: More than the pages say, where a command measures for as long as it is told to.
SHORTER = {key: {"--processes": "5", "--time": "0.5"} for key in ("bench", "compare")}


def quickly(command: str, folder: Path, room: Path) -> subprocess.CompletedProcess[str]:
    """Run one ``edgeopt ...`` command, ``> FILE`` included."""
    words = shlex.split(command)[1:]
    out = room / "out.txt"
    if words[-2:-1] == [">"]:
        out = folder / words[-1]
        words = words[:-2]
    err = room / "err.txt"
    for printed in (out, err):
        printed.write_bytes(b"")
    for option, value in SHORTER.get(words[0], {}).items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    status = forked_command(words, folder, out, err)
    return subprocess.CompletedProcess(words, status, out.read_text(), err.read_text())


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    if words[0] == "edgeopt":
        command = shlex.join([sys.executable, "-m", "edgeopt"]) + command[len("edgeopt") :]
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_make_targets_exist() -> None:
    shown = {c.split()[1] for page in PAGES for c in commands(page) if c.startswith("make ")}
    assert {"demo", "test"} <= shown <= targets()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_work_as_shown(page: Path, files: Path, seen: set[str], tmp_path: Path) -> None:
    for command in commands(page):
        if command.startswith("make ") or command in seen:
            continue
        program, verb, *_ = command.split()
        as_a_user = program != "edgeopt" or (verb in AS_A_USER and verb not in seen)
        seen |= {command, verb}
        done = run(command, files) if as_a_user else quickly(command, files, tmp_path)
        if done.returncode == 3 and verb in ("quantize", "export", "prune", "distill"):
            # On a busy machine, or a CPU on which the model gains nothing, a proof may fail; later
            # commands still need the file.
            done = quickly(command.replace(verb, f"{verb} --force", 1), files, tmp_path)
        assert done.returncode in (0, 3), f"{command}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_works_as_shown(page: Path, files: Path) -> None:
    for code in python_blocks(page):
        done = run(shlex.join([sys.executable, "-c", code]), files)
        assert done.returncode == 0, f"{code}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_tables_exist(page: Path) -> None:
    """Inline commands (``edgeopt VERB ...`` in backticks) name real verbs and real options."""
    from edgeopt.cli import cli

    for command in re.findall(r"`(edgeopt [a-z]+ [^`]*)`", page.read_text()):
        words = shlex.split(command)
        verb = cli.commands[words[1]]
        known = {o for p in verb.params for o in p.opts}
        assert {w for w in words if w.startswith("-")} <= known, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link
