"""Every option, said once. Click's options, Python's keywords with their documentation, the checks
of a call and the refusals are made of these tables.

A verb's options are a dataclass: its fields are what a function of that verb takes as keywords.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
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
    "Distill",
    "Export",
    "Gguf",
    "Mixed",
    "Prune",
    "PruningOptions",
    "Quantize",
    "Text",
    "TrainingOptions",
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


@dataclass(frozen=True)
class _ByMethod:
    method: str = option(
        MISSING,
        choice("channels", "depth", "vocabulary", "magnitude", "wanda", "sparsegpt", "lottery"),
        "What goes: channels (and heads), whole blocks, unused tokens, or single weights.",
    )


@dataclass(frozen=True)
class PruningOptions:
    """What the methods of pruning can be told."""

    ratio: float | None = option(None, NUMBER, "The share that goes, between 0 and 1.", metavar="R")
    target: str | None = option(
        None,
        TEXT,
        "In place of --ratio: params=0.5, flops=0.5, latency=0.6 or bytes=2MB are left.",
        metavar="WHAT=LEFT",
    )
    pattern: str | None = option(
        None, TEXT, "Single weights: N of every M stay, as 2:4.", metavar="N:M"
    )
    scope: str = option(
        "layer",
        choice("layer", "global"),
        "The same ratio in every layer, or the least important anywhere.",
    )
    importance: str = option(
        "magnitude",
        choice("magnitude", "bn", "taylor", "activation"),
        "Channels: what makes one worth keeping.",
    )
    heads: bool = option(
        False,
        FLAG,
        "Channels: attention heads too.",
    )
    layer_ratios: Sequence[str] = option(
        (),
        TEXTS,
        "The ratio of layers whose name matches; repeatable.",
        flags=("--layer-ratio",),
        metavar="REGEX=R",
    )
    include: Sequence[str] = option(
        (),
        TEXTS,
        "Single weights: these layers, also where they would be left alone.",
        metavar="REGEX",
    )
    ignore: Sequence[str] = option((), TEXTS, "Layers to leave alone; repeatable.", metavar="REGEX")
    round_to: int | None = option(
        None, WHOLE, "Channels: multiples of N are left.", least=1, metavar="N"
    )
    keep: int | None = option(None, WHOLE, "Depth: blocks that stay.", least=1, metavar="N")
    remove: Sequence[str] = option((), TEXTS, "Depth: a block that goes.", metavar="BLOCK")
    corpus: Sequence[str] = option((), PATHS, "Vocabulary: UTF-8 text to keep.", metavar="FILE")
    min_count: int = option(1, WHOLE, "Vocabulary: tokens used less often go.", least=1)
    rounds: int = option(5, WHOLE, "Lottery: times of training and pruning.", least=1)
    rewind: int = option(0, WHOLE, "Lottery: the step whose weights are gone back to.", least=0)


@dataclass(frozen=True)
class _Recovered:
    recover: str | None = option(
        None,
        DATA,
        "Win accuracy back: train on DATA, the unpruned model being the teacher.",
        metavar="DATA",
    )


@dataclass(frozen=True)
class _PruneForm:
    to: str | None = option(
        None,
        choice("pt", "folder", "safetensors"),
        "Format (default: a folder for a folder where that can be, else pt).",
        doc="``pt`` (an exported program), ``folder`` (in Hugging Face form) or ``safetensors``"
        " (zeros in one bit each); default: a folder for a folder, else ``pt``.",
    )


@dataclass(frozen=True)
class _Taught:
    student: str | None = option(
        None,
        CODE_OR_PATH,
        "The student: code, or a file.",
        doc="``package.module:callable`` that returns an ``nn.Module``, or a pruned ``.pt``.",
        metavar="MODULE:CALLABLE|FILE",
    )
    shrink: str | None = option(
        None,
        TEXT,
        "Make the student from the teacher: shares left.",
        doc="in its place ``width=0.5,depth=0.5``: the shares of the teacher that are left.",
        metavar="width=W,depth=D",
    )
    evaluation: str | None = option(
        None,
        DATA,
        "Judge on this (default: held out of --data).",
        doc="what the proof is made on; default: every fourth row of ``data``, held out.",
        flags=("--eval",),
        metavar="DATA",
    )


@dataclass(frozen=True)
class _KeptUp:
    metrics: Sequence[str] = option(
        (),
        METRICS,
        "accuracy, spearman, perplexity or MODULE:CALLABLE, before and after; repeatable.",
        flags=("--metric",),
        metavar="NAME",
    )
    max_drop: float | None = option(
        None, NUMBER, "How much of the metric may be lost.", metavar="N"
    )
    min_sqnr: float | None = option(None, NUMBER, "Fidelity floor in decibels.", metavar="DB")
    threads: int = option(1, WHOLE, "Threads that the model is timed with.", least=1, most=1024)


@dataclass(frozen=True)
class TrainingOptions:
    """What is said of training; None and empty: a default that goes by the task."""

    epochs: int | None = option(
        None,
        WHOLE,
        "Times the data is gone through  [default: 10; 1,000 updates of little data].",
        typed={"min": 1},
        metavar="N",
    )
    steps: int | None = option(None, WHOLE, "In place of --epochs.", typed={"min": 1}, metavar="N")
    batch_size: int | None = option(None, WHOLE, "Samples a step.", typed={"min": 1}, metavar="N")
    learning_rate: float | None = option(None, NUMBER, "Its peak, after warm-up.", metavar="LR")
    losses: Sequence[str] = option(
        (),
        TEXTS,
        "soft, hard, hints, attention, cosine, mse, next_token; repeatable (else: by task).",
        flags=("--loss",),
        metavar="NAME=WEIGHT[,KEY=VALUE]",
    )
    pairs: str | None = option(
        None, TEXT, "Layers of teacher and student that hints compare.", metavar="T=S[,...]"
    )
    seed: int = option(
        0,
        WHOLE,
        "Of every random draw.",
    )
    checkpoint: str | None = option(
        None, PATH, "Save the run's state there, and resume from it.", metavar="DIR"
    )
    cache_teacher: str | None = option(
        None, PATH, "Keep the teacher's outputs on disk, and use them.", metavar="DIR"
    )
    patience: int | None = option(
        None, WHOLE, "End after N evaluations without gain.", typed={"min": 1}, metavar="N"
    )
    precision: str = option(
        "fp32",
        choice("fp32", "bf16", "fp16"),
        "Mixed precision, on a GPU.",
    )
    accumulation: int = option(
        1,
        WHOLE,
        "Pieces that a batch is computed in, where memory is short.",
        typed={"min": 1},
        metavar="N",
    )
    history: str | None = option(
        None, PATH, "Write the course of the training, as JSON lines.", metavar="FILE"
    )


@dataclass(frozen=True)
class Prune(
    Watched,
    Forced,
    TrainingOptions,
    _KeptUp,
    CodeOptions,
    InputOptions,
    _PruneForm,
    _Recovered,
    PruningOptions,
    _ByMethod,
    Out,
):
    """The options of :func:`edgeopt.prune`."""


@dataclass(frozen=True)
class Distill(Watched, Forced, TrainingOptions, _KeptUp, CodeOptions, InputOptions, _Taught, Out):
    """The options of :func:`edgeopt.distill`."""


_WRITING = (Quantize, Export, Verify)
_MEASURING = (BenchOptions, CompareOptions)
_SHRINKING = (Prune, Distill)


def _named(kinds: tuple[type, ...]) -> Mapping[str, Option]:
    return {name: said for kind in kinds for name, said in options_of(kind).items()}


#: What quantize, export and verify can be told, by name; and bench and compare.
WRITTEN, MEASURED = _named(_WRITING), _named(_MEASURING)

#: All of them. What a name is called on the command line, and needs, is the same for every verb.
_ALL = {**WRITTEN, **MEASURED, **_named(_SHRINKING)}

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
    "deep": FLAG,
    "strict": FLAG,
    "prefix": TEXT,
    "names": NAMES,
}

#: Of options of the command line alone.
_NEEDS: Mapping[str, str] = {"chart_format": "charts"}


def flag_of(name: str) -> str:
    """How messages and the command line spell an option."""
    said = _ALL.get(name)
    if said is not None and said.flags:
        return said.flags[-1].partition("/")[0]
    return f"--{name.replace('_', '-')}"


def needs(name: str) -> str | None:
    """The option that this one says nothing without."""
    return _ALL[name].needs if name in _ALL else _NEEDS.get(name)


def takes_of(verb: str, name: str) -> Takes:
    """What ``verb`` takes as ``name``, one of its arguments or an option that is in no table of
    its own. KeyError for what is nowhere."""
    own = _TAKES.get((verb, name)) or _TAKES.get(name)
    return WRITTEN[name].takes if own is None else own
