"""The contract's models, made for CPUs with and without VNNI, answer there as they should.

Each is exported once and quantized for every kind of CPU that it could be made for, the CPU's needs
forced; emulated CPUs of both kinds then run the files. Held against the float model as the runtime
here computes it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.contract.architectures import ARCHITECTURES, Case
from tests.cpu_arithmetic import ALL, AVX2, VNNI, Arithmetic, machine
from tests.cpus.emulated import CPUS, ROOT, command
from tests.graphs.nets import close_db
from tests.in_process import no_processes

import edgeopt
from edgeopt.core import Source
from edgeopt.graphs.capture import Captured
from edgeopt.graphs.saturation import saturating_products
from edgeopt.targets.onnx import plan as graph_plan
from edgeopt.targets.onnx import source as graph_source

pytestmark = [pytest.mark.cpus, pytest.mark.timeout(3600)]

Array = NDArray[Any]
GUEST = ROOT / "tests" / "arm" / "guest.py"
MODELS = {a.name: a for a in ARCHITECTURES if a.plain}
#: What a file can be made for, and the options that say so.
MADE_FOR: Mapping[str, tuple[Arithmetic, str]] = {
    "vnni": (VNNI, "here"),
    "avx2": (AVX2, "here"),
    "any": (VNNI, "portable"),
}
#: What the gate asks of 8 and 4 bits.
FLOORS = {8: 20.0, 4: 8.0}
SAMPLES = 32


@dataclasses.dataclass(frozen=True)
class Files:
    """Artifacts by (bits, what they are made for), with their arrays beside them; the float model's
    answers."""

    folder: Path
    made: Mapping[tuple[int, str], Path]
    reference: Array


def _make(name: str, folder: Path) -> Files:
    with pytest.MonkeyPatch.context() as patch:
        no_processes(patch, seconds=0.1)
        (folder / "source").mkdir(parents=True)
        case = MODELS[name].build(folder / "source")
        held = _export_once(patch, folder)
        made = {}
        for bits in (8, 4):
            for kind, (cpu, target) in MADE_FOR.items():
                patch.setattr(graph_plan, "machine", lambda on, threads, cpu=cpu: machine(cpu))
                made[bits, kind] = folder / f"{bits}-{kind}.onnx"
                options = {**case.options, **_data(case, folder)}
                edgeopt.quantize(
                    case.path, made[bits, kind], bits=bits, target=target, force=True, **options
                )
    for path in made.values():
        np.savez(path.with_suffix(".npz"), **case.feeds[0])
    return Files(folder, made, _run(held[0].model, case.feeds[0]))


def _data(case: Case, folder: Path) -> dict[str, str]:
    """Convolutional nets are made from samples as well: that is what gives static INT8."""
    feed = case.feeds[0]
    if len(feed) > 1 or next(iter(feed.values())).ndim != 4:
        return {}
    rng = np.random.default_rng(0)
    path = folder / "samples.npz"
    shapes = {name: (SAMPLES, *array.shape[1:]) for name, array in feed.items()}
    np.savez(path, **{n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()})
    return {"data": str(path)}


def _export_once(patch: pytest.MonkeyPatch, folder: Path) -> list[Captured]:
    held: list[Captured] = []
    real = graph_source.capture

    def capture(source: Source, workdir: Path, **options: Any) -> Captured:
        if not held:
            captured = real(source, workdir, **options)
            shutil.copytree(captured.model.parent, folder / "captured")
            model = folder / "captured" / captured.model.name
            held.append(dataclasses.replace(captured, model=model))
        return held[0]

    patch.setattr(graph_source, "capture", capture)
    return held


def _run(path: Path, feed: Mapping[str, Array]) -> Array:
    from edgeopt.runtimes.onnxruntime import OnnxSession

    session = OnnxSession.open(path)
    return next(iter(session.run(dict(feed)).values()))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda name: _make(name, tmp_path_factory.mktemp(name) / "files"))


@pytest.fixture(scope="module")
def answers(files: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a CPU answers with every artifact of a model, all in one emulated process."""

    @cache
    def given(cpu: str, name: str) -> Mapping[str, Array]:
        out = tmp_path_factory.mktemp("answers")
        done = subprocess.run(
            [*command(cpu)[0], str(GUEST), "answer", str(files(name).folder), str(out)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = {path.stem: np.load(path) for path in out.glob("*.npz")}
        return {stem: arrays[arrays.files[0]] for stem, arrays in found.items()}

    return given


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("name", MODELS)
def test_files_answer_on_the_cpus_that_they_are_made_for(
    name: str, cpu: str, files: Any, answers: Any
) -> None:
    made: Files = files(name)
    for (bits, kind), path in made.made.items():
        saturates = saturating_products(path) > 0
        assert not (saturates and kind != "vnni"), (bits, kind)
        got = close_db(made.reference, answers(cpu, name)[path.stem])
        here = close_db(made.reference, _run(path, np.load(path.with_suffix(".npz"))))
        print(f"{name}, {bits} bits for {kind}, as a {cpu}: {got:.1f} dB, here {here:.1f}")
        if cpu == "Haswell" and kind == "vnni" and saturates:
            continue  # what the note warns of; how far it falls is printed
        # A float's last bit carries an activation to the next code; and what 4 bits leave of an
        # output that cancels is the gate's to judge, not another CPU's.
        assert got >= min(FLOORS[bits], here - 1.5)
        assert saturates or abs(got - here) < 1.5


def test_the_emulated_cpus_differ() -> None:
    """A product that tells the two kinds apart, so that the suite above compares what it means."""
    probe = "from tests.cpu_arithmetic import at_hand; print(at_hand().name)"
    found = {
        cpu: subprocess.run(
            [*command(cpu)[0], "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for cpu in CPUS
    }
    assert found == {"Haswell": AVX2.name, "Nehalem": VNNI.name}
    assert len(ALL) == len(set(found.values()))
