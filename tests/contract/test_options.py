"""Every option of every command, for every kind of source and every format: it has a meaning there,
or it is refused by its name before anything is read at length.

What has a meaning is said here once more, by hand, from the documentation. An option that is added
to a command and not to this table fails the sweep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from models.random_llama import SHAPES, make
from safetensors.numpy import save_file
from tests.verbs.small_onnx import mlp

import edgeopt
from edgeopt.cli.making import COMMANDS as MAKING
from edgeopt.cli.measuring import COMMANDS as MEASURING
from edgeopt.errors import EdgeoptError, UsageError
from edgeopt.targets.base import targets

torch = pytest.importorskip("torch", reason="half of the sources are torch's")

BY_NAME = {str(command.name): command for command in (*MAKING, *MEASURING)}

#: Formats that an option has a meaning for; "all" where it is about any artifact or its writing.
ALL = frozenset({"onnx", "packed", "gguf"})
ONNX, GGUF = frozenset({"onnx"}), frozenset({"gguf"})
WRITING: dict[str, frozenset[str]] = {
    "--out": ALL,
    "--bits": ALL,
    "--to": ALL,
    "--min-sqnr": ALL,
    "--force": ALL,
    "--json": ALL,
    "--trust-pickle": ALL,  # a permission, wherever there is something to permit
    "--plan": ALL,
    "--block-size": frozenset({"packed"}),  # at 8 bits; at 4 ONNX too, see below
    "--method": frozenset({"onnx", "packed"}),
    "--min-same": ONNX,
    "--data": ONNX,
    "--input": ONNX,
    "--model": ONNX,
    "--prefer": ONNX,
    "--threads": ONNX,
    "--target": ONNX,
    "--on": ONNX,
    "--external-data": ONNX,
    "--half": ONNX,
    "--opset": ONNX,
    "--type": GGUF,
    "--tensor-type": GGUF,
    "--imatrix": GGUF,
    "--allow-requantize": GGUF,
    "--pre-tokenizer": GGUF,
    "--prove": GGUF,
    # of another option, which the sweep gives none of
    "--remote-python": frozenset(),
    "--text": frozenset(),
    "--chunks": frozenset(),
    "--context": frozenset(),
}

#: A value for each that the command line takes; what is not here gets one by its type.
VALUES = {
    "--data": "d.npz",
    "--input": "x:float32[1,8]",
    "--model": "json:loads",
    "--on": "ssh://a@b.invalid",
    "--min-same": "0.5",
    "--min-sqnr": "5",
    "--opset": "21",
    "--type": "Q8_0",
    "--tensor-type": "ffn=Q8_0",
    "--block-size": "64",
    "--imatrix": "i.gguf",
    "--pre-tokenizer": "gpt-2",
    "--text": "t.txt",
    "--prefer": "size",
}


class _Reached(Exception):
    """The options were taken, and work would begin."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    weights = {"a.weight": rng.standard_normal((64, 64)).astype(np.float32)}
    graph = mlp(folder / "m.onnx")
    onnx.save(onnx.load(graph), folder / "e.onnx", save_as_external_data=True, location="e.data")
    save_file(weights, folder / "w.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, folder / "state.pt")
    program = torch.export.export(torch.nn.Linear(8, 8), (torch.zeros(2, 8),))
    torch.export.save(program, folder / "program.pt2")
    make(folder / "llama", SHAPES["tiny"])
    edgeopt.export(folder / "llama", folder / "f16.gguf", to="gguf", prove="none")
    edgeopt.quantize(folder / "w.safetensors", folder / "packed.safetensors", force=True)
    with contextlib.chdir(folder):
        yield {path.name: path for path in folder.iterdir()}


#: Source, words that choose the format, and the format that comes of it.
QUANTIZE = [
    ("m.onnx", [], "onnx"),
    ("e.onnx", [], "onnx"),
    ("m.onnx", ["--to", "safetensors"], "packed"),
    ("program.pt2", [], "onnx"),
    ("program.pt2", ["--to", "safetensors"], "packed"),
    ("state.pt", [], "packed"),
    ("w.safetensors", [], "packed"),
    ("llama", [], "gguf"),
    ("llama", ["--to", "onnx"], "onnx"),
    ("llama", ["--to", "safetensors"], "packed"),
    ("f16.gguf", [], "gguf"),
]
EXPORT = [
    ("m.onnx", [], "onnx"),
    ("e.onnx", [], "onnx"),
    ("program.pt2", [], "onnx"),
    ("llama", [], "gguf"),
    ("llama", ["--to", "onnx"], "onnx"),
    ("f16.gguf", [], "gguf"),
]
SWEEP = [("quantize", *case) for case in QUANTIZE] + [("export", *case) for case in EXPORT]


def _words(option: click.Option) -> list[str]:
    name = option.opts[-1]
    if option.is_flag:
        return [name]
    if name in VALUES:
        return [name, VALUES[name]]
    if isinstance(option.type, click.Choice):
        return [name, str(option.type.choices[0])]
    return [name, "17"]


def _options(verb: str) -> list[click.Option]:
    found = [p for p in BY_NAME[verb].params if isinstance(p, click.Option)]
    return [option for option in found if not option.is_eager]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets that begin nothing: what gets there was taken."""

    def begin(*_: Any, **__: Any) -> None:
        raise _Reached

    for target in targets():
        monkeypatch.setattr(type(target), "begin", begin)
        monkeypatch.setattr(type(target), "prove", begin)


def _run(verb: str, words: list[str]) -> str:
    """ "taken", or what is said instead."""
    try:
        BY_NAME[verb].main(words, standalone_mode=False)
    except _Reached:
        return "taken"
    except UsageError as error:
        return str(error)
    raise AssertionError(words)


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(("verb", "name", "to", "form"), SWEEP)
def test_an_option_is_taken_or_named(
    verb: str, name: str, to: list[str], form: str, sources: dict[str, Path]
) -> None:
    assert name in sources
    chosen = {word for word in to if word.startswith("--")}
    wrong = []
    for option in _options(verb):
        flag = option.opts[-1]
        if flag in chosen or flag in ("--plan", "--to", "--out"):
            continue
        meaning = form in WRITING[flag]
        if flag == "--input" and name == "program.pt2":
            meaning = False  # the program says it by itself
        if flag == "--pre-tokenizer" and name == "f16.gguf":
            meaning = False  # so does the file
        if flag == "--model" and name in ("state.pt", "w.safetensors") and not to:
            meaning = True  # with its code there is a graph
        words = _words(option)
        if flag == "--type" and verb == "export":
            words = ["--type", "F16"]
        said = _run(verb, [name, *to, *words])
        if meaning != (said == "taken") or (not meaning and flag not in said):
            wrong.append((words, said))
    assert not wrong


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    ("name", "artifact", "form"),
    [
        ("m.onnx", "e.onnx", "onnx"),
        ("program.pt2", "e.onnx", "onnx"),
        ("w.safetensors", "packed.safetensors", "packed"),
        ("llama", "f16.gguf", "gguf"),
    ],
)
def test_verify_takes_an_option_or_names_it(
    name: str, artifact: str, form: str, sources: dict[str, Path]
) -> None:
    wrong = []
    for option in _options("verify"):
        flag = option.opts[-1]
        meaning = form in WRITING[flag] or (flag == "--text" and form == "gguf")
        if flag == "--input" and name == "program.pt2":
            meaning = False
        said = _run("verify", [name, artifact, *_words(option)])
        if meaning != (said == "taken") or (not meaning and flag not in said):
            wrong.append((flag, said))
        if flag != "--json":  # of one file there is nothing to compare
            with pytest.raises(EdgeoptError, match=flag):
                BY_NAME["verify"].main([artifact, *_words(option)], standalone_mode=False)
    assert not wrong


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize("option", ["--threads 1", "--prefer balanced", "--target here"])
def test_a_default_that_is_typed_is_an_option(option: str, sources: dict[str, Path]) -> None:
    said = _run("quantize", ["w.safetensors", *option.split()])
    assert f"{option.split()[0]} has no meaning for safetensors" in said
    keyword = {option.split()[0].removeprefix("--"): option.split()[1]}
    if "threads" in keyword:
        keyword = {"threads": 1}  # type: ignore[dict-item]
    with pytest.raises(UsageError, match="has no meaning for safetensors"):
        edgeopt.quantize("w.safetensors", **keyword)  # type: ignore[arg-type]


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("m.onnx --bits 8 --block-size 32", "--block-size 32 has no meaning for ONNX at 8 bits"),
        ("m.onnx --block-size 32", "--block-size 32 has no meaning for ONNX at 8 bits"),
        ("m.onnx --remote-python python3", "--remote-python has no meaning without --on"),
        ("llama --prove none --min-sqnr 20", "--prove none"),
        ("llama --text t.txt", "--prove full"),
        ("llama --prove none --text t.txt", "--prove full"),
        ("llama --chunks 4", "--chunks has no meaning without --text"),
        ("llama --bits 8 --type Q4_0", "--bits 8 and --type Q4_0"),
        ("m.onnx --type Q8_0", "--type is for GGUF"),
        ("m.onnx --imatrix i.gguf", "--imatrix is for GGUF"),
        ("w.safetensors --prove none", "--prove is for GGUF"),
        ("state.pt -o out.onnx", "ends as ONNX does"),
    ],
)
def test_what_contradicts_itself(words: str, says: str, sources: dict[str, Path]) -> None:
    assert says in _run("quantize", words.split())


@pytest.mark.usefixtures("stopped")
def test_blocks_have_a_meaning_at_four_bits(sources: dict[str, Path]) -> None:
    for name in ("m.onnx", "w.safetensors"):
        assert _run("quantize", [name, "--bits", "4", "--block-size", "32"]) == "taken"


@pytest.mark.parametrize(
    ("name", "planned", "given"),
    [
        ("m.onnx", {"bits": 8, "prefer": "size"}, {"bits": 4}),
        ("m.onnx", {"bits": 8, "prefer": "size"}, {"prefer": "memory"}),
        ("m.onnx", {"bits": 8, "prefer": "size"}, {"target": "portable"}),
        ("w.safetensors", {"bits": 8}, {"bits": 4}),
        ("w.safetensors", {"bits": 8}, {"block_size": 32}),
        ("w.safetensors", {"bits": 8}, {"method": "hqq"}),
        ("m.onnx", {"bits": 4, "prefer": "size", "method": "rtn"}, {"method": "hqq"}),
        ("llama", {"type": "Q8_0"}, {"type": "Q4_0"}),
    ],
)
def test_a_plan_is_not_overruled_in_silence(
    name: str, planned: dict[str, Any], given: dict[str, Any], sources: dict[str, Path]
) -> None:
    from edgeopt.verbs.quantize import make_plan

    plan = make_plan(name, **planned)
    with pytest.raises(UsageError, match=r"the plan is one for") as caught:
        edgeopt.quantize(name, plan=plan, **given)
    (option,) = given
    assert option.replace("_", "-") in str(caught.value) or str(given[option]) in str(caught.value)


#: Artifact, and the options of bench and compare that say nothing to it.
MEASURED = [
    ("m.onnx", {"--prompt": "8", "--generate": "8", "--model": "json:loads"}),
    ("f16.gguf", {"--batch": "1", "--seq": "8", "--data": "d.npz", "--input": "x:float32[1]"}),
    ("f16.gguf", {"--model": "json:loads"}),
    (
        "w.safetensors",
        {
            "--device": "cpu",
            "--threads": "1",
            "--batch": "1",
            "--seq": "8",
            "--data": "d.npz",
            "--input": "x:float32[1]",
            "--prompt": "8",
            "--generate": "8",
        },
    ),
]


@pytest.mark.parametrize(("name", "given"), MEASURED)
def test_bench_names_what_it_cannot_use(
    name: str, given: dict[str, str], sources: dict[str, Path]
) -> None:
    for option, value in given.items():
        with pytest.raises(EdgeoptError, match=option) as caught:
            BY_NAME["bench"].main([name, option, value], standalone_mode=False)
        assert caught.value.exit_code == 2
    for words in (["--other-machine"], ["--chart-format", "png"], ["--remote-python", "python3"]):
        with pytest.raises(EdgeoptError, match=words[0]):
            BY_NAME["bench"].main([name, *words], standalone_mode=False)


def test_the_table_has_every_option() -> None:
    for verb in ("quantize", "export", "verify"):
        assert {option.opts[-1] for option in _options(verb)} <= WRITING.keys()


@pytest.mark.parametrize("name", ["m.onnx", "w.safetensors"])
@pytest.mark.parametrize("method", ["rtn", "mse", "hqq"])
def test_weights_are_rounded_as_asked(
    name: str, method: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    """Codes of the written file, read by their formats' own libraries, are that method's."""
    out = tmp_path / f"out{sources[name].suffix}"
    prefer = {"prefer": "size"} if name == "m.onnx" else {}
    proof = edgeopt.quantize(name, out, bits=4, method=method, force=True, **prefer)
    assert proof.plan is not None
    coded = [d for d in proof.plan.decisions if d.affine is not None]
    assert coded
    assert {d.method for d in coded} == {method}
    assert proof.plan.options["method"] == method
    again = edgeopt.quantize(name, tmp_path / f"again{out.suffix}", plan=proof.plan, force=True)
    assert again.artifact["sha256"] == proof.artifact["sha256"]
    plain = edgeopt.quantize(
        name, tmp_path / f"plain{out.suffix}", bits=4, method="mse", force=True, **prefer
    )
    assert (out.read_bytes() == Path(plain.artifact["path"]).read_bytes()) == (method == "mse")
