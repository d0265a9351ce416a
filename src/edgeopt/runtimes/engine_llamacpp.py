"""llama.cpp as an engine: prompt processing (pp) and token generation (tg), as llama-bench
defines them.

A prompt is random tokens after the model's own first token, decoded in batches of 2048, 512 of
them computed at once, with logits of the last token of each batch. Generation is one random token
a decode, from an empty context on. Nothing is sampled, and no text is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import SourceError, UsageError
from edgeopt.runtimes import llamacpp
from edgeopt.runtimes.engine import Case, Feed
from edgeopt.runtimes.llamacpp import LlamaSession, TokenBatch

__all__ = ["LlamaCppEngine"]

#: llama.cpp's own defaults: tokens of a call, tokens computed at once.
_BATCH, _UBATCH = 2048, 512

_WORKLOADS = ("pp", "tg")


class LlamaCppEngine:
    """A GGUF file in llama.cpp. Options, with llama.cpp's own defaults:

    ``context`` (tokens of the sequence: by default those of the workload), ``mmap`` (True: map the
    weights) and ``repack`` (True: weights that its kernels like better in another layout are copied
    into it). Some virtual machines announce AMX and do not run it: repacked weights then end the
    process by SIGILL at the first decode, and ``repack`` False is the way out.
    """

    repeats = True

    def __init__(self, case: Case) -> None:
        if case.workload not in _WORKLOADS:
            raise UsageError(
                f"{case.path}: workload {case.workload}; llama.cpp does {' or '.join(_WORKLOADS)}"
            )
        if case.tokens < 1:
            raise UsageError(f"{case.workload} of {case.tokens} tokens; give 1 or more")
        self._case = case
        options = dict(case.options or {})
        self._context = int(options.get("context") or case.tokens)
        self._mmap = bool(options.get("mmap", True))
        self._repack = bool(options.get("repack", True))
        if self._context < case.tokens:
            raise UsageError(
                f"{case.workload} of {case.tokens} tokens do not fit a context of {self._context}"
            )
        self._session: LlamaSession | None = None
        self._batches: list[TokenBatch] = []
        self._next = 0

    @property
    def session(self) -> LlamaSession:
        """The session of :meth:`load`."""
        assert self._session is not None, "load() comes first"
        return self._session

    def imports(self) -> None:
        llamacpp.preload()

    def load(self) -> None:
        case = self._case
        session = LlamaSession.open(
            case.path,
            threads=case.threads,
            context=self._context,
            mmap=self._mmap,
            repack=self._repack,
            embeddings=None,
            batch=_BATCH,
            ubatch=_UBATCH,
            device=case.device,
        )
        self._session = session
        if session.encodes:
            raise SourceError(
                f"{case.path}: has an encoder and a decoder; edgeopt measures models of one part"
            )
        if session.embeds and case.workload == "tg":
            raise UsageError(f"{case.path}: an embedding model generates nothing; measure pp")

    def prepare(self, feed: Feed) -> None:
        """Make the tokens: ``feed`` is not used, llama-bench's workloads take random ones."""
        size = 1 if self._case.workload == "tg" else 0
        self._batches = self.session.batches(self._tokens(), size)
        self._next = 0

    def _tokens(self) -> NDArray[np.int32]:
        session = self.session
        tokens = np.random.default_rng(0).integers(
            0, session.vocabulary, self._case.tokens, np.int32
        )
        if session.bos is not None:
            tokens[0] = session.bos
        return tokens

    def run(self) -> None:
        session = self.session
        if self._case.workload == "pp":
            session.restart()
            for batch in self._batches:
                session.advance(batch)
            return
        if self._next == 0:
            session.restart()
        session.advance(self._batches[self._next])
        self._next = (self._next + 1) % len(self._batches)

    def info(self) -> dict[str, Any]:
        """What the session says of itself (see there), and the workload."""
        case = self._case
        return {**self.session.info(), "workload": case.workload, "tokens": case.tokens}
