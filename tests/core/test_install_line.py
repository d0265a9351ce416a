"""What is advised installs from where edgeopt came: PyPI has no edgeopt."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from edgeopt.errors import MissingExtraError, install_line


class _Installed:
    def __init__(self, noted: str | None) -> None:
        self.noted = noted

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.noted


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        (None, "pip install 'edgeopt[torch]'"),
        ("", "pip install 'edgeopt[torch]'"),
        ("{not json", "pip install 'edgeopt[torch]'"),
        (
            json.dumps({"url": "https://host/e.git", "vcs_info": {"vcs": "git"}}),
            "pip install 'edgeopt[torch] @ git+https://host/e.git'",
        ),
        (json.dumps({"url": "file:///gone/away"}), "pip install 'edgeopt[torch]'"),
    ],
)
def test_from_where(monkeypatch: pytest.MonkeyPatch, noted: str | None, said: str) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: _Installed(noted))
    assert install_line("torch") == said


def test_from_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "my source"
    folder.mkdir()
    noted = json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}})
    monkeypatch.setattr(metadata, "distribution", lambda name: _Installed(noted))
    assert install_line("train") == f"pip install '{folder}[train]'"
    assert f"'{folder}[gguf]'" in str(MissingExtraError("numba", "gguf", "this"))
