"""llama.cpp: open a GGUF file as a session, ask it for logits, text or embeddings.

Built on the ctypes layer of llama-cpp-python, not on its ``Llama`` class, which keeps an array of
context x vocabulary floats; here logits are windows on llama.cpp's own buffer, a few hundred rows
at a time.

Importing this module costs numpy only; the library is loaded by the first session. What it prints
is caught, and its last errors become part of ours. Files that are not one's own belong into a
worker process (:mod:`edgeopt.measure.process`): native code can crash.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.ggml import TYPE_NUMBERS
from edgeopt.core.packages import is_installed
from edgeopt.errors import InputsError, SourceError, UsageError, WorkerError
from edgeopt.runtimes.llamacpp_library import LOG as _LOG
from edgeopt.runtimes.llamacpp_library import filled as _filled
from edgeopt.runtimes.llamacpp_library import library as _library
from edgeopt.runtimes.llamacpp_library import listen as _listen
from edgeopt.runtimes.llamacpp_library import metadata as _metadata
from edgeopt.runtimes.smaps import FilePages, file_pages, mappings_known

__all__ = ["Generated", "LlamaSession", "TokenBatch", "installed", "preload"]

#: Tokens decoded at a time: bounds the buffer of logits, and is enough for a CPU's full speed.
_STEP = 256

#: ``load_mode`` of current versions; older ones have a bool ``use_mmap``.
_LOAD_MODES = {False: 0, True: 1}

#: Keys and values in float32, and no flash attention (a bool in older versions).
_EXACT = {
    "type_k": TYPE_NUMBERS["F32"],
    "type_v": TYPE_NUMBERS["F32"],
    "flash_attn_type": 0,
    "flash_attn": False,
}

#: Layers to compute on the GPU: more than any model has.
_ALL_LAYERS = 1 << 20


def installed() -> bool:
    """Whether llama-cpp-python is there, without loading it."""
    return is_installed("llama_cpp")


def preload() -> None:
    """Load the library now, so that the next session's failure is the session's own."""
    _library()


@dataclass(frozen=True)
class TokenBatch:
    """Tokens as llama.cpp takes them; ``numbers`` are what ``native`` points to."""

    native: Any
    numbers: Any


@dataclass(frozen=True)
class Generated:
    """Tokens that were generated, and whether all logits on the way were finite.

    ``stopped``: the model ended its text before the number of tokens asked for.
    """

    tokens: tuple[int, ...]
    finite: bool
    stopped: bool


class LlamaSession:
    """A GGUF file opened by llama.cpp; make one with :meth:`open`, close it after use.

    ``context`` is the most tokens in a sequence, ``vocabulary`` the width of the logits, ``width``
    that of an embedding. ``trained_context`` is what the model was trained with (0: not said);
    one with a table of positions has no more of them. ``bos`` is the token that this model's
    texts begin with, or None. ``embeds``: it gives pooled embeddings in place of logits.
    ``encodes``: it has an encoder that runs before its decoder.
    """

    def __init__(self, path: Path, library: Any, model: Any, native: Any, asked: Any) -> None:
        self.path = path
        self._library, self._model, self._native = library, model, native
        self._asked = asked
        self._vocab = library.llama_model_get_vocab(model)
        self._batch = library.llama_batch_init(asked["step"], 0, 1)
        self.context: int = asked["context"]
        self.embeds: bool = asked["embeddings"]
        self.vocabulary: int = library.llama_vocab_n_tokens(self._vocab)
        self.width: int = library.llama_model_n_embd(model)
        self.trained_context: int = library.llama_model_n_ctx_train(model)
        self.encodes: bool = library.llama_model_has_encoder(model)
        bos = library.llama_vocab_bos(self._vocab)
        adds = library.llama_vocab_get_add_bos(self._vocab)
        self.bos: int | None = bos if adds and bos >= 0 else None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int = 1,
        context: int = 512,
        mmap: bool = True,
        repack: bool = False,
        embeddings: bool | None = False,
        exact: bool = False,
        batch: int | None = None,
        ubatch: int | None = None,
        device: str = "cpu",
    ) -> LlamaSession:
        """Load ``path`` for sequences of up to ``context`` tokens.

        ``mmap`` maps the weights instead of reading them into the heap. ``repack`` lets llama.cpp
        copy weights into a layout that its CPU kernels like better, which undoes the mapping's
        saving. ``embeddings`` gives pooled embeddings in place of logits; None: where the model
        is made for nothing else. ``exact`` keeps attention in float32, for a comparison with
        another implementation; llama.cpp's defaults round it through float16. At most
        ``batch`` tokens are decoded by a call, ``ubatch`` of them computed at once. With
        ``device`` "cuda" every layer goes to the GPU.

        Raises SourceError where the file is missing or llama.cpp cannot load it,
        MissingExtraError without llama-cpp-python, UsageError for a device that this build does
        not have or that takes no layer.
        """
        path = Path(path)
        if not path.is_file():
            raise SourceError(f"{path}: no such file; give the path of a GGUF file")
        library = _library()
        gpu = _on_gpu(library, device)
        _listen()
        _LOG.clear()
        model = library.llama_model_load_from_file(
            os.fsencode(path),
            _filled(
                library.llama_model_default_params(),
                n_gpu_layers=_ALL_LAYERS if gpu else 0,
                load_mode=_LOAD_MODES[mmap],
                use_mmap=mmap,
                use_mlock=False,
                use_extra_bufts=repack,
            ),
        )
        if not model:
            raise SourceError(f"{path}: llama.cpp cannot load it{_LOG.reason()}")
        if gpu and not _LOG.offloaded[0]:
            library.llama_model_free(model)
            raise UsageError(
                f"device {device}: llama.cpp put no layer of {path} on a GPU; use device cpu"
            )
        if embeddings is None:
            embeddings = _is_embedder(model)
        # An embedder looks at a whole sequence at once.
        step = context if embeddings else min(context, batch or _STEP)
        at_once = step if embeddings else min(step, ubatch or step)
        attention = _EXACT if exact else {}
        native = library.llama_init_from_model(
            model,
            _filled(
                library.llama_context_default_params(),
                n_ctx=context,
                n_batch=step,
                n_ubatch=at_once,
                n_seq_max=1,
                n_threads=threads,
                n_threads_batch=threads,
                embeddings=embeddings,
                offload_kqv=gpu,
                op_offload=gpu,
                no_perf=True,
                **attention,
            ),
        )
        if not native:
            library.llama_model_free(model)
            raise SourceError(f"{path}: llama.cpp cannot make a context for it{_LOG.reason()}")
        asked = {
            "threads": threads,
            "context": context,
            "step": step,
            "ubatch": at_once,
            "embeddings": embeddings,
            "device": device,
            "layers": list(_LOG.offloaded) if gpu else None,
            "mmap": mmap,
            "repack": repack,
            "buffers": dict(_LOG.buffers),
        }
        return cls(path, library, model, native, asked)

    def close(self) -> None:
        """Free the model; safe to call twice."""
        if self._native is not None:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._native)
            self._library.llama_model_free(self._model)
            self._native = self._model = None

    def __enter__(self) -> LlamaSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- text

    @property
    def has_tokenizer(self) -> bool:
        """False for a file with a vocabulary's size and nothing else of it."""
        return bool(self._library.llama_vocab_type(self._vocab))

    def tokenize(
        self, text: str | bytes, *, special: bool = True, control: bool = False
    ) -> NDArray[np.int32]:
        """Token numbers of ``text``, with the tokens that the model's texts begin and end with
        unless ``special`` is False. What looks like a control token is taken as text unless
        ``control``."""
        if not self.has_tokenizer:
            raise InputsError(f"{self.path}: has no tokenizer; give token numbers")
        raw = text.encode() if isinstance(text, str) else text
        room = len(raw) + 16
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self._library.llama_tokenize(
                self._vocab, raw, len(raw), tokens, room, special, control
            )
            if count >= 0:
                return np.array(tokens[:count], np.int32)
            room = -count

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for, control tokens spelled out."""
        pieces = (ctypes.c_int32 * len(tokens))(*tokens)
        room = 16 * len(tokens) + 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._library.llama_detokenize(
                self._vocab, pieces, len(tokens), buffer, room, False, True
            )
            if count >= 0:
                return buffer.raw[:count].decode(errors="replace")
            room = -count

    # -- numbers

    def stream_logits(
        self, tokens: Sequence[int] | NDArray[Any], first: int = 0
    ) -> Iterator[NDArray[np.float32]]:
        """Logits of positions ``first`` to the end, ``[rows, vocabulary]`` at a time.

        The sequence is a new one. Each array is a window on llama.cpp's buffer: it holds until
        the next is asked for.

        Raises InputsError for more tokens than the context has or numbers outside the vocabulary,
        WorkerError where llama.cpp fails.
        """
        sequence = np.asarray(tokens, np.int32)
        self._check(sequence)
        self._forget()
        for start in range(0, len(sequence), self._asked["step"]):
            part = sequence[start : start + self._asked["step"]]
            wanted = np.arange(start, start + len(part)) >= first
            self._decode(part, start, wanted)
            if rows := int(wanted.sum()):
                yield self._rows(rows)

    def logits(self, tokens: Sequence[int] | NDArray[Any], first: int = 0) -> NDArray[np.float32]:
        """A copy of the logits of positions ``first`` to the end: ``[positions, vocabulary]``."""
        parts = [np.array(rows) for rows in self.stream_logits(tokens, first)]
        return np.concatenate(parts) if parts else np.empty((0, self.vocabulary), np.float32)

    def generate(self, tokens: Sequence[int] | NDArray[Any], count: int) -> Generated:
        """Go on after ``tokens`` by the likeliest token, up to ``count`` times. Errors as
        :meth:`stream_logits`; the context bounds both together."""
        sequence = np.asarray(tokens, np.int32)
        if len(sequence) + count > self.context:
            raise InputsError(
                f"{self.path}: {len(sequence)} tokens and {count} more do not fit a context of "
                f"{self.context}"
            )
        last = next(self.stream_logits(sequence, len(sequence) - 1))
        made: list[int] = []
        finite = True
        for position in range(len(sequence), len(sequence) + count):
            finite = finite and bool(np.isfinite(last).all())
            made.append(int(last[-1].argmax()))
            if self._library.llama_vocab_is_eog(self._vocab, made[-1]):
                return Generated(tuple(made), finite, stopped=True)
            if len(made) < count:
                self._decode(np.array(made[-1:], np.int32), position, np.ones(1, np.bool_))
                last = self._rows(1)
        return Generated(tuple(made), finite, stopped=False)

    def embed(self, tokens: Sequence[int] | NDArray[Any]) -> NDArray[np.float32]:
        """The pooled embedding of one sequence, ``[width]``, as the model gives it: not scaled to
        length one. Where the file does not say how to pool, the mean over the tokens. Only in a
        session opened with ``embeddings=True``."""
        sequence = np.asarray(tokens, np.int32)
        self._check(sequence)
        self._forget()
        self._decode(sequence, 0, np.ones(len(sequence), np.bool_))
        pooled = self._library.llama_get_embeddings_seq(self._native, 0)
        if pooled:
            return np.array(np.ctypeslib.as_array(pooled, (self.width,)))
        rows = self._library.llama_get_embeddings(self._native)
        if not rows:
            raise WorkerError(f"{self.path}: llama.cpp gives no embeddings of it")
        tokens = np.ctypeslib.as_array(rows, (len(sequence), self.width))
        return np.asarray(tokens.mean(0, dtype=np.float64), np.float32)

    def _check(self, sequence: NDArray[np.int32]) -> None:
        if not 0 < len(sequence) <= self.context:
            raise InputsError(
                f"{self.path}: {len(sequence)} tokens, the session takes 1 to {self.context}"
            )
        if sequence.min() < 0 or sequence.max() >= self.vocabulary:
            raise InputsError(
                f"{self.path}: token {sequence.max()}, its vocabulary ends at {self.vocabulary - 1}"
            )

    def batches(self, tokens: Sequence[int] | NDArray[Any], size: int = 0) -> list[TokenBatch]:
        """``tokens`` cut for :meth:`advance`: ``size`` at a time, else as many as it takes.

        Raises InputsError for more than the context has, or numbers outside the vocabulary.
        """
        sequence = np.asarray(tokens, np.int32)
        self._check(sequence)
        made = []
        for start in range(0, len(sequence), size or self._asked["step"]):
            part = sequence[start : start + (size or self._asked["step"])]
            numbers = (ctypes.c_int32 * len(part))(*part.tolist())
            made.append(TokenBatch(self._library.llama_batch_get_one(numbers, len(part)), numbers))
        return made

    def restart(self) -> None:
        """Begin a new sequence: what :meth:`advance` takes next is its beginning."""
        self._forget(data=False)

    def advance(self, batch: TokenBatch) -> None:
        """Go on with the sequence by a batch of it; logits of its last token alone. Returns when
        the device is done. Raises WorkerError where llama.cpp fails."""
        code = self._library.llama_decode(self._native, batch.native)
        if code:
            raise self._failed(code)
        self._library.llama_synchronize(self._native)

    def _forget(self, *, data: bool = True) -> None:
        # An embedder keeps nothing between calls, and has no memory to clear.
        if memory := self._library.llama_get_memory(self._native):
            self._library.llama_memory_clear(memory, data)

    def _decode(self, part: NDArray[np.int32], start: int, wanted: NDArray[np.bool_]) -> None:
        batch, count = self._batch, len(part)
        batch.n_tokens = count
        np.ctypeslib.as_array(batch.token, (count,))[:] = part
        np.ctypeslib.as_array(batch.pos, (count,))[:] = np.arange(start, start + count)
        np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (count,))[:] = wanted
        for i in range(count):
            batch.seq_id[i][0] = 0
        code = self._library.llama_decode(self._native, batch)
        if code:
            raise self._failed(code)

    def _failed(self, code: int) -> WorkerError:
        return WorkerError(
            f"{self.path}: llama.cpp fails while running (code {code}){_LOG.reason()}"
        )

    def _rows(self, count: int) -> NDArray[np.float32]:
        pointer = self._library.llama_get_logits(self._native)
        if not pointer:
            raise WorkerError(f"{self.path}: llama.cpp gives no logits{_LOG.reason()}")
        rows: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (count, self.vocabulary))
        return rows

    # -- what it is

    def info(self) -> dict[str, Any]:
        """How the file is held, JSON-ready; None where the system or this version does not say.

        ``mmap`` and ``repack`` are what llama.cpp did, ``*_asked`` what it was asked for.
        ``buffers`` are its own figures, bytes by kind of buffer. ``pages`` are the mapping's, read
        from the system now, and ``pages_shared`` says that the weights in use are the page
        cache's own pages: other processes that map the file have the same ones. ``layers_on_gpu``
        are [how many, of how many], None on the CPU.
        """
        import llama_cpp

        pages = file_pages(self.path)
        buffers: dict[str, int] = self._asked["buffers"]
        repacked = any("REPACK" in name or "AMX" in name for name in buffers)
        known = mappings_known()
        return {
            "runtime": "llama.cpp",
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "system": self._library.llama_print_system_info().decode(errors="replace").strip(" |"),
            "model": self._text(self._library.llama_model_desc),
            "threads": self._asked["threads"],
            "context": self.context,
            "batch": self._asked["step"],
            "ubatch": self._asked["ubatch"],
            "device": self._asked["device"],
            "layers_on_gpu": self._asked["layers"],
            "mmap_asked": self._asked["mmap"],
            "mmap": pages is not None if known else None,
            "repack_asked": self._asked["repack"],
            "repack": repacked if buffers else None,
            "buffers": buffers,
            "pages": asdict(pages) if pages else None,
            "pages_shared": _shared(pages, repacked) if known else None,
        }

    def _text(self, function: Any) -> str:
        buffer = ctypes.create_string_buffer(256)
        function(self._model, buffer, len(buffer))
        return buffer.value.decode(errors="replace")


def _shared(pages: FilePages | None, repacked: bool) -> bool:
    return pages is not None and pages.shareable and not pages.anonymous and not repacked


def _on_gpu(library: Any, device: str) -> bool:
    if device == "cpu":
        return False
    if device != "cuda" or not library.llama_supports_gpu_offload():
        raise UsageError(
            f"device {device} is not one that this llama.cpp has; use cpu, or install "
            "llama-cpp-python built with CUDA"
        )
    return True


def _is_embedder(model: Any) -> bool:
    """Whether every token sees all others: such a model generates nothing."""
    kind = _metadata(model, "general.architecture")
    return _metadata(model, f"{kind}.attention.causal") == "false"
