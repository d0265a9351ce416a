"""``python -m edgeopt`` is the ``edgeopt`` command."""

from __future__ import annotations

from edgeopt.cli import main

main()
