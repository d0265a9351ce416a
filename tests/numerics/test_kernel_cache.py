"""Machine code that is kept is that of the sources as they are, all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

from edgeopt.numerics.ggml import jit, legacy

KERNEL = """
from edgeopt.numerics.ggml import jit
import constants
from pathlib import Path

def scaled(x):
    return x * FACTOR

FACTOR = constants.FACTOR
jit.digest.cache_clear()
scaled = jit.njit(cache=True)(scaled)
jit.stamp_cache(scaled, jit.digest(Path(__file__).parent))
print(scaled(2.0), sum(scaled.stats.cache_hits.values()))
"""


def test_a_constant_of_another_file_is_never_stale(tmp_path: Path) -> None:
    """The kernel's own file stays as it is, to the second; only the constant's changes."""
    (tmp_path / "kernels.py").write_text(KERNEL)
    found = []
    for factor in (3.0, 3.0, 5.0):
        (tmp_path / "constants.py").write_text(f"FACTOR = {factor}\n")
        for cached in (tmp_path / "__pycache__").glob("constants*.pyc"):
            cached.unlink()  # Python's own cache goes by the second
        done = subprocess.run(
            [sys.executable, "-c", "import kernels"],
            cwd=tmp_path,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")},
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(done.stdout.split())
    assert found == [["6.0", "0"], ["6.0", "1"], ["10.0", "0"]]


def test_the_encoders_are_kept_under_the_digest() -> None:
    kept = [
        value
        for value in vars(legacy).values()
        if hasattr(value, "_cache") and hasattr(value._cache, "_cache_file")
    ]
    assert kept
    assert {value._cache._cache_file._source_stamp for value in kept} == {jit.digest()}
