"""What ``quantize`` and ``export`` to GGUF do with what they should not be given.

The same promise as for every other format: one line on standard error, the right exit code,
nothing left behind, and whatever was there before as it was.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.random_llama import Shape, make
from safetensors.numpy import load_file, save_file
from tests.cli.test_bad_input import (
    Here,
    Left,
    assert_refused,
    contents,
    environment,
    here,
    in_a_process,
)

pytest.importorskip("gguf")
pytest.importorskip("numba")

__all__ = ["here"]  # a fixture

SHAPE = Shape(1, 64, 64, 2, 1, vocabulary=300, context=64)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders and a file that can be quantized."""
    place = tmp_path_factory.mktemp("sound")
    make(place / "model", SHAPE)
    make(place / "sharded", SHAPE, shards=3)
    import edgeopt

    edgeopt.export(place / "model", place / "f16.gguf", to="gguf", prove="none")
    edgeopt.quantize(place / "model", place / "q2.gguf", to="gguf", type="Q4_0", prove="none")
    for plan in place.glob("*.json"):
        plan.unlink()
    return place


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "x")
    return tmp_path / "x"


# ---------------------------------------------------------------------------------------------
# what is done to the sound ones, and what is said to it

Spoil = Callable[[Path], None]
SPOILED: dict[str, tuple[str, Spoil, tuple[str, ...]]] = {}


def spoiled(name: str, *words: str, source: str = "model") -> Callable[[Spoil], Spoil]:
    def register(spoil: Spoil) -> Spoil:
        SPOILED[name] = (source, spoil, words)
        return spoil

    return register


def without(file: str) -> Spoil:
    return lambda folder: (folder / file).unlink()


def replaced(file: str, data: bytes | str) -> Spoil:
    raw = data.encode() if isinstance(data, str) else data

    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(raw)

    return spoil


def configured(**values: Any) -> Spoil:
    """config.json with other values; None takes a key away."""

    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return spoil


def reweighed(change: Callable[[dict[str, Any]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return spoil


def reindexed(change: Callable[[dict[str, str]], None]) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    return spoil


Q = "model.layers.0.self_attn.q_proj.weight"
SHARD = "model-00002-of-00003.safetensors"

spoiled("no config", "model")(without("config.json"))
spoiled("config of no JSON", "config.json", "JSON")(replaced("config.json", "{"))
spoiled("config that is a list", "config.json", "list")(replaced("config.json", "[]"))
spoiled("config without architectures", "architectures")(configured(architectures=None))
spoiled("unknown architecture", "MambaForCausalLM", "LlamaForCausalLM", "CONTRIBUTING")(
    configured(architectures=["MambaForCausalLM"])
)
spoiled("weights quantized by another tool", "quantized already", "awq")(
    configured(quantization_config={"quant_method": "awq"})
)
spoiled("config without a size", "hidden_size", "missing")(configured(hidden_size=None))
spoiled("config with a size of text", "num_hidden_layers", "'1'")(configured(num_hidden_layers="1"))
spoiled("config with a huge size", "hidden_size")(configured(hidden_size=2**60))
spoiled("config with infinity", "rms_norm_eps")(configured(rms_norm_eps=float("inf")))
spoiled("more layers than there are", "layers.1")(configured(num_hidden_layers=2))
spoiled("no layers", "num_hidden_layers")(configured(num_hidden_layers=0))
spoiled("another width", "embed_tokens", "64", "32")(configured(hidden_size=32))
spoiled("another number of heads", "k_proj")(configured(num_key_value_heads=2))
spoiled("another vocabulary", "embed_tokens", "300", "299")(configured(vocab_size=299))
spoiled("no tokenizer", "tokenizer")(without("tokenizer.model"))
spoiled("an empty tokenizer", "tokenizer.model")(replaced("tokenizer.model", b""))
spoiled("a tokenizer of noise", "tokenizer.model")(replaced("tokenizer.model", os.urandom(999)))
spoiled("a tokenizer cut short", "tokenizer.model")(
    lambda folder: (
        (folder / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes()[:-3])
        and None
    )
)
spoiled("no weights", "model")(without("model.safetensors"))
spoiled("weights cut short", "model.safetensors", "cut short")(
    lambda folder: os.truncate(folder / "model.safetensors", 9999)
)
spoiled("weights of noise", "model.safetensors")(replaced("model.safetensors", os.urandom(999)))
spoiled("weights with a huge header", "model.safetensors", "header of 18446744073709551615")(
    replaced("model.safetensors", struct.pack("<Q", 2**64 - 1) + b"{}")
)
spoiled("weights that overlap", "model.safetensors", "overlaps")(
    replaced(
        "model.safetensors",
        struct.pack("<Q", 116)
        + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        + b'"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'.ljust(62)
        + bytes(6),
    )
)
spoiled("a tensor missing", Q)(reweighed(lambda t: t.pop(Q) is None and None))
spoiled("a tensor of another shape", "q_proj", "64")(
    reweighed(lambda t: t.update({Q: np.zeros((64, 32), np.float16)}))
)
spoiled("a tensor that nobody knows", "model.layers.0.extra.weight")(
    reweighed(lambda t: t.update({"model.layers.0.extra.weight": np.zeros((4, 4), np.float16)}))
)
spoiled("a tensor with a path for a name", "../../etc/passwd")(
    reweighed(lambda t: t.update({"../../etc/passwd": np.zeros((4, 4), np.float16)}))
)
spoiled("a tensor with a NUL in its name", "model")(
    reweighed(lambda t: t.update({"model.norm\0.weight": np.zeros(4, np.float16)}))
)
spoiled("weights that are integers", "q_proj", "int")(
    reweighed(lambda t: t.update({Q: np.zeros((64, 64), np.int8)}))
)
spoiled("NaN", "q_proj|attn_q", "NaN")(reweighed(lambda t: t[Q].__setitem__((3, 5), np.nan)))
spoiled("infinity", "q_proj|attn_q", "Inf|infin|finite")(
    reweighed(lambda t: t[Q].__setitem__((3, 5), np.inf))
)
spoiled("NaN in a norm", "norm", "NaN")(
    reweighed(lambda t: t["model.norm.weight"].__setitem__(3, np.nan))
)
spoiled("a shard missing", SHARD, "3 shards", source="sharded")(without(SHARD))
spoiled("a shard cut short", SHARD, "cut short", source="sharded")(
    lambda folder: os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 1)
)
spoiled("a shard that is empty", SHARD, source="sharded")(replaced(SHARD, b""))
spoiled("a shard in place of another", source="sharded")(
    lambda folder: shutil.copy(folder / SHARD, folder / SHARD.replace("00002", "00001")) and None
)
spoiled("an index that names another shard", "does not hold", source="sharded")(
    reindexed(lambda where: where.update({"lm_head.weight": SHARD}))
)
spoiled("an index that leads elsewhere", "plain file name", source="sharded")(
    reindexed(lambda where: where.update({"lm_head.weight": "../secret.safetensors"}))
)
spoiled("an index and a shard that are missing", "2 of 3 shards", "no index", source="sharded")(
    lambda folder: without("model.safetensors.index.json")(folder) or without(SHARD)(folder)
)
spoiled("an index of no JSON", "index.json", source="sharded")(
    replaced("model.safetensors.index.json", "{")
)


def gguf_bytes(offset: int, raw: bytes) -> Spoil:
    def spoil(path: Path) -> None:
        whole = bytearray(path.read_bytes())
        whole[offset : offset + len(raw)] = raw
        path.write_bytes(whole)

    return spoil


ALL = b"\xff" * 8
spoiled("GGUF of another version", "version 9", source="f16.gguf")(gguf_bytes(4, b"\x09"))
spoiled("GGUF with 2^64-1 tensors", "tensor count", source="f16.gguf")(gguf_bytes(8, ALL))
spoiled("GGUF with 2^64-1 keys", "metadata count", source="f16.gguf")(gguf_bytes(16, ALL))
spoiled("GGUF with an endless key", "metadata key", source="f16.gguf")(gguf_bytes(24, ALL))
spoiled("GGUF cut short", "past the end", source="f16.gguf")(
    lambda path: os.truncate(path, path.stat().st_size - 999)
)
spoiled("GGUF in few bits already", "--allow-requantize", source="q2.gguf")(lambda path: None)


@pytest.mark.parametrize("name", SPOILED)
def test_sources_that_are_refused(folder: Path, name: str, here: Here) -> None:
    source, spoil, words = SPOILED[name]
    spoil(folder / source)
    before = contents(folder)
    args = [source, "--to", "gguf", "--type", "Q8_0", "--prove", "none", "-o", "out.gguf"]
    left = here("quantize", *args, cwd=folder)
    assert_refused(left, 2)
    for word in words:
        assert any(w in left.err for w in word.split("|")), left.err
    assert contents(folder) == before


# ---------------------------------------------------------------------------------------------
# options

#: What is said beside ``quantize model -o out.gguf``, and what the answer names.
OPTIONS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "type that is none": (["--type", "Q4_X"], ("Q4_X", "Q4_K_M")),
    "type that nobody writes": (["--type", "IQ2_XXS"], ("IQ2_XXS",)),
    "override without a type": (["--tensor-type", "attn_q"], ("--tensor-type", "REGEX=TYPE")),
    "override of no pattern": (["--tensor-type", "attn_(=Q6_K"], ("attn_(",)),
    "override of no type": (["--tensor-type", "attn_q=Q99"], ("Q99",)),
    "override that fits nothing": (["--tensor-type", "nowhere=Q6_K"], ("nowhere",)),
    "override that the rows do not allow": (["--tensor-type", "attn_q=Q6_K"], ("256", "attn_q")),
    "imatrix that is missing": (["--imatrix", "nowhere.dat"], ("nowhere.dat",)),
    "imatrix that is a model": (["--imatrix", "f16.gguf"], ("f16.gguf", "importance")),
    "imatrix of text": (["--imatrix", "model/config.json"], ("config.json",)),
    "imatrix that is a folder": (["--imatrix", "model"], ("model", "folder")),
    "plan that is none": (["--plan", "model/config.json"], ("config.json", "plan")),
    "full proof without a text": (["--prove", "full"], ("--text",)),
    "text that is missing": (["--prove", "full", "--text", "nowhere.txt"], ("nowhere.txt",)),
    "no chunks": (["--prove", "full", "--text", "t", "--chunks", "0"], ("--chunks",)),
    "a type for another format": (["--to", "onnx", "--type", "Q4_0"], ("--type", "gguf")),
    "no folder for the output": (["-o", "no/where.gguf"], ("no/where.gguf", "does not exist")),
    "output that is a folder": (["-o", "model"], ("folder",)),
    "output that is a device": (["-o", "/dev/full", "--to", "gguf"], ("/dev/full",)),
    "output inside the source": (["-o", "model/config.json", "--to", "gguf"], ("source",)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_cannot_be_honoured(folder: Path, name: str, here: Here) -> None:
    options, words = OPTIONS[name]
    before = contents(folder)
    given = options if "-o" in options else ["-o", "out.gguf", *options]
    proving = [] if "--prove" in options or "onnx" in options else ["--prove", "none"]
    left = here("quantize", "model", *proving, *given, cwd=folder)
    assert_refused(left, 2, *words)
    assert contents(folder) == before


@pytest.mark.parametrize("by", ["its name", "a link", "a hard link", "another way"])
def test_output_that_is_the_source(folder: Path, by: str, here: Here) -> None:
    out = {"its name": "f16.gguf", "another way": "model/../f16.gguf"}.get(by, "out.gguf")
    if by == "a link":
        (folder / out).symlink_to("f16.gguf")
    elif by == "a hard link":
        os.link(folder / "f16.gguf", folder / out)
    before = contents(folder)
    left = here("quantize", "f16.gguf", "--prove", "none", "-o", out, cwd=folder)
    assert_refused(left, 2, "is the source itself")
    assert contents(folder) == before


def test_what_was_there_stays_when_the_work_fails(folder: Path, here: Here) -> None:
    """Even where the failure comes from the last tensor, after most of the file was written."""
    reweighed(lambda t: t["lm_head.weight"].__setitem__((-1, -1), np.nan))(folder / "model")
    (folder / "out.gguf").write_bytes(b"what was there")
    (folder / "out.gguf.plan.json").write_bytes(b"its plan")
    before = contents(folder)
    args = ["model", "--type", "Q8_0", "--prove", "none", "-o", "out.gguf"]
    assert_refused(here("quantize", *args, cwd=folder), 2, "NaN")
    assert contents(folder) == before


def test_a_folder_that_is_read_only(
    folder: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = folder / "locked"
    locked.mkdir()
    if os.geteuid() == 0:  # nothing is read-only to root
        real = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: Path(path) != locked and real(path, mode)
        )
    else:
        locked.chmod(0o555)
    before = contents(folder)
    args = ["model", "--type", "Q8_0", "--prove", "none", "-o", "locked/o.gguf"]
    assert_refused(here("quantize", *args, cwd=folder), 2, "read-only")
    assert contents(folder) == before


# ---------------------------------------------------------------------------------------------
# processes of their own: what only the system can do to one


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def test_disk_full(folder: Path) -> None:
    (folder / "out.gguf").write_bytes(b"what was there")
    before = contents(folder)
    args = ["quantize", "model", "--type", "Q8_0", "--prove", "none", "-o", "out.gguf"]
    left = in_a_process(*args, cwd=folder, preexec_fn=small_files_only)
    assert_refused(left, 2, "out.gguf", "size limit")
    assert contents(folder) == before


def test_a_disk_that_is_too_small_is_seen_first(
    folder: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1))
    before = contents(folder)
    args = ["quantize", "model", "--type", "Q8_0", "--prove", "none", "-o", "out.gguf"]
    assert_refused(here(*args, cwd=folder), 2, "1 B are free", "-o")
    assert contents(folder) == before


#: Stops the work in the middle of the weights, says so, and waits for what comes.
WAITING = """
import os, signal, sys, time
import edgeopt.llm.stream as stream
from edgeopt import cli
real, count = stream._RowsJob.run, 0
def slow(job, source, writer):
    global count
    done = real(job, source, writer)
    count += 1
    if count > 4:
        print("half way", flush=True)
        time.sleep(2)
    return done
stream._RowsJob.run = slow
stream.os.cpu_count = lambda: 1
sys.argv[1:] = ["quantize", "model", "--type", "Q8_0", "--prove", "none", "-o", "out.gguf"]
cli.main()
"""


@pytest.mark.parametrize(("number", "old"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_interrupted_half_way(folder: Path, number: signal.Signals, old: bool) -> None:
    if old:
        (folder / "out.gguf").write_bytes(b"what was there")
    before = contents(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    assert contents(folder) != before  # something lies there, hidden
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    if number == signal.SIGINT:
        assert_refused(Left(process.returncode, out, err), 130, "interrupted")
    else:
        assert (process.returncode, err) == (128 + number, "")
    assert contents(folder) == before


def test_after_a_kill_a_rerun_starts_clean(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    assert not (folder / "out.gguf").exists()
    args = ["quantize", "model", "--type", "Q8_0", "--prove", "none", "-o", "out.gguf"]
    left = in_a_process(*args, cwd=folder)
    assert (left.code, left.err) == (0, "")
    assert (folder / "out.gguf").exists()
