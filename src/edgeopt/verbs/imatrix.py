"""Making an importance matrix: the model reads a text, and every matrix product is watched."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Progress, Source
from edgeopt.errors import MissingExtraError, SourceError, UsageError
from edgeopt.files.atomic import checked_output
from edgeopt.files.imatrix import Fitted, Imatrix, write_imatrix
from edgeopt.files.open import open_source
from edgeopt.files.reading import as_named, open_regular, read_json
from edgeopt.llm.chunks import Chunk, Specials, token_chunks
from edgeopt.llm.families import family_of
from edgeopt.verbs.calling import verb

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Collected", "imatrix"]

_LEAST_CONTEXT = 16


@dataclass(frozen=True)
class Collected:
    """An importance matrix that was made and written to ``path``; ``fitted`` is what of it meets
    the model's tensors."""

    path: Path
    imatrix: Imatrix
    fitted: Fitted

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "chunks": self.imatrix.chunks,
            "chunk_size": self.imatrix.chunk_size,
            "tokens": self.imatrix.chunks * self.imatrix.chunk_size,
            "tensors": len(self.fitted.values),
            "without": list(self.fitted.without),
        }

    def __str__(self) -> str:
        made = self.imatrix
        return f"{self.path}: {self.fitted}, from {made.chunks} chunks of {made.chunk_size} tokens"


@verb()
def imatrix(
    folder: str | Path,
    text: str | Path,
    out: str | Path | None = None,
    *,
    chunks: int | None = None,
    context: int = 512,
    progress: Progress | None = None,
) -> Collected:
    """Run a language model over a text and write how strongly its matrices' columns are driven.

    Args:
        folder: a Hugging Face folder of a family that edgeopt converts to GGUF.
        text: a UTF-8 text file; the more it is like what the model will read, the better.
        out: the file to write, llama.cpp's GGUF form (default: beside the folder).
        chunks: how many pieces of the text to read (default: all).
        context: tokens in a piece, at least 16.
        progress: called with a step's name and how far along it is.

    The token table and the output are left out, as llama.cpp does by default. Memory is the
    model's in float32 and one piece's activations, whatever the length of the text.

    Raises UsageError, SourceError (the text is shorter than one piece; the model or its tokenizer
    cannot be loaded), OutputError and MissingExtraError (extra ``torch``).
    """
    if context < _LEAST_CONTEXT:
        raise UsageError(f"--context {context} is too short; give {_LEAST_CONTEXT} or more")
    if chunks is not None and chunks < 1:
        raise UsageError(f"--chunks {chunks}: give 1 or more, or leave it out for the whole text")
    source = open_source(folder)
    if source.kind != "hf-folder":
        raise SourceError(
            f"{source.path}: is of kind {source.kind}; an importance matrix is made from the "
            "Hugging Face folder that the GGUF file comes from"
        )
    text = Path(text)
    open_regular(text).close()
    path = _out(source, out, text)
    inside = _inside(source)
    config = read_json(inside / "config.json")
    family = family_of(config, inside)
    tensors = family.tensors(config, source)

    if progress is not None:
        progress("loading", None)
    model, tokenizer = _load(inside)
    limit = getattr(model.config, "max_position_embeddings", None)
    if isinstance(limit, int) and context > limit:
        raise UsageError(f"--context {context}: the model reads at most {limit} tokens at a time")
    watched = _named(model, family.name, {weight.name for weight in tensors})
    if not watched:
        raise SourceError(f"{source.path}: has no matrix products that GGUF has a name for")
    pieces = token_chunks(text, tokenizer.plain, context, tokenizer.specials)
    entries, count = _run(model, watched, pieces, chunks, progress)
    if not count:
        raise SourceError(
            f"{text}: is shorter than one piece of {context} tokens; give a longer text or a "
            "smaller --context"
        )
    made = Imatrix(entries, (text.name,), count, context, str(path))
    fitted = made.fitted(tensors)
    write_imatrix(path, made)
    return Collected(path, made, fitted)


def _inside(source: Source) -> Path:
    """Where ``config.json`` lies: a sentence-transformers folder has a folder for the model."""
    sentence = source.details.get("sentence_transformers")
    return source.path / sentence["transformer"] if sentence else source.path


def _out(source: Source, out: str | Path | None, text: Path) -> Path:
    if out is None:
        path = as_named(source.path)
        out = path.with_name(f"{path.name}-imatrix.gguf")
    return checked_output(out, [source.path, *source.files, text])


# ---------------------------------------------------------------------------------------------
# the model and its tokenizer


@dataclass(frozen=True)
class _Tokenizer:
    """``encode(text, specials)``: the tokens of a text, with or without special ones around it."""

    encode: Callable[[str, bool], list[int]]

    @classmethod
    def of(cls, folder: Path) -> _Tokenizer:
        """``tokenizer.json`` itself, which is what GGUF's tokenizer is made from too; transformers
        builds it anew from a class and a vocabulary. Its own where there is no such file."""
        file = folder / "tokenizer.json"
        reasons = (OSError, ValueError, KeyError, TypeError, AttributeError)
        try:
            if not file.is_file():
                return cls(_slow(folder))
            return cls(_fast(file))
        except reasons as error:
            reason = " ".join(str(error).split())[:200]
            raise SourceError(f"{folder}: cannot load its tokenizer: {reason}") from error

    def plain(self, text: str) -> list[int]:
        return self.encode(text, False)

    @property
    def specials(self) -> Specials:
        return Specials.of(self.plain("a"), self.encode("a", True))


def _fast(file: Path) -> Callable[[str, bool], list[int]]:
    from tokenizers import Tokenizer

    try:
        inner = Tokenizer.from_file(str(file))
    except Exception as error:
        # That is what tokenizers raises for whatever is wrong with the file, and no other class.
        if type(error) is not Exception:
            raise
        raise ValueError(str(error)) from error
    inner.no_truncation()
    inner.no_padding()
    return lambda text, specials: list(inner.encode(text, add_special_tokens=specials).ids)


def _slow(folder: Path) -> Callable[[str, bool], list[int]]:
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    return lambda text, specials: list(inner(text, add_special_tokens=specials)["input_ids"])


def _load(folder: Path) -> tuple[Any, _Tokenizer]:
    try:
        from edgeopt.graphs.capture.huggingface import pretrained
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        purpose = "running a model over a text"
        raise MissingExtraError(error.name, "torch", purpose) from error
    model = pretrained(folder)
    # The head is left out: its products are as many as the vocabulary, and nobody asks for them.
    inner = getattr(model, model.base_model_prefix, model)
    # A model that sees pictures too has one inside that reads.
    return getattr(inner, "language_model", inner), _Tokenizer.of(folder)


def _named(model: nn.Module, architecture: str, names: Collection[str]) -> dict[str, nn.Module]:
    """The products inside the blocks by the name that GGUF has for them."""
    from edgeopt.llm.activations import products

    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingExtraError("gguf", "gguf", "naming tensors as GGUF does") from error
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    blocks = 1 + max((int(n.split(".")[1]) for n in names if n.startswith("blk.")), default=-1)
    table = gguf.get_tensor_name_map(arch, blocks)
    found: dict[str, nn.Module] = {}
    for module_name, module in products(model):
        # What the folder calls it depends on the class that was saved.
        for prefix in ("", "model.", "transformer.", "bert."):
            name = table.get_name(f"{prefix}{module_name}.weight", (".weight",))
            if name is not None and name.startswith("blk.") and name in names:
                found[name] = module
                break
    return found


def _run(
    model: Any,
    watched: Mapping[str, nn.Module],
    pieces: Iterable[Chunk],
    chunks: int | None,
    progress: Progress | None,
) -> tuple[Any, int]:
    """Read up to ``chunks`` pieces; the sums, and how many pieces there were."""
    import torch

    from edgeopt.llm.activations import SquareSums

    sums, count = SquareSums(), 0
    takes = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if "use_cache" in takes else {}
    with torch.inference_mode(), sums.watching(watched):
        for piece in pieces:
            model(input_ids=torch.tensor([piece.tokens]), **options)
            count += 1
            if progress is not None:
                done = piece.done if chunks is None else max(piece.done, count / chunks)
                progress(f"reading piece {count}", min(done, 1.0))
            if count == chunks:
                break
    return sums.entries(), count
