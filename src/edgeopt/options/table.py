"""Every option, said once. Click's options, Python's keywords with their documentation, the checks
of a call and the refusals are made of these tables.

A verb's options are a dataclass: its fields are what a function of that verb takes as keywords.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeopt.options.kinds import (
    ANY,
    CODE,
    CODE_OR_PATH,
    DATA,
    EXTERNAL,
    FLAG,
    FUNCTION,
    METRICS,
    NAMES,
    NUMBER,
    PATH,
    PATHS,
    PLAN,
    SOURCE,
    SOURCES,
    TEXT,
    TEXTS,
    WHOLE,
    WHOLES,
    Takes,
    choice,
)
from edgeopt.options.option import Option, option, options_of

if TYPE_CHECKING:
    from pathlib import Path

    from edgeopt.core import Plan, Progress

__all__ = [
    "MEASURED",
    "WRITTEN",
    "BenchOptions",
    "BenchRequest",
    "CompareOptions",
    "Export",
    "Gguf",
    "Mixed",
    "Quantize",
    "Text",
    "Verify",
    "flag_of",
    "needs",
    "takes_of",
]

#: Formats of artifacts, and the runtimes that open them.
_ONNX, _PACKED, _GGUF = "ONNX", "safetensors", "GGUF"
_ORT, _TORCH, _LLAMA = "onnxruntime", "torch", "llama.cpp"
_RUN = "nothing is run on inputs there"
_TIMED = "nothing is timed there"
_TEXT = "predictions are compared on a text for GGUF alone"
_TYPES = "its types are GGUF's; it goes with --to gguf"


@dataclass(frozen=True)
class Out:
    """Where the artifact goes."""

    out: str | Path | None = option(
        None,
        PATH,
        "File to write (default: beside SOURCE).",
        doc="file to write; default ``NAME-int8.onnx``, ``NAME-int8.safetensors``, "
        "``NAME-Q4_K_M.gguf`` or the like beside the source.",
        flags=("-o", "--out"),
        metavar="OUT",
        kw_only=False,
    )


@dataclass(frozen=True)
class _Bits:
    bits: int | None = option(
        None,
        choice(8, 4),
        "Weight bits  [default: 8; GGUF: see --type].",
        doc="8 or 4, of the weights; default 8 (for GGUF ``Q4_K_M``).",
    )
    to: str | None = option(
        None,
        choice("onnx", "safetensors", "gguf"),
        "Format (default: by source).",
        doc="``onnx`` (sources with a graph), ``safetensors`` (weights alone) or ``gguf`` (language"
        " models and BERT in Hugging Face folders, and other GGUF files); default: by source.",
    )


@dataclass(frozen=True)
class _ExportForm:
    to: str | None = option(
        None,
        choice("onnx", "gguf"),
        "Format  [default: onnx, of a GGUF gguf].",
        doc="``onnx``, or ``gguf``: language models in 16 or 32 bits for llama.cpp.",
    )
    half: bool = option(
        False,
        FLAG,
        "Store weights in FP16, FP32 where it would overflow.",
        doc="store weights in float16; the file must then be smaller than the source.",
        of=(_ONNX,),
        without="--type F16 is its name for GGUF",
    )
    opset: int | None = option(
        None,
        WHOLE,
        "ONNX opset version.",
        doc="version of ONNX's operators; default 21, and an ONNX source keeps its own.",
        metavar="N",
        of=(_ONNX,),
        without="there is no graph in it",
        typed={"min": 17},
    )


@dataclass(frozen=True)
class InputOptions:
    """What the model is run on."""

    data: str | None = option(
        None,
        DATA,
        ".npz, .npy, folder of .npy, or MODULE:CALLABLE of inputs.",
        doc="sample inputs (see :mod:`edgeopt.data.samples`); three quarters calibrate, the rest"
        " is held out for the proof.",
        metavar="DATA",
        of=(_ONNX, _ORT, _TORCH),
        without=_RUN,
    )
    inputs: Sequence[str] = option(
        (),
        TEXTS,
        "An input, as name:float32[1,3,224,224]; repeatable.",
        doc="shapes as ``name:float32[1,3,224,224]``, where nothing else tells them.",
        flags=("--input",),
        metavar="SPEC",
        of=(_ONNX, _ORT, _TORCH),
        without=_RUN,
        not_of=("torch-exported",),
        told="an exported program says what it takes",
    )


@dataclass(frozen=True)
class CodeOptions:
    """Code that a file needs, or brings."""

    model: str | None = option(
        None,
        CODE,
        "Code that returns the nn.Module to fill.",
        doc="``package.module:callable`` that returns the ``nn.Module`` of a state dict.",
        metavar="MODULE:CALLABLE",
        of=(_ONNX, _TORCH),
        without="the weights are taken as they are",
    )
    trust_pickle: bool = option(
        False,
        FLAG,
        "Let the file run the code it carries.",
        doc="the file may run the code it carries.",
    )


@dataclass(frozen=True)
class _Rounding:
    block_size: int | None = option(
        None,
        WHOLE,
        "Weights that share a scale at 4 bits.",
        doc="weights that share a scale at 4 bits; a power of two from 16 to 256.",
        metavar="N",
        of=(_ONNX, _PACKED),
        without="a type has blocks of its own size",
    )
    method: str = option(
        "auto",
        choice("auto", "mse", "rtn", "hqq"),
        "How weights are rounded: least squares, to the nearest, or HQQ.",
        doc="how weights are rounded: ``mse`` (least squared error), ``rtn`` (to the nearest code)"
        " or ``hqq``; ``auto`` takes what measured best (see ``docs/formats.md``).",
        of=(_ONNX, _PACKED),
        without="a type has its own encoder",
    )


@dataclass(frozen=True)
class ProofOptions:
    """What is asked of the proof."""

    min_sqnr: float | None = option(
        None,
        NUMBER,
        "Fidelity floor in decibels.",
        doc="fidelity floor in dB (default 20 at 8 bits, 8 at 4; of an export 30, with ``half``"
        " 40).",
        metavar="DB",
    )
    min_same: float | None = option(
        None,
        NUMBER,
        "Least share of the same answers of a classifier (with --data: 0.9).",
        doc="the least share (0 to 1) of samples whose answer stays the same, where an output is a"
        " classification; 0.9 with ``data``, whatever ``min_sqnr`` says.",
        metavar="SHARE",
        least=0,
        most=1,
        of=(_ONNX,),
        without=_RUN,
    )
    prefer: str = option(
        "balanced",
        choice("balanced", "speed", "size", "memory"),
        "What to win at; size and memory may cost speed.",
        doc="``balanced``, ``speed``, ``size`` or ``memory``.",
        of=(_ONNX,),
        without=_TIMED,
    )
    threads: int = option(
        1,
        WHOLE,
        "Threads that the runtime is timed with.",
        doc="of the runtime, while timing.",
        least=1,
        most=1024,
        of=(_ONNX,),
        without=_TIMED,
    )


@dataclass(frozen=True)
class _Tuned:
    target: str = option(
        "here",
        choice("here", "portable"),
        "Tune for this machine by timing, or stay safe on x86-64 and ARM.",
        doc="``here`` times choices on this machine (or ``on`` another), ``portable`` makes none of"
        " them.",
        of=(_ONNX,),
        without=_TIMED,
    )
    plan: str | Path | Plan | None = option(
        None,
        PLAN,
        "Replay the plan in FILE; last and without FILE: print the plan, write nothing.",
        doc="a plan to replay, or its file: same source, same plan, same bytes.",
        metavar="[FILE]",
        typed={"is_flag": False, "flag_value": "-"},
    )


@dataclass(frozen=True)
class MachineOptions:
    """Another machine."""

    on: str | None = option(
        None,
        TEXT,
        "Measure on another machine: ssh://user@host[:port][/folder] or adb://serial.",
        doc="another machine to measure on, ``ssh://user@host[:port][/folder]`` or"
        " ``adb://serial``; what is quantized is scored, timed and proven there, with its own"
        " runtime in ``remote_python``.",
        metavar="URL",
        of=(_ONNX, _ORT, _TORCH, _LLAMA, "weights"),
        without=_TIMED,
    )
    remote_python: str = option(
        "python3",
        TEXT,
        "The Python there, with numpy and the runtime.",
        doc="the Python there, with numpy and the runtime.",
        metavar="PATH",
        of=(_ONNX, _ORT, _TORCH, _LLAMA, "weights"),
        without=_TIMED,
        needs="on",
    )


@dataclass(frozen=True)
class _External:
    external_data: str | int = option(
        "auto",
        EXTERNAL,
        "Weights in OUT.data, which the runtime maps (auto: over 256 MiB).",
        doc="``auto`` writes an ONNX model with more than 256 MiB of weights as two files, ``OUT``"
        " and ``OUT.data`` beside it, which the runtime maps; ``always`` and ``never``; or a number"
        " of bytes in place of the 256 MiB.",
        of=(_ONNX,),
        without="one file is all there is",
        typed={"choices": ("auto", "always", "never")},
    )


@dataclass(frozen=True)
class Gguf:
    """What only GGUF knows."""

    type: str | None = option(
        None,
        TEXT,
        "GGUF: preset or type, as Q4_K_M, Q8_0, F16 (any case).",
        doc="GGUF: a preset (``Q4_K_M``, llama.cpp's own mix of types) or a plain type; default"
        " ``Q4_K_M``, with ``bits`` 8 ``Q8_0``; of an export F16, BF16 or F32, by default 16 bits"
        " of the kind that the source has.",
        metavar="TYPE",
        of=(_GGUF,),
        without=_TYPES,
    )
    pre_tokenizer: str | None = option(
        None,
        TEXT,
        "GGUF: the text-splitting rule, if not recognised.",
        doc="GGUF: llama.cpp's name of the rule that splits text before byte-level BPE, where"
        " ``tokenizer.json`` has one that is not known.",
        metavar="NAME",
        of=(_GGUF,),
        without="no tokenizer goes into it",
        not_of=("gguf",),
        told="its tokenizer is taken as it is",
    )
    prove: Literal["none", "quick", "full"] = option(
        "quick",
        choice("none", "quick", "full"),
        "GGUF: full also compares next-token distributions on --text.",
        doc="GGUF: ``quick``: every tensor's error, the file's structure, and that it loads and"
        " generates; ``full``: also next-token distributions against the source in 16 bits, on"
        " ``text``; ``none``: nothing is proven.",
        of=(_GGUF,),
        without="its proof has one depth",
    )


@dataclass(frozen=True)
class Text:
    """The text that language models are compared on."""

    text: str | Path | None = option(
        None,
        PATH,
        "GGUF: the text that predictions are compared on.",
        doc="GGUF: a text file that predictions are compared on.",
        metavar="FILE",
        of=(_GGUF, _LLAMA),
        without=_TEXT,
    )
    chunks: int = option(
        8,
        WHOLE,
        "GGUF: pieces of the text.",
        doc="GGUF: the number of its pieces.",
        least=1,
        of=(_GGUF, _LLAMA),
        without=_TEXT,
        needs="text",
    )
    context: int = option(
        512,
        WHOLE,
        "GGUF: tokens in a piece.",
        doc="GGUF: their length in tokens, of which the second half is scored.",
        least=8,
        of=(_GGUF, _LLAMA),
        without=_TEXT,
        needs="text",
    )


@dataclass(frozen=True)
class Mixed:
    """What quantizing to GGUF knows."""

    tensor_types: Sequence[str] = option(
        (),
        TEXTS,
        "GGUF: the type of tensors whose name matches; first match wins; repeatable.",
        doc="GGUF: ``REGEX=TYPE``; the first whose pattern is found in a tensor's name wins.",
        flags=("--tensor-type",),
        metavar="REGEX=TYPE",
        of=(_GGUF,),
        without=_TYPES,
    )
    imatrix: str | Path | None = option(
        None,
        PATH,
        "GGUF: weigh errors by an importance matrix.",
        doc="GGUF: an importance matrix: llama.cpp's, or one that ``edgeopt imatrix`` made.",
        metavar="FILE",
        of=(_GGUF,),
        without="importances go with --to gguf",
    )
    allow_requantize: bool = option(
        False,
        FLAG,
        "GGUF: quantize again what is in few bits already.",
        doc="quantize a GGUF again that already is in few bits.",
        of=(_GGUF,),
        without="it is for GGUF files as sources",
    )


@dataclass(frozen=True)
class Forced:
    """Whether what is not proven stays."""

    force: bool = option(
        False,
        FLAG,
        "Keep the file even if the proof fails.",
        doc="keep the artifact although the proof failed.",
    )


@dataclass(frozen=True)
class Watched:
    """Who listens."""

    progress: Progress | None = option(
        None, FUNCTION, None, doc="called with what is being done, and the share of it that is."
    )


@dataclass(frozen=True)
class _Both(Watched, Forced, Text, Gguf, _External, ProofOptions, CodeOptions, InputOptions):
    """What quantize and export both take."""


@dataclass(frozen=True)
class Quantize(_Both, Mixed, MachineOptions, _Tuned, _Rounding, _Bits, Out):
    """The options of :func:`edgeopt.quantize`."""


@dataclass(frozen=True)
class Export(_Both, _ExportForm, Out):
    """The options of :func:`edgeopt.export`."""


@dataclass(frozen=True)
class _ProvenFile:
    artifact: str | Path | None = option(
        None, PATH, None, doc="the file to prove; None: ``source`` itself.", kw_only=False
    )


@dataclass(frozen=True)
class Verify(Watched, Text, ProofOptions, CodeOptions, InputOptions, _ProvenFile):
    """The options of :func:`edgeopt.verify`."""


_LOADED = "weights are loaded, and not run"
_FED = "no artifact takes arrays"


@dataclass(frozen=True)
class _Runs:
    device: str = option(
        "auto",
        choice("cpu", "cuda", "auto"),
        "Where to run.",
        of=(_ORT, _TORCH, _LLAMA),
        without=_LOADED,
    )
    threads: Sequence[int] = option(
        (1,),
        WHOLES,
        "Threads of the runtime; several are measured in turn.",
        metavar="N,M",
        of=(_ORT, _TORCH, _LLAMA),
        without=_LOADED,
    )
    batch: Sequence[int] = option(
        (),
        WHOLES,
        "Batch sizes (default: the model's own).",
        doc="batch sizes; default: the model's own, 1 where it is free.",
        metavar="N,M",
        of=(_ORT, _TORCH),
        without=_FED,
    )
    seq: int | None = option(
        None,
        WHOLE,
        "Size of free sequence axes.",
        metavar="N",
        of=(_ORT, _TORCH),
        without=_FED,
    )
    runtime: str | None = option(
        None,
        choice("onnxruntime", "torch", "llama", "weights"),
        "Runtime (default: by file); weights: load only.",
    )
    prompt: int = option(
        512,
        WHOLE,
        "GGUF: tokens of prompt processing (pp).",
        metavar="N",
        of=(_LLAMA,),
        without="no artifact reads prompts",
    )
    generate: int = option(
        128,
        WHOLE,
        "GGUF: tokens of generation (tg).",
        metavar="N",
        of=(_LLAMA,),
        without="no artifact writes text",
    )


@dataclass(frozen=True)
class BenchRequest(CodeOptions, InputOptions, _Runs):
    """What to measure artifacts with; None: the model's own."""


@dataclass(frozen=True)
class _Rounds:
    seconds: float = option(
        10.0,
        NUMBER,
        "Seconds of steady-state timing an artifact and condition.",
        doc="seconds of steady-state timing an artifact and condition, over all processes.",
        flags=("--time",),
        metavar="S",
    )
    processes: int = option(8, WHOLE, "Fresh worker processes each; 5 or more.", metavar="N")
    cold: bool = option(
        True,
        FLAG,
        "Also load with the file's pages out of memory.",
        flags=("--cold/--no-cold",),
        typed={"show_default": True},
    )
    timeout: float = option(
        600.0,
        NUMBER,
        "Give a silent worker up after this.",
        doc="seconds without an answer after which a worker is given up.",
        metavar="S",
    )


@dataclass(frozen=True)
class _Baseline:
    baseline: str | Path | None = option(
        None,
        PATH,
        "Saved results (-o) to compare with, as R.json or R.json[NAME].",
        doc="saved results: their artifact of the first one's name, else their own baseline (or"
        " ``R.json[NAME]``), is what all of ``artifacts`` are then compared with.",
        metavar="FILE",
    )


@dataclass(frozen=True)
class _Judged:
    metric: Sequence[str] = option(
        (),
        METRICS,
        "accuracy, spearman, perplexity or MODULE:CALLABLE, on labelled --data; repeatable.",
        doc="``accuracy``, ``spearman``, ``perplexity`` or ``module:callable`` (see"
        " :func:`edgeopt.tasks.metrics.find_metric`), taken from the same answers, with the targets"
        " in ``data``.",
        metavar="NAME",
    )


@dataclass(frozen=True)
class _Saving:
    other_machine: bool = option(
        False, FLAG, "Compare results of different machines or runtimes too."
    )
    out: str | Path | None = option(
        None,
        PATH,
        "Save the results (JSON) as they come.",
        doc="a file that gets the results as JSON, anew after each process round: what an interrupt"
        " or a crash leaves is all that was measured until then.",
        flags=("-o", "--out"),
        metavar="OUT",
    )


@dataclass(frozen=True)
class BenchOptions(Watched, _Saving, _Baseline, MachineOptions, _Rounds, BenchRequest):
    """The options of :func:`edgeopt.bench`."""


@dataclass(frozen=True)
class CompareOptions(Watched, _Saving, Text, _Judged, MachineOptions, _Rounds, BenchRequest):
    """The options of :func:`edgeopt.compare`."""


_WRITING = (Quantize, Export, Verify)
_MEASURING = (BenchOptions, CompareOptions)


def _named(kinds: tuple[type, ...]) -> Mapping[str, Option]:
    return {name: said for kind in kinds for name, said in options_of(kind).items()}


#: What quantize, export and verify can be told, by name; and bench and compare.
WRITTEN, MEASURED = _named(_WRITING), _named(_MEASURING)

#: All of them. What a name is called on the command line, and needs, is the same for every verb.
_ALL = {**WRITTEN, **MEASURED}

#: What is no option: what a verb works on. And, by verb and name where the verb means another
#: thing by it, the options that are in no table yet.
_TAKES: Mapping[str | tuple[str, str], Takes] = {
    "source": SOURCE,
    "teacher": SOURCE,
    "artifacts": SOURCES,
    "items": SOURCES,
    "path": PATH,
    ("inspect", "path"): SOURCE,
    "folder": PATH,
    "module": ANY,
    ("prune", "to"): choice("pt", "folder", "safetensors"),
    "recover": DATA,
    "evaluation": DATA,
    "student": CODE_OR_PATH,
    "shrink": TEXT,
    ("prune", "target"): TEXT,
    "max_drop": NUMBER,
    "deep": FLAG,
    "strict": FLAG,
    "prefix": TEXT,
    "names": NAMES,
    "metrics": METRICS,
    ("prune", "method"): choice(
        "channels", "depth", "vocabulary", "magnitude", "wanda", "sparsegpt", "lottery"
    ),
    "ratio": NUMBER,
    "pattern": TEXT,
    "scope": choice("layer", "global"),
    "importance": choice("magnitude", "bn", "taylor", "activation"),
    "heads": FLAG,
    "layer_ratios": TEXTS,
    "include": TEXTS,
    "ignore": TEXTS,
    "round_to": WHOLE,
    "keep": WHOLE,
    "remove": TEXTS,
    "corpus": PATHS,
    "min_count": WHOLE,
    "rounds": WHOLE,
    "rewind": WHOLE,
    "seed": WHOLE,
    "epochs": WHOLE,
    "steps": WHOLE,
    "batch_size": WHOLE,
    "learning_rate": NUMBER,
    "losses": TEXTS,
    "pairs": TEXT,
    "checkpoint": PATH,
    "cache_teacher": PATH,
    "history": PATH,
    "patience": WHOLE,
    "precision": choice("fp32", "bf16", "fp16"),
    "accumulation": WHOLE,
}

_SPELLED: Mapping[str, str] = {
    "evaluation": "--eval",
    "layer_ratios": "--layer-ratio",
    "losses": "--loss",
    "metrics": "--metric",
}

#: Of options of the command line alone.
_NEEDS: Mapping[str, str] = {"chart_format": "charts"}


def flag_of(name: str) -> str:
    """How messages and the command line spell an option."""
    said = _ALL.get(name)
    if said is not None and said.flags:
        return said.flags[-1].partition("/")[0]
    return _SPELLED.get(name, f"--{name.replace('_', '-')}")


def needs(name: str) -> str | None:
    """The option that this one says nothing without."""
    return _ALL[name].needs if name in _ALL else _NEEDS.get(name)


def takes_of(verb: str, name: str) -> Takes:
    """What ``verb`` takes as ``name``, one of its arguments or an option that is in no table of
    its own. KeyError for what is nowhere."""
    own = _TAKES.get((verb, name)) or _TAKES.get(name)
    return WRITTEN[name].takes if own is None else own
