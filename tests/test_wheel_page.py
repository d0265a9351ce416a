"""What a package index shows of README: hatchling's own metadata, with links that hold there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def shown() -> str:
    metadata = ProjectMetadata(str(ROOT), PluginManager())
    assert metadata.core.readme_content_type == "text/markdown"
    return str(metadata.core.readme)


def test_no_link_leads_into_a_repository_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEOPT_SOURCE_URL", raising=False)
    page = shown()
    assert all(link.startswith(("https://", "#")) for link in LINK.findall(page))
    assert "pruning (`docs/prune.md` in the source)" in page


def test_links_lead_to_the_repository_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    base = "https://code.example/edgeopt/blob/v1"
    monkeypatch.setenv("EDGEOPT_SOURCE_URL", base + "/")
    links = [link for link in LINK.findall(shown()) if not link.startswith("#")]
    assert len(links) > 15
    for link in links:
        assert link.startswith(base + "/"), link
        assert (ROOT / link.removeprefix(base + "/").partition("#")[0]).exists(), link


def test_readme_is_the_page_but_for_its_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEOPT_SOURCE_URL", raising=False)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [line for line in shown().splitlines() if "in the source" not in line] == [
        line for line in readme.splitlines() if not LINK.search(line)
    ]
