"""The llama.cpp engine, against llama-bench's loops written out on the C functions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_gguf

from edgeopt.errors import SourceError, UsageError, WorkerError
from edgeopt.runtimes.engine import Case, make_engine
from edgeopt.runtimes.engine_llamacpp import LlamaCppEngine

llama_cpp = pytest.importorskip("llama_cpp")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tiny_gguf.llama(), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tiny_gguf.bert(), tmp_path_factory.mktemp("bert") / "bert.gguf")


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The tokens of every decode call, after () for each time that the memory was cleared."""
    calls: list[tuple[int, ...]] = []
    decode, clear = llama_cpp.llama_decode, llama_cpp.llama_memory_clear

    def noted(native: Any, batch: Any) -> int:
        calls.append(tuple(batch.token[: batch.n_tokens]))
        return int(decode(native, batch))

    def cleared(memory: Any, data: bool) -> None:
        assert data is False  # wiping the cells costs time that no token takes
        calls.append(())
        clear(memory, data)

    monkeypatch.setattr(llama_cpp, "llama_decode", noted)
    monkeypatch.setattr(llama_cpp, "llama_memory_clear", cleared)
    return calls


def engine_of(path: Path, workload: str, tokens: int, **more: Any) -> LlamaCppEngine:
    # This file's weights are float32; a machine that cannot repack others must still run it.
    options = {"repack": False, **more.pop("options", {})}
    case = Case(
        path, (path,), "llama.cpp", workload=workload, tokens=tokens, options=options, **more
    )
    engine = make_engine(case)
    assert isinstance(engine, LlamaCppEngine)
    return engine


@pytest.fixture
def start() -> Iterator[Any]:
    opened: list[LlamaCppEngine] = []

    def make(*args: Any, **more: Any) -> LlamaCppEngine:
        engine = engine_of(*args, **more)
        engine.imports()
        engine.load()
        opened.append(engine)
        engine.prepare({})
        return engine

    yield make
    for engine in opened:
        engine.session.close()


class Bench:
    """A context as llama-bench makes it, and its two loops."""

    def __init__(self, path: Path, context: int) -> None:
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = False
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = context, 2048, 512
        parameters.n_threads = parameters.n_threads_batch = 1
        self.native = llama_cpp.llama_init_from_model(self.model, parameters)
        self.decoded: list[int] = []

    def _decode(self, tokens: list[int]) -> None:
        held = (ctypes.c_int32 * len(tokens))(*tokens)
        assert (
            llama_cpp.llama_decode(self.native, llama_cpp.llama_batch_get_one(held, len(held))) == 0
        )
        self.decoded.append(len(tokens))

    def pp(self, tokens: list[int]) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.native), False)
        for at in range(0, len(tokens), 2048):
            self._decode(tokens[at : at + 2048])
        llama_cpp.llama_synchronize(self.native)

    def tg(self, tokens: list[int]) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.native), False)
        for token in tokens:
            self._decode([token])
            llama_cpp.llama_synchronize(self.native)

    def logits(self) -> np.ndarray:
        width = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        rows = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.native), (1, width))
        return np.array(rows)

    def close(self) -> None:
        llama_cpp.llama_free(self.native)
        llama_cpp.llama_model_free(self.model)


def test_pp_is_llama_benchs(start: Any, tiny: Path, decodes: list[tuple[int, ...]]) -> None:
    engine = start(tiny, "pp", 200)
    engine.run()
    cleared, prompt = decodes
    assert cleared == ()
    assert len(prompt) == 200
    assert prompt[0] == engine.session.bos == 257
    assert len(set(prompt)) > 50
    engine.run()
    assert decodes == [(), prompt] * 2
    mine = np.array(engine.session._rows(1))
    bench = Bench(tiny, 200)
    bench.pp(list(prompt))
    np.testing.assert_array_equal(mine, bench.logits())
    bench.close()


def test_a_prompt_longer_than_a_batch(start: Any, tiny: Path, decodes: list[Any]) -> None:
    engine = start(tiny, "pp", 2100)
    engine.run()
    assert [len(call) for call in decodes] == [0, 2048, 52]
    info = engine.info()
    assert (info["batch"], info["ubatch"]) == (2048, 512)


def test_tg_is_llama_benchs(start: Any, tiny: Path, decodes: list[tuple[int, ...]]) -> None:
    engine = start(tiny, "tg", 5)
    for _ in range(5):
        engine.run()
    tokens = [call[0] for call in decodes[1:]]
    assert [len(call) for call in decodes] == [0, 1, 1, 1, 1, 1]
    assert tokens[0] == engine.session.bos
    mine = np.array(engine.session._rows(1))
    engine.run()
    assert decodes[6:] == [(), (tokens[0],)]  # one token a run, anew after five
    engine.prepare({})
    engine.run()
    assert decodes[8:] == [(), (tokens[0],)]
    bench = Bench(tiny, 5)
    bench.tg(tokens)
    np.testing.assert_array_equal(mine, bench.logits())
    assert bench.decoded == [1] * 5
    bench.close()


def test_info(start: Any, tiny: Path) -> None:
    engine = start(tiny, "tg", 8, options={"context": 64}, threads=2)
    info = engine.info()
    engine.session.close()
    assert (info["workload"], info["tokens"], info["context"]) == ("tg", 8, 64)
    assert info["threads"] == 2
    assert info["device"] == "cpu"
    assert info["layers_on_gpu"] is None
    assert info["mmap"] is True
    assert info["repack_asked"] is info["repack"] is False
    info = start(tiny, "pp", 8, options={"mmap": False}).info()
    assert info["mmap"] is False


def test_what_llama_cpp_does_by_itself_is_the_default(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(path: bytes, parameters: Any) -> None:
        asked.append((parameters.n_gpu_layers, parameters.use_extra_bufts))

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", load)
    engine = make_engine(Case(tiny, (tiny,), "llama.cpp", workload="pp", tokens=8))
    engine.imports()
    with pytest.raises(SourceError, match="cannot load it"):
        engine.load()
    assert asked == [(0, llama_cpp.llama_model_default_params().use_extra_bufts)]


def test_an_embedder_takes_prompts_only(start: Any, bert: Path, decodes: list[Any]) -> None:
    engine = start(bert, "pp", 100)
    engine.run()
    engine.run()
    assert [len(call) for call in decodes] == [100, 100]  # and it has no memory to clear
    assert engine.session.embeds
    assert engine.info()["ubatch"] == 100
    with pytest.raises(UsageError, match="an embedding model generates nothing"):
        start(bert, "tg", 4)


def test_what_cannot_be_asked(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"llama\.cpp does pp or tg"):
        engine_of(tiny, "inference", 4)
    with pytest.raises(UsageError, match="give 1 or more"):
        engine_of(tiny, "pp", 0)
    with pytest.raises(UsageError, match="do not fit a context of 4"):
        engine_of(tiny, "pp", 8, options={"context": 4})
    engine = engine_of(tmp_path / "none.gguf", "pp", 8)
    engine.imports()
    with pytest.raises(SourceError, match="no such file"):
        engine.load()


def test_failures_of_the_library(start: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(tiny, "pp", 4)
    monkeypatch.setattr(llama_cpp, "llama_decode", lambda native, batch: -3)
    with pytest.raises(WorkerError, match="code -3"):
        engine.run()
    monkeypatch.setattr(llama_cpp, "llama_model_has_encoder", lambda model: True)
    with pytest.raises(SourceError, match="an encoder and a decoder"):
        start(tiny, "pp", 4)


# -- CUDA, with a library that pretends to have it


@pytest.mark.skipif(llama_cpp.llama_supports_gpu_offload(), reason="this build has a GPU")
def test_cuda_is_refused_where_the_build_has_none(start: Any, tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"not one that this llama\.cpp has"):
        start(tiny, "pp", 4, device="cuda")


def pretend(monkeypatch: pytest.MonkeyPatch, layers: str) -> list[int]:
    """Offloading that is supported, asked for, and said to be done for ``layers``."""
    from edgeopt.runtimes.llamacpp_library import LOG

    load, asked = llama_cpp.llama_model_load_from_file, []

    def pretended(path: bytes, parameters: Any) -> Any:
        asked.append(parameters.n_gpu_layers)
        parameters.n_gpu_layers = 0
        model = load(path, parameters)
        LOG.take(2, f"load_tensors: offloaded {layers} layers to GPU\n".encode(), None)
        return model

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", pretended)
    return asked


def test_cuda_takes_every_layer_and_says_how_many(
    start: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = pretend(monkeypatch, "2/3")
    info = start(tiny, "pp", 4, device="cuda").info()
    assert asked[0] > 1000
    assert (info["device"], info["layers_on_gpu"]) == ("cuda", [2, 3])


def test_cuda_that_takes_no_layer_is_no_cpu_run(
    start: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "0/3")
    with pytest.raises(UsageError, match="put no layer"):
        start(tiny, "pp", 4, device="cuda")
