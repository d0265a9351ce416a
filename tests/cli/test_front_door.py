"""Nothing that lies in the current folder runs unasked, and printing survives any stream."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.verbs.small_onnx import mlp

ROOT = Path(__file__).resolve().parents[2]
#: Every module that a command and its worker processes load, by the names that files here could
#: take: the first parts of what is imported by a whole run.
_IMPORTED = """
import sys
sys.argv = ["edgeopt", "quantize", "model.onnx", "--prefer", "size", "--force", "-o", "warm.onnx"]
from edgeopt.cli import main
try:
    main()
except SystemExit:
    pass
import torch, transformers, numba, gguf, edgeopt.measure.worker, edgeopt.graphs.capture.child
print("NAMES", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model among files that have the names of modules, and say so when they are run."""
    folder = tmp_path_factory.mktemp("planted")
    mlp(folder / "model.onnx")
    np.savez(folder / "data.npz", x=np.zeros((8, 64), np.float32))
    done = run([sys.executable, "-P", "-c", _IMPORTED], folder)
    names = done.stdout.partition("NAMES")[2].split()
    assert len(names) > 200, done.stderr
    taken = {"edgeopt", "__main__", "__mp_main__", "builtins", "sys"}
    for name in {*names, "sitecustomize", "usercustomize"} - taken:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(
                f"import os\nos.close(os.open({str(folder / 'RAN')!r}, os.O_CREAT))\n"
                f"raise SystemExit('{name} of the folder ran')\n"
            )
    return folder


def run(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if not _installed():
        environment["PYTHONPATH"] = str(ROOT / "src")
    return subprocess.run(
        command,
        cwd=folder,
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _installed() -> bool:
    """Whether the package is found without the path that pytest has."""
    found = subprocess.run(
        [sys.executable, "-P", "-c", "import edgeopt"], cwd="/", capture_output=True, check=False
    )
    return found.returncode == 0


COMMANDS = [
    ["inspect", "model.onnx"],
    ["quantize", "model.onnx", "--prefer", "size", "--force", "-o", "o.onnx", "--data", "data.npz"],
    ["verify", "model.onnx", "warm.onnx", "--prefer", "size"],
    ["bench", "model.onnx", "--time", "0.05", "--processes", "5", "--no-cold"],
]


START = [sys.executable, "-P", "-c", "from edgeopt.cli import main; main()"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_no_file_of_the_folder_runs(planted: Path, command: list[str]) -> None:
    done = run([*START, *command], planted)
    assert not (planted / "RAN").exists(), done.stderr
    assert done.returncode in (0, 3) and "Traceback" not in done.stderr, done.stderr


def test_python_m_edgeopt_takes_the_folder_off_the_path(tmp_path: Path) -> None:
    """Python itself puts it there, and imports what it needs to start (runpy) before anybody can
    help it; from then on nothing is taken from there."""
    mlp(tmp_path / "model.onnx")
    for name in ("json", "click", "numpy", "onnx", "onnxruntime", "rich", "importlib_metadata"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the folder ran')")
    done = run([sys.executable, "-m", "edgeopt", "inspect", "model.onnx"], tmp_path)
    assert done.returncode == 0, done.stderr


def test_code_that_is_named_is_found_last(tmp_path: Path) -> None:
    """--data of the folder's own module works, and its json.py is not json."""
    mlp(tmp_path / "model.onnx")
    (tmp_path / "json.py").write_text("raise SystemExit('json of the folder ran')")
    (tmp_path / "mine.py").write_text(
        "import json, numpy as np\n"
        "assert json.dumps([1]) == '[1]'\n"
        "def rows():\n"
        "    r = np.random.default_rng(0)\n"
        "    return [{'x': r.standard_normal((1, 64)).astype('f4')} for _ in range(8)]\n"
    )
    words = ["quantize", "model.onnx", "--data", "mine:rows", "--prefer", "size", "--force"]
    done = run([*START, *words, "-o", "o.onnx"], tmp_path)
    assert done.returncode in (0, 3), done.stderr
    assert (tmp_path / "o.onnx").exists(), done.stderr


def test_nobody_is_asked_about_remote_code() -> None:
    """Every call of a from_pretrained says what it does about a folder's own code."""
    silent = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "from_pretrained"
            ):
                said = any(k.arg in ("trust_remote_code", None) for k in node.keywords)
                own = isinstance(node.func.value, ast.Call)  # type(config): a class at hand
                if not (said or own):
                    silent.append(f"{path.name}:{node.lineno}")
    assert silent == []


# ---------------------------------------------------------------------------------------------
# where output goes


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_stream_without_letters_or_none_at_all(more: tuple[str, ...], tmp_path: Path) -> None:
    mlp(tmp_path / "mödel.onnx")
    words = [*START, "inspect", "mödel.onnx", *more]
    done = run(words, tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout, done.stderr
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&-"):
        shell = ["sh", "-c", f'"$@" {closed}', "sh", *words]
        done = run(shell, tmp_path)
        assert done.returncode == 0 and "Traceback" not in done.stderr, (closed, done.stderr)


def test_the_reader_leaves(tmp_path: Path) -> None:
    mlp(tmp_path / "model.onnx")
    for words in (["inspect", "model.onnx"], ["inspect", "model.onnx", "--json"], ["--help"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*START, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(write)
        assert done.returncode == 128 + signal.SIGPIPE, (words, done.stderr)
        assert done.stderr == b""


def test_a_current_folder_that_was_deleted(tmp_path: Path) -> None:
    model = mlp(tmp_path / "model.onnx")
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    words = [*START, "inspect", str(model)]
    done = run(["sh", "-c", script, str(gone), *words], tmp_path)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
