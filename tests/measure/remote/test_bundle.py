"""The bundle: everything that the runner imports, nothing heavy, the same bytes every time."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeopt.measure.remote.bundle import make_bundle
from edgeopt.measure.remote.host import ENTRIES


def test_the_same_source_gives_the_same_bytes() -> None:
    first, second = make_bundle(ENTRIES), make_bundle(ENTRIES[::-1])
    assert first.data == second.data
    assert first.sha256 == second.sha256
    assert len(first.data) < 400_000


def test_it_runs_from_itself_alone(tmp_path: Path) -> None:
    """Every module of it is imported from the archive, by a Python that has no other edgeopt."""
    bundle = make_bundle(ENTRIES)
    archive = tmp_path / "runner.zip"
    archive.write_bytes(bundle.data)
    code = (
        "import sys, importlib\n"
        f"names = {list(bundle.modules)!r}\n"
        "for name in names: importlib.import_module(name)\n"
        "ours = [m for n, m in sys.modules.items() if n.split('.')[0] == 'edgeopt']\n"
        f"assert all(m.__file__.startswith({str(archive)!r}) for m in ours), ours\n"
        "print(*sorted({n.split('.')[0] for n in sys.modules}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(archive), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    heavy = {"onnx", "onnx_ir", "torch", "gguf", "psutil", "click", "rich", "numba", "safetensors"}
    assert not loaded & heavy
    assert {name for name in loaded - set(sys.stdlib_module_names) if name[0] != "_"} <= {
        "edgeopt", "numpy", "sitecustomize",
    }  # fmt: skip


def test_it_follows_every_kind_of_import(tmp_path: Path) -> None:
    package = tmp_path / "edgeopt"
    (package / "sub").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "sub/__init__.py": "from edgeopt.sub import one",
        "sub/one.py": "from . import two\nfrom ..flat import thing\nimport foreign.part",
        "sub/two.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import edgeopt.types\n"
            "def later():\n    import edgeopt.lazy as lazy\n    from edgeopt.sub.three import x\n"
        ),
        "sub/three.py": "x = 1",
        "flat.py": "thing = 1",
        "lazy.py": "",
        "types.py": "",
        "other.py": "",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    bundle = make_bundle(("edgeopt.sub.one",), tmp_path)
    assert set(bundle.modules) == {
        "edgeopt", "edgeopt.sub", "edgeopt.sub.one", "edgeopt.sub.two", "edgeopt.sub.three",
        "edgeopt.flat", "edgeopt.lazy",
    }  # fmt: skip
    assert "foreign" in bundle.foreign
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        assert archive.testzip() is None
        assert archive.read("edgeopt/sub/three.py") == b"x = 1"
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_entry_that_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"edgeopt\.nothing"):
        make_bundle(("edgeopt.nothing",))
