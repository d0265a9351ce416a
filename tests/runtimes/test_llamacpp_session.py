"""Sessions over llama.cpp's C functions, against its own class and the system's books."""

from __future__ import annotations

import builtins
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import tiny_gguf

from edgeopt.errors import InputsError, MissingExtraError, SourceError, WorkerError
from edgeopt.runtimes import llamacpp
from edgeopt.runtimes.llamacpp import LlamaSession
from edgeopt.runtimes.smaps import file_pages

llama_cpp = pytest.importorskip("llama_cpp")

TEXT = "the weather there is thin, the heather thick"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tiny_gguf.llama(), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def test_logits_are_those_of_the_high_level_class(tiny: Path) -> None:
    llama = llama_cpp.Llama(
        str(tiny), n_ctx=128, n_threads=1, logits_all=True, type_k=0, type_v=0, verbose=False
    )
    tokens = llama.tokenize(TEXT.encode())
    llama.eval(tokens)
    expected = np.array(llama.scores[: len(tokens)])
    llama.close()
    with LlamaSession.open(tiny, context=128, exact=True) as session:
        assert session.tokenize(TEXT).tolist() == tokens
        assert session.tokenize(TEXT.encode(), special=False).tolist() == tokens[1:]
        assert session.bos == tokens[0] == 257
        assert session.text_of(tokens[1:]) == TEXT
        np.testing.assert_allclose(session.logits(tokens), expected, rtol=1e-5, atol=1e-5)


def test_logits_in_steps_and_of_a_part(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 100)
    with LlamaSession.open(tiny, context=128, exact=True) as session:
        whole = session.logits(tokens)
        assert whole.shape == (100, session.vocabulary)
        assert np.array_equal(session.logits(tokens, 60), whole[60:])
        assert session.logits(tokens, 100).shape == (0, session.vocabulary)
    monkeypatch.setattr(llamacpp, "_STEP", 32)
    with LlamaSession.open(tiny, context=128, exact=True) as session:
        parts = [len(rows) for rows in session.stream_logits(tokens, 60)]
        assert parts == [4, 32, 4]
        np.testing.assert_allclose(session.logits(tokens, 60), whole[60:], rtol=1e-4, atol=1e-4)


def test_greedy_text_follows_the_logits(tiny: Path) -> None:
    with LlamaSession.open(tiny, context=64) as session:
        prompt = session.tokenize("th")
        made = session.generate(prompt, 8)
        assert made.finite and (made.stopped or len(made.tokens) == 8)
        sequence = list(prompt)
        for token in made.tokens:
            assert session.logits(sequence)[-1].argmax() == token
            sequence.append(token)
        with pytest.raises(InputsError, match="do not fit a context of 64"):
            session.generate(prompt, 64)


def test_what_does_not_fit(tiny: Path) -> None:
    with LlamaSession.open(tiny, context=64) as session:
        with pytest.raises(InputsError, match="0 tokens, the session takes 1 to 64"):
            session.logits([])
        with pytest.raises(InputsError, match="65 tokens"):
            session.logits([1] * 65)
        with pytest.raises(InputsError, match="its vocabulary ends at 257"):
            session.logits([1, 258])
    session.close()  # twice is once


def test_mapped_or_read(tiny: Path) -> None:
    with LlamaSession.open(tiny, context=64) as session:
        info = session.info()
        assert info["mmap_asked"] is info["mmap"] is True
        assert info["repack_asked"] is info["repack"] is False
        assert info["pages_shared"] is True
        assert info["pages"]["anonymous"] == 0
        assert info["pages"]["size"] > 0.9 * (tiny.stat().st_size - 16_384)
        assert info["version"].endswith(llama_cpp.__version__)
        assert "CPU" in info["system"]
        assert any("Mapped" in name for name in info["buffers"])
    assert file_pages(tiny) is None
    with LlamaSession.open(tiny, context=64, mmap=False) as session:
        info = session.info()
        assert info["mmap_asked"] is info["mmap"] is info["pages_shared"] is False
        assert info["pages"] is None


def test_pages_of_two_processes_are_shared(tiny: Path) -> None:
    code = (
        "import sys; from edgeopt.runtimes.llamacpp import LlamaSession\n"
        "s = LlamaSession.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    with LlamaSession.open(tiny, context=64) as session:
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(tiny)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        pages = session.info()["pages"]
        other.communicate()
    assert pages["shared"] > 0.9 * pages["rss"]
    assert pages["pss"] < 0.6 * pages["rss"]


def test_pages_where_the_system_keeps_no_books(tiny: Path, tmp_path: Path) -> None:
    assert file_pages(tiny, tmp_path / "smaps") is None
    books = tmp_path / "books"
    books.write_text(
        "10-20 r--s 0 fe:00 5 /a file\nSize: 8 kB\nRss: 4 kB\nVmFlags: rd mr\n"
        "20-30 rw-p 0 fe:00 5 /a file\nSize: 8 kB\nAnonymous: 4 kB\n"
        "30-40 rw-p 0 00:00 0\nSize: 8 kB\n"
    )
    pages = file_pages("/a file", books)
    assert pages is not None
    assert (pages.size, pages.rss, pages.anonymous) == (16_384, 4096, 4096)
    assert not pages.shareable


def test_embeddings(tmp_path: Path) -> None:
    path = tiny_gguf.write(tiny_gguf.bert(), tmp_path / "bert.gguf")
    with LlamaSession.open(path, context=64, embeddings=True) as session:
        a, b = (session.embed(session.tokenize(text)) for text in ("a b c", "x y z"))
        assert a.shape == (session.width,)
        assert np.isfinite(a).all()
        assert np.array_equal(a, session.embed(session.tokenize("a b c")))
        assert not np.allclose(a, b)


def test_embeddings_where_the_file_does_not_say_how_to_pool(tmp_path: Path) -> None:
    model = tiny_gguf.bert()
    bare = {k: v for k, v in model.metadata.items() if k != "bert.pooling_type"}
    means = []
    for at, metadata in enumerate((model.metadata, bare)):
        same = dataclasses.replace(model, metadata=metadata)
        path = tiny_gguf.write(same, tmp_path / f"{at}.gguf")
        with LlamaSession.open(path, context=64, embeddings=True) as session:
            means.append(session.embed(session.tokenize("a b c")))
    np.testing.assert_allclose(means[1], means[0], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_loaded(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SourceError, match="no such file"):
        LlamaSession.open(tmp_path / "missing.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:200_000])
    with pytest.raises(SourceError, match=r"llama\.cpp cannot load it: tensor .* not within"):
        LlamaSession.open(cut)
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_failures_of_the_library(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LlamaSession.open(tiny, context=64) as session:
        monkeypatch.setattr(session._library, "llama_get_logits", lambda native: None)
        with pytest.raises(WorkerError, match="gives no logits"):
            session.logits([1])
        monkeypatch.setattr(session._library, "llama_decode", lambda native, batch: -3)
        with pytest.raises(WorkerError, match="code -3"):
            session.logits([1])
        monkeypatch.setattr(session._library, "llama_get_embeddings_seq", lambda native, i: None)
        monkeypatch.setattr(session._library, "llama_get_embeddings", lambda native: None)
        monkeypatch.setattr(session._library, "llama_decode", lambda native, batch: 0)
        with pytest.raises(WorkerError, match="no embeddings"):
            session.embed([1])
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda model, parameters: None)
    with pytest.raises(SourceError, match="cannot make a context"):
        LlamaSession.open(tiny)


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (
            ModuleNotFoundError("no", name="llama_cpp"),
            MissingExtraError,
            r"pip install '.*\[llama\]",
        ),
        (RuntimeError("Failed to load\nlibllama.so"), WorkerError, "install it again"),
    ],
)
def test_without_the_package(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: Any, text: str
) -> None:
    plain = builtins.__import__

    def hide(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "llama_cpp":
            raise raised
        return plain(name, *rest, **more)

    llamacpp._library.cache_clear()
    monkeypatch.setattr(builtins, "__import__", hide)
    with pytest.raises(expected, match=text):
        LlamaSession.open(tiny)


def test_the_package_is_found_without_loading_it() -> None:
    code = "import sys; from edgeopt.runtimes import llamacpp as l; print(l.installed()); "
    code += "print('llama_cpp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
