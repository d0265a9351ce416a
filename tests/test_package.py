"""The package as a whole: what it offers, and what importing it must not cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgeopt

HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "transformers", "gguf", "rich"}
SOURCE = Path(edgeopt.__file__).parent


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``statement``."""
    code = (
        "import contextlib, io, json, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    {statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


HELP = "from click.testing import CliRunner; import edgeopt.cli as c; CliRunner().invoke(c.cli, {})"


@pytest.mark.parametrize(
    "statement",
    [
        "import edgeopt",
        "import edgeopt.cli",
        HELP.format(["--help"]),
        HELP.format(["quantize", "--help"]),
        HELP.format(["prune", "--help"]),
        HELP.format(["distill", "--help"]),
    ],
)
def test_loads_nothing_heavy(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_import_alone_does_not_even_load_numpy() -> None:
    assert "numpy" not in loaded_by("import edgeopt")


@pytest.mark.parametrize("name", edgeopt.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(edgeopt, name) is not None
    assert name in dir(edgeopt)


def test_every_command_is_a_function_too() -> None:
    from edgeopt.cli import cli

    assert {"quantize", "prune", "distill", "inspect"} <= set(cli.commands)
    assert {"quantize", "prune", "distill", "inspect"} <= set(edgeopt.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = edgeopt.quantise


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.relative_to(SOURCE).as_posix()
)
def test_every_module_says_what_it_is_and_what_it_offers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    if path.name.startswith("__"):
        return
    names = {
        target.id
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    assert "__all__" in names


def test_version_is_written_once_in_each_place() -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{edgeopt.__version__}"' in project
