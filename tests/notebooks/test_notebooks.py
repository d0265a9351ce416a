"""The notebooks: what is committed has outputs and pictures, and running them again works."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "01_quantize",
    "02_llm_gguf",
    "03_benchmark_and_report",
    "04_prune_distill_quantize",
)
#: Folders of the machine that ran them have no place in outputs: absolute, but for ONNX's names.
_PATHS = re.compile(r"(?<![\w.:/<])/(?:home|root|tmp|usr|opt|work|Users|var)/")


def book(name: str) -> Any:
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [out for cell in notebook.cells for out in cell.get("outputs", ())]


def shown(notebook: Any) -> str:
    texts = [out.get("text", "") + out.get("data", {}).get("text/plain", "")
             for out in outputs(notebook)]  # fmt: skip
    return "\n".join(texts)


def test_every_notebook_is_known() -> None:
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_committed_with_outputs_and_a_picture(name: str) -> None:
    notebook = book(name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(out.output_type == "error" for out in outputs(notebook))
    assert any("image/png" in out.get("data", {}) for out in outputs(notebook))
    assert not _PATHS.search(shown(notebook))
    assert "\x1b" not in shown(notebook), "plain text, without a terminal's codes"


#: Run first where the kernel itself measures, and told to commands that do: how long they take is
#: for verdicts that are to be believed, which these are not; and on some CPUs small models gain
#: nothing, so time decides no verdict here. Trainings are cut short, too.
_QUICK = """
from edgeopt.measure import pair
from edgeopt.targets.onnx import planner
from edgeopt.targets.onnx import prove as proving
from edgeopt.targets.program import prove as shrink_prove
planner._CONTEST = proving._SECONDS = shrink_prove._SECONDS = 0.5
pair._PROCESSES = 1
pair._is_slower = lambda measured: False
"""
_SHORTER = {
    "--time 2": "--time 0.5 --processes 5",
    "--time 1 ": "--time 0.3 ",
    "epochs=8": "epochs=5",
}


def shortened(notebook: Any) -> Any:
    """The notebook without outputs, and measuring for less long."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [], None
        for long, short in _SHORTER.items():
            cell.source = cell.source.replace(long, short)
    if any("edgeopt.quantize(" in cell.source and ".onnx" in cell.source for cell in cells):
        notebook.cells.insert(0, nbformat.v4.new_code_cell(_QUICK))
    return notebook


@pytest.mark.parametrize("name", NAMES)
def test_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Jupyter would run it, in the notebooks' folder; and it comes to what is committed."""
    if name.startswith("04"):
        pytest.importorskip("torch_pruning")
        pytest.importorskip("accelerate")
    if name.startswith("02"):
        pytest.importorskip("llama_cpp")
        pytest.importorskip("numba")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    here = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))
    notebook = shortened(book(name))
    where = {"metadata": {"path": str(ROOT / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3", resources=where).execute()
    found = shown(notebook)
    for claim in _CLAIMS[name]:
        assert re.search(claim, found), f"{claim} is nowhere in\n{found}"
    assert any("image/png" in out.get("data", {}) for out in outputs(notebook))


#: What each tells, whatever the machine: sizes, verdicts, exit codes.
_CLAIMS = {
    "01_quantize": (
        r"8 bits: [\d,]+ bytes, 3\.[5-9]\dx smaller.*proven: True",
        r"4 bits: [\d,]+ bytes, [5-7]\.\d+x smaller.*proven: True",
        r" 8 bits: \d\d\.\d+% right, (99|100)\.\d+% the same class",
    ),
    "02_llm_gguf": (
        r"Q8_0 +[\d,]+ bytes, 1\.8\dx smaller.*proven: True",
        r"Q4_K_M +[\d,]+ bytes, 3\.\d+x smaller.*proven: True",
        r"Q6_K +\d+ tensors.*output\.weight",
        r"135 M weights",
        r"France.*Paris",
    ),
    "03_benchmark_and_report": (
        r"int8 against float32: 3\.[78]x smaller",
        r"copy against float32: the same size",
        r"loads 0 things from elsewhere",
        r"[58] processes",
        r"exit code 4",
    ),
    "04_prune_distill_quantize": (
        r"cut and recovered: 5\.\d+x fewer parameters, 9\d\.\d+% right.*proven: True",
        r"classifier +10 -> +10 +its channels are the model's output",
        r"student: [34]\.\d+x fewer parameters, 9\d\.\d+% right.*proven: True",
        r"pruned-int8\.onnx: 1[5-9]\.\dx smaller than model\.pt",
        r"pruned-int8 against float32: 1\dx smaller",
    ),
}
