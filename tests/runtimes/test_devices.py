"""Which device is taken: by rules, with drivers and runtimes that pretend."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from edgeopt.errors import UsageError
from edgeopt.runtimes import devices

RUNTIMES = ("onnxruntime", "torch", "llama.cpp")


class Driver:
    """libcuda.so with so many devices, or that fails."""

    def __init__(self, count: int, init: int = 0, ask: int = 0) -> None:
        self.count, self.init, self.ask = count, init, ask

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return self.ask


def driven(monkeypatch: pytest.MonkeyPatch, driver: Driver | None) -> None:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if driver is None:
            raise OSError("cannot open shared object file")
        return driver

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", load)


def built(monkeypatch: pytest.MonkeyPatch, cuda: bool, works: bool = True) -> None:
    providers = ["CUDAExecutionProvider"] if cuda else []
    fakes = {
        "onnxruntime": SimpleNamespace(
            __version__="1.0", get_available_providers=lambda: [*providers, "CPUExecutionProvider"]
        ),
        "torch": SimpleNamespace(
            __version__="2.0",
            version=SimpleNamespace(cuda="12.8" if cuda else None),
            cuda=SimpleNamespace(is_available=lambda: works),
        ),
        "llama_cpp": SimpleNamespace(__version__="0.3", llama_supports_gpu_offload=lambda: cuda),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(devices, "is_installed", lambda package: package in fakes)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_gpu_that_answers_and_a_build_that_has_cuda(
    monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    driven(monkeypatch, Driver(1))
    built(monkeypatch, cuda=True)
    assert devices.offered(runtime) == ("cpu", "cuda")
    assert devices.resolve("auto", runtime) == "cuda"
    assert devices.resolve("cuda", runtime) == "cuda"
    assert devices.resolve("cpu", runtime) == "cpu"


@pytest.mark.parametrize(
    ("driver", "said"),
    [
        (None, r"libcuda\.so\.1 is not there"),
        (Driver(1, init=100), "error 100"),
        (Driver(1, ask=3), "error 3"),
        (Driver(0), "sees none"),
    ],
)
def test_no_gpu_answers(monkeypatch: pytest.MonkeyPatch, driver: Driver | None, said: str) -> None:
    driven(monkeypatch, driver)
    for runtime in RUNTIMES:
        monkeypatch.setitem(sys.modules, runtime.replace(".", "_"), None)  # none of them is loaded
        assert devices.resolve("auto", runtime) == "cpu"
        with pytest.raises(UsageError, match=f"device cuda: no GPU answers: .*{said}"):
            devices.resolve("cuda", runtime)


def test_hidden_gpus_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    driven(monkeypatch, Driver(0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is ''" in devices.gpu_problem()


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        ("onnxruntime", "no CUDAExecutionProvider"),
        ("torch", "built without CUDA"),
        ("llama.cpp", "built without CUDA"),
    ],
)
def test_builds_without_cuda(monkeypatch: pytest.MonkeyPatch, runtime: str, said: str) -> None:
    driven(monkeypatch, Driver(1))
    built(monkeypatch, cuda=False)
    assert devices.resolve("auto", runtime) == "cpu"
    with pytest.raises(UsageError, match=said):
        devices.resolve("cuda", runtime)
    monkeypatch.setattr(devices, "is_installed", lambda package: False)
    with pytest.raises(UsageError, match="is not installed"):
        devices.resolve("cuda", runtime)


def test_torch_that_does_not_reach_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driven(monkeypatch, Driver(1))
    built(monkeypatch, cuda=True, works=False)
    with pytest.raises(UsageError, match="does not get on with the driver"):
        devices.resolve("cuda", "torch")


def test_what_has_no_gpu_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    driven(monkeypatch, Driver(1))
    assert devices.resolve("auto", "weights") == "cpu"
    with pytest.raises(UsageError, match="weights computes on the CPU alone"):
        devices.resolve("cuda", "weights")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "no driver for darwin" in devices.gpu_problem()
    with pytest.raises(UsageError, match="device tpu; use cpu, cuda or auto"):
        devices.resolve("tpu", "torch")


def test_this_machine_answers_one_way_or_the_other() -> None:
    assert devices.resolve("cpu", "onnxruntime") == "cpu"
    missing = devices.gpu_problem()
    if missing:
        assert devices.resolve("auto", "onnxruntime") == "cpu"
