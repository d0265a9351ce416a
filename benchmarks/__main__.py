"""``python -m benchmarks``: every comparison with a peer, one after the other.

The data sets lie in ``$EDGEOPT_TEST_DATA`` (default: ``../shared/data`` beside the repository).
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    for script in sorted(HERE.glob("*.py")):
        if script.stem.startswith("_"):
            continue
        print(f"== {script.stem}", flush=True)
        sys.argv = [str(script)]
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stopped:
            if stopped.code not in (None, 0):
                raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
