"""Energy counters, written out as files and as a device that counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeopt import errors
from edgeopt.measure.energy import EnergyMeter, EnergyReading
from edgeopt.measure.gpu import Gpus


def domain(root: Path, folder: str, name: str, microjoules: int, span: int | None = 1000) -> None:
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    if span is not None:
        (path / "max_energy_range_uj").write_text(f"{span}\n")


def test_packages_are_added_and_nothing_else_is(tmp_path: Path) -> None:
    def write(*values: int) -> None:
        names = (
            ("intel-rapl-mmio:0", "package-0"),  # the same package, seen another way
            ("intel-rapl:0", "package-0"),
            ("intel-rapl:0:0", "core"),
            ("intel-rapl:0:1", "dram"),
            ("intel-rapl:1", "package-1"),
            ("intel-rapl:2", "psys"),
        )
        for (folder, name), value in zip(names, values, strict=True):
            domain(tmp_path, folder, name, value, span=10**9)

    write(1, 2_000_000, 3, 4, 5_000_000, 6)
    (tmp_path / "intel-rapl").mkdir()  # the control type itself
    meter = EnergyMeter(root=tmp_path)
    meter.begin()
    write(9_000_000, 3_500_000, 9_000_000, 9_000_000, 5_250_000, 9_000_000)
    found = meter.end()
    assert found.parts == pytest.approx({"package-0": 1.5, "package-1": 0.25})
    assert found.joules == pytest.approx(1.75)
    assert found.covers == "whole of package-0, package-1, all processes"
    assert found.reason == ""


def test_a_counter_that_wraps_around(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 900_000_000, span=1_000_000_000)
    meter = EnergyMeter(root=tmp_path)
    meter.begin()
    domain(tmp_path, "intel-rapl:0", "package-0", 100_000_000, span=1_000_000_000)
    assert meter.end().joules == pytest.approx(200)


def test_a_wrap_of_unknown_size_is_no_figure(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 900, span=None)
    meter = EnergyMeter(root=tmp_path)
    meter.begin()
    domain(tmp_path, "intel-rapl:0", "package-0", 100, span=None)
    assert meter.end() == EnergyReading(None, reason="package-0: the counter began anew")


def test_no_counters_is_a_reason_and_not_zero(tmp_path: Path) -> None:
    meter = EnergyMeter(root=tmp_path / "none")
    meter.begin()
    assert meter.end() == EnergyReading(None, reason=f"no RAPL counters in {tmp_path / 'none'}")


def test_a_counter_that_is_not_there_or_says_nonsense(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0/energy_uj").unlink()
    meter = EnergyMeter(root=tmp_path)
    meter.begin()
    assert meter.end().reason == "package-0: No such file or directory"
    (tmp_path / "intel-rapl:0/energy_uj").write_text("?")
    found = meter.end()
    assert found.joules is None
    assert found.reason == "package-0: the counter was not read at the beginning"


def test_a_counter_for_the_administrator_only(tmp_path: Path) -> None:
    """Really without the right: as another user where the tests run as root."""
    domain(tmp_path, "intel-rapl:0", "package-0", 1)
    script = (
        "import os, sys; from pathlib import Path; from edgeopt.measure.energy import EnergyMeter\n"
        "os.chdir(sys.argv[1]); Path('intel-rapl:0/energy_uj').chmod(0)\n"
        "if hasattr(os, 'geteuid') and os.geteuid() == 0: os.setuid(65534)\n"
        "meter = EnergyMeter(root=Path('.')); meter.begin(); found = meter.end()\n"
        "assert found.joules is None, found; print(found.reason)"
    )
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(errors.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "package-0: only the administrator may read the counter"


def test_a_device_is_counted_beside_the_processor(tmp_path: Path) -> None:
    class NVMLError(Exception):
        pass

    counter = iter([1000, 4000])

    def energy(handle: object) -> int:
        try:
            return next(counter)
        except StopIteration:
            raise NVMLError("Not Supported") from None

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlSystemGetDriverVersion=lambda: "580",
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUUID=lambda handle: "GPU-a1",
        nvmlDeviceGetName=lambda handle: "H200",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=1, used=1),
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )
    gpus = Gpus(nvml)
    meter = EnergyMeter(gpus, gpus.devices[0], root=tmp_path)
    meter.begin()
    found = meter.end()
    assert found.joules == found.parts["GPU-a1"] == 3.0
    assert found.covers == "whole of GPU-a1, all processes"
    assert "no RAPL" in found.reason
    assert meter.end().reason.endswith("H200: no energy counter")
