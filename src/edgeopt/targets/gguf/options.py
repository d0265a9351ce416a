"""What can be asked of GGUF output, and when GGUF is what was asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core import Source
from edgeopt.errors import UsageError
from edgeopt.options.table import Gguf, Mixed, Text, flag_of

__all__ = [
    "GgufOptions",
    "lacks_cache",
    "require_checked",
    "wants_gguf",
]

#: What files of other formats end in: GGUF under such a name would mislead.
_OTHERS = frozenset({".onnx", ".safetensors", ".pt", ".pth", ".bin"})


@dataclass(frozen=True)
class GgufOptions(Mixed, Text, Gguf):
    """What can be asked of GGUF output, see :mod:`edgeopt.options.table`."""

    def check(self) -> None:
        """UsageError for options that contradict one another."""
        if self.prove == "full" and self.text is None:
            raise UsageError("--prove full compares the models on a text: give it with --text FILE")
        if self.text is not None and self.prove != "full":
            raise UsageError(
                f"--text {self.text}: is read with --prove full alone; give that, or leave it out"
            )

    def overrides(self) -> tuple[tuple[str, str], ...]:
        """(regex, type) pairs. UsageError where one has no ``=``."""
        pairs = []
        for given in self.tensor_types:
            pattern, _, kind = given.rpartition("=")
            if not pattern or not kind:
                raise UsageError(f"--tensor-type {given}: not REGEX=TYPE, such as 'ffn_down=Q6_K'")
            pairs.append((pattern, kind.upper()))
        return tuple(pairs)

    def given(self) -> tuple[str, ...]:
        """The options that are not at their default, as the command line spells them."""
        return tuple(
            flag_of(field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) not in (field.default, [])
        )


def require_checked(options: GgufOptions, min_sqnr: float | None) -> None:
    """UsageError for a floor where nothing is proven."""
    if min_sqnr is not None and options.prove == "none":
        raise UsageError(
            f"--min-sqnr {min_sqnr:g} and --prove none: nothing is held against a floor; leave out"
            " one of them"
        )


def wants_gguf(
    source: Source, to: str | None, out: str | Path | None, options: GgufOptions
) -> bool:
    """Whether GGUF is asked for: by format, by the output's name, by an option that only GGUF has,
    because the source is GGUF, or a folder of a language model that nothing else is asked of.
    UsageError where an option is for GGUF and the format is not."""
    if to not in (None, "gguf"):
        if options.given():
            raise UsageError(f"{options.given()[0]} is for --to gguf, not for --to {to}")
        return False
    named = out is not None and Path(out).suffix.lower() == ".gguf"
    if to == "gguf" and not named and out is not None and Path(out).suffix.lower() in _OTHERS:
        raise UsageError(f"-o {out}: the name is not one of a GGUF file; end it in .gguf")
    if to == "gguf" or named or source.kind == "gguf":
        return True
    if options.given():
        if source.kind != "hf-folder":
            raise UsageError(
                f"{options.given()[0]} is for GGUF, which is made of a Hugging Face folder or"
                f" another GGUF file; {source.path} is {source.kind}; leave it out"
            )
        return True
    other = out is not None and Path(out).suffix.lower() in _OTHERS
    return to is None and not other and generates(source) and has_family(source)


def generates(source: Source) -> bool:
    """Whether the source is a folder of a model that writes text, a token after the other."""
    named = source.details.get("architecture") if source.kind == "hf-folder" else None
    return isinstance(named, str) and named.endswith(("ForCausalLM", "LMHeadModel"))


def has_family(source: Source) -> bool:
    """Whether a GGUF file can be made of the folder's architecture."""
    from edgeopt.llm.families import families

    return any(source.details.get("architecture") in family.architectures for family in families())


def lacks_cache(source: Source) -> tuple[str, ...]:
    """What an ONNX file of a model that writes text lacks, as a note."""
    if not generates(source):
        return ()
    return (
        "this ONNX file has no cache of keys and values: to write text, every new token reads the"
        " whole text again; --to gguf makes a file with one, for llama.cpp",
    )
