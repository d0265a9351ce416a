"""Artifacts made for any machine give on ARM what they give on x86-64.

Stated tolerances, each a little looser than what was measured with ONNX Runtime 1.32 (in brackets):

- FP16, and weights expanded to float at load: 110 dB against x86-64 (127 to 140): float arithmetic
  in another order.
- Static INT8, one product in integers, lookups: 110 dB (the same bits).
- Whole models that quantize activations: 40 dB (48 and up): a difference in a float's last bit can
  carry an activation over to the next code, which is a step of 1/255 of its range.
- MatMulNBits at accuracy_level 4: 30 dB (x86-64 and ARM round activations in blocks of their own).

And whatever the difference: as close to the float64 model as x86-64's answers, within half a
decibel, and the same class wherever x86-64's answer is not a near tie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tests.arm.artifacts import _MAKERS, FORMS, MODELS, Array, Asked, make_form, make_model
from tests.arm.emulated import CPUS, Cpu
from tests.arm.guest import answer
from tests.graphs.nets import close_db

FLOAT_DB, MODEL_DB, BLOCKS_DB = 110.0, 40.0, 30.0
Answers = Callable[[Cpu | None], Mapping[str, Array]]


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Asked]:
    folder = tmp_path_factory.mktemp("artifacts")
    found = [one for name in _MAKERS for one in make_model(name, folder)]
    found += [make_form(name, folder) for name in FORMS]
    return {one.path.stem: one for one in found}


@pytest.fixture(scope="session")
def answers(asked: dict[str, Asked], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What a CPU answers to everything, asked in one process; None: this machine."""

    @cache
    def given(cpu: Cpu | None) -> Mapping[str, Array]:
        out = tmp_path_factory.mktemp("answers")
        folder = next(iter(asked.values())).path.parent
        if cpu is None:
            answer(folder, out)
        else:
            cpu.run("answer", str(folder), str(out))
        found = {path.stem: np.load(path) for path in out.glob("*.npz")}
        return {name: arrays[arrays.files[0]] for name, arrays in found.items()}

    return given


def test_the_cpus_are_what_they_are_taken_for(cpu: Cpu) -> None:
    said = json.loads(cpu.run("features"))
    assert said["machine"] == "aarch64"
    assert set(said["features"]) == cpu.features
    print(f"{cpu.name}: {', '.join(said['features']) or 'baseline'}")


def _tolerance(name: str) -> float:
    if name in MODELS:
        return FLOAT_DB if name.endswith("fp16") else MODEL_DB
    return BLOCKS_DB if name.endswith("level4") else FLOAT_DB


@pytest.mark.parametrize("name", [*MODELS, *FORMS])
def test_the_same_answers(
    name: str, cpu: Cpu, asked: dict[str, Asked], answers: Answers, record_property: Callable
) -> None:
    here, there = answers(None)[name], answers(cpu)[name]
    assert there.dtype == here.dtype and there.shape == here.shape
    apart = close_db(here, there)
    record_property("db_from_x86", apart)
    print(f"{name} on {cpu.name}: {apart:.1f} dB from x86-64")
    assert apart >= _tolerance(name)
    reference = asked[name].reference
    assert close_db(reference, there) >= min(close_db(reference, here) - 0.5, 120)
    if name in FORMS:
        assert close_db(reference, there) >= FORMS[name].decibels
    if name in MODELS:
        worst = np.abs(here.astype(np.float64) - there).max()
        first, second = -np.sort(-here, axis=-1)[..., :2].T
        clear = first - second > 2 * worst
        assert clear.mean() >= 0.5
        assert (here.argmax(-1) == there.argmax(-1))[clear].all()


def test_the_artifacts_are_of_every_kind(asked: dict[str, Asked]) -> None:
    """What was measured is what is meant: static, dynamic and weight-only, 8 and 4 bits."""
    import onnx

    found: set[str] = set()
    for name in MODELS:
        found |= {node.op_type for node in onnx.load(asked[name].path).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv", "DynamicQuantizeLinear"} <= found
    assert {"MatMulInteger", "Cast", "LayerNormalization"} <= found


def test_cpus_run_kernels_of_their_own(answers: Answers, tmp_path: Path) -> None:
    """The suite could not tell a CPU from another if all were given the same kernels: with dotprod
    the runtime computes MatMulNBits at accuracy_level 4 in integers, without it in float."""
    base, newer = answers(CPUS[0]), answers(CPUS[1])
    assert close_db(base["nbits-int4-level4"], newer["nbits-int4-level4"]) < FLOAT_DB
    np.testing.assert_array_equal(base["nbits-int4-level0"], newer["nbits-int4-level0"])
