"""The page that a wheel or an archive carries: README, with links that hold where it is shown.

A package index shows README alone, so a link to ``docs/gguf.md`` leads nowhere there. Where
``[project.urls] Source`` or EDGEOPT_SOURCE_URL names the repository's files, links lead to them;
else their words stay and the file is named as a part of the source.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|mailto:|#)([^)\s]+)\)")


def page(readme: str, url: str | None) -> str:
    """README for a reader who has no repository beside it.

    Args:
        url: where the repository's files are shown, as ``https://HOST/PROJECT/blob/v0.1.0``;
            None when nobody said.
    """

    def placed(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        if url is not None:
            return f"{image}[{words}]({url.rstrip('/')}/{target})"
        named = words.strip("`").endswith(target.partition("#")[0])
        return words if named else f"{words} (`{target}` in the source)"

    return _LINK.sub(placed, readme)


class ReadmeHook(MetadataHookInterface):
    """``dynamic = ["readme"]``: the page above, as Markdown."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Hatchling's own call, with pyproject's [project] table."""
        url = os.environ.get("EDGEOPT_SOURCE_URL") or metadata.get("urls", {}).get("Source")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": page(text, url)}
