"""Every public function, called with junk: it works or raises one of our errors, in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import edgeopt
from edgeopt.errors import EdgeoptError

VERBS = ("quantize", "prune", "distill", "export", "verify", "inspect", "bench", "compare")
JUNK: tuple[Any, ...] = (3.5, -1, "no such", b"bytes", object(), [object()], {"a": 1}, True, 10**30)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calls") / "model.safetensors"
    save_file({"a.weight": np.zeros((8, 8), np.float32)}, path)
    return path


def _cases() -> list[tuple[str, str]]:
    return [
        (verb, name)
        for verb in VERBS
        for name, parameter in inspect.signature(getattr(edgeopt, verb)).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD and name != "progress"
    ]


def _first(verb: str) -> list[str]:
    names = inspect.signature(getattr(edgeopt, verb)).parameters.values()
    return [p.name for p in names if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def _refused(call: Callable[[], Any]) -> None:
    try:
        call()
    except EdgeoptError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("verb", "name"), _cases())
def test_junk(
    verb: str, name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    function = getattr(edgeopt, verb)
    for value in JUNK:
        given: dict[str, Any] = dict.fromkeys(_first(verb), str(tmp_path / "missing.onnx"))
        given[name] = value
        several = [n for n in _first(verb) if n in ("artifacts", "items") and n != name]
        for key in several:
            given[key] = [str(tmp_path / "missing.onnx")]
        _refused(lambda given=given: function(**given))  # type: ignore[misc]
    assert not list(tmp_path.iterdir())
    assert source.exists()


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_is_not_there(verb: str, tmp_path: Path) -> None:
    given = dict.fromkeys(_first(verb), str(tmp_path / "missing.onnx"))
    with pytest.raises(TypeError, match=rf"{verb}\(\)") as caught:
        getattr(edgeopt, verb)(**given, bitz=4)
    assert isinstance(caught.value, EdgeoptError)


def test_a_module_and_arrays_in_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 64)
    ).eval()
    rows = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    out = tmp_path / "q.onnx"
    proof = edgeopt.quantize(module, data={"input": rows}, out=out, prefer="size")
    assert proof.proven, proof.verdict
    assert "in memory" in str(proof.source["path"])
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: rows[:1]})[0]
    with torch.no_grad():
        want = module(torch.from_numpy(rows[:1])).numpy()
    assert np.square(got - want).sum() < 0.01 * np.square(want).sum()
    with pytest.raises(EdgeoptError, match=r"in memory"):
        edgeopt.bench([module])
