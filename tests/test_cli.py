"""The command line, with stand-in verbs: what is parsed, printed, and returned as exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from edgeopt import cli
from edgeopt.core import Check, Choice, Decision, Ggml, Plan, Proof, Verdict
from edgeopt.errors import SourceError

GGUF_DEFAULTS = {
    "type": None,
    "tensor_types": (),
    "imatrix": None,
    "allow_requantize": False,
    "pre_tokenizer": None,
    "prove": "quick",
    "text": None,
    "chunks": 8,
    "context": 512,
}


def proof(passed: bool) -> Proof:
    return Proof(
        verb="quantize",
        source={"path": "m.pt", "nbytes": 10},
        artifact={"path": "m.onnx", "nbytes": 5},
        plan=None,
        changes=(),
        coverage={},
        fidelity=(),
        samples="",
        measurements=(),
        environment={},
        verdict=Verdict((Check("smaller", passed, "5 B", "10 B"),)),
    )


class Verbs:
    """Modules put in place of the real verbs; keeps what they were called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.result: Any = proof(True)
        import edgeopt.verbs

        for verb, names in {
            "quantize": ("quantize", "make_plan"),
            "export": ("export",),
            "verify": ("verify",),
        }.items():
            module = types.ModuleType(f"edgeopt.verbs.{verb}")
            for name in names:
                setattr(module, name, self._stand_in(name))
            monkeypatch.setitem(sys.modules, module.__name__, module)
            monkeypatch.setattr(edgeopt.verbs, verb, module, raising=False)

    def _stand_in(self, name: str) -> Any:
        def verb(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if isinstance(self.result, BaseException):
                raise self.result
            return self.result

        return verb


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> Verbs:
    return Verbs(monkeypatch)


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["edgeopt", *args])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert isinstance(left.value.code, int)
    return left.value.code


def test_quantize_passes_every_option(
    verbs: Verbs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "-o out.onnx --bits 4 --to onnx --data d.npz --input a:float32[1] --input b:int64[2]"
    options += " --model m:f --trust-pickle --block-size 64 --prefer size --target portable"
    options += " --plan plan.json --external-data never --min-sqnr 12.5 --threads 2 --force --json"
    options += " --min-same 0.75 --method rtn"
    options += " --on ssh://pi --remote-python py"
    assert run(monkeypatch, "quantize", "m.pt", *options.split()) == 0
    (name, args, kwargs) = verbs.calls[0]
    assert (name, args) == ("quantize", ("m.pt",))
    assert kwargs == {
        "out": "out.onnx",
        "bits": 4,
        "to": "onnx",
        "data": "d.npz",
        "inputs": ("a:float32[1]", "b:int64[2]"),
        "model": "m:f",
        "trust_pickle": True,
        "block_size": 64,
        "method": "rtn",
        "prefer": "size",
        "target": "portable",
        "plan": "plan.json",
        "external_data": "never",
        "min_sqnr": 12.5,
        "min_same": 0.75,
        "threads": 2,
        "force": True,
        "on": "ssh://pi",
        "remote_python": "py",
        "progress": None,
        **GGUF_DEFAULTS,
    }
    assert json.loads(capsys.readouterr().out)["edgeopt_proof"] == 1


def test_quantize_passes_every_option_of_gguf(
    verbs: Verbs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--to gguf --type q5_k_m --tensor-type ffn_down=Q6_K --tensor-type a=F16"
    options += " --imatrix i.gguf --allow-requantize --pre-tokenizer qwen2 --prove full"
    options += " --text t.txt --chunks 3 --context 64 --json"
    assert run(monkeypatch, "quantize", "folder", *options.split()) == 0
    (_, _, kwargs) = verbs.calls[0]
    assert kwargs["to"] == "gguf"
    assert kwargs["bits"] is None
    assert {name: kwargs[name] for name in GGUF_DEFAULTS} == {
        "type": "q5_k_m",
        "tensor_types": ("ffn_down=Q6_K", "a=F16"),
        "imatrix": "i.gguf",
        "allow_requantize": True,
        "pre_tokenizer": "qwen2",
        "prove": "full",
        "text": "t.txt",
        "chunks": 3,
        "context": 64,
    }


def test_a_plan_can_be_asked_for_with_every_option() -> None:
    """Both functions are called with what the command line has."""
    import inspect

    from edgeopt.verbs.quantize import make_plan, quantize

    assert inspect.signature(quantize).parameters == inspect.signature(make_plan).parameters


def test_a_plan_for_gguf_is_a_table(
    verbs: Verbs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (4, 256)
    decision = Decision("a.weight", "t", "ggml", "gguf", Ggml("Q4_K"), "base", 576, shape)
    size = Choice("file_bytes", "1234567", "")
    verbs.result = Plan("0" * 64, {"to": "gguf"}, (decision,), (size,))
    assert run(monkeypatch, "quantize", "folder", "--plan") == 0
    out = capsys.readouterr().out
    for said in ("a.weight", "4 x 256", "Q4_K", "576", "1,234,567 bytes", "4.50 bits a weight"):
        assert said in out


def test_plan_without_a_file_makes_a_plan_and_no_artifact(
    verbs: Verbs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs.result = Plan("0" * 64, {"bits": 8}, ())
    assert run(monkeypatch, "quantize", "m.pt", "--json", "--plan") == 0
    assert [name for name, _, _ in verbs.calls] == ["make_plan"]
    assert Plan.from_json(json.loads(capsys.readouterr().out)) == verbs.result


@pytest.mark.parametrize(
    "args",
    [("quantize", "m.pt"), ("export", "m.pt", "--half"), ("verify", "m.pt", "m.onnx")],
)
@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_proof_is_printed_and_exits_3(
    verbs: Verbs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    passed: bool,
) -> None:
    verbs.result = proof(passed)
    assert run(monkeypatch, *args, "--json") == (0 if passed else 3)
    assert json.loads(capsys.readouterr().out)["verdict"]["proven"] is passed


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (SourceError("m.pt: no such\n file; check the path"), 2, "m.pt: no such file"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    verbs: Verbs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    line: str,
) -> None:
    verbs.result = raised
    assert run(monkeypatch, "quantize", "m.pt", "--json") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().startswith("edgeopt: error: ")
    assert line in err
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize(
    "args",
    [
        ("quantise", "m.pt"),
        ("quantize",),
        ("quantize", "m.pt", "--bits", "5"),
        ("quantize", "m.pt", "--threads", "0"),
        ("verify", "m.pt"),
    ],
)
def test_bad_usage_is_one_line_and_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    assert run(monkeypatch, *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("edgeopt: error: ")
    assert err.strip().count("\n") == 0


def command(*args: str, cwd: Path, **kwargs: Any) -> subprocess.Popen[str]:
    source = str(Path(cli.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "edgeopt", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": source},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def test_no_arguments_prints_help_on_stderr(tmp_path: Path) -> None:
    process = command(cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert "quantize" in err


def test_version(tmp_path: Path) -> None:
    out, _ = command("--version", cwd=tmp_path).communicate(timeout=60)
    assert out.split()[-1] == cli.edgeopt.__version__


def test_a_reader_that_left_is_no_error(tmp_path: Path) -> None:
    process = command("--help", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=60)
