"""Streaming: the same bytes on any number of threads, and never a tensor whole in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from models.random_llama import SHAPES, make
from safetensors.numpy import load_file, save_file
from tests.tiny_gguf import without_digests

from edgeopt.core import Plan
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.gguf_write import GgufLayout
from edgeopt.files.open import open_source
from edgeopt.llm.plan import GgufAsked, layout_of, make_gguf_plan, replayed
from edgeopt.llm.read import read_model
from edgeopt.llm.stream import write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "tiny"
    make(path, SHAPES["tiny"], shards=2)
    return path


def convert(source_path: Path, out: Path, kind: str, threads: int = 1) -> tuple[Plan, GgufLayout]:
    source = open_source(source_path)
    model = read_model(source)
    plan = make_gguf_plan(source, model, GgufAsked(kind, allow_requantize=True))
    layout = layout_of(model, plan)
    out.touch()
    write_model(source, model, plan, layout, out, threads=threads)
    return plan, layout


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K_M", "Q2_K"])
def test_the_file_is_what_the_plan_says(folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "a.gguf"
    plan, layout = convert(folder, out, kind)
    assert out.stat().st_size == layout.nbytes
    tensors = {t.name: t for t in gguf.GGUFReader(out).tensors}
    assert list(tensors) == [d.tensor for d in plan.decisions]
    for decision in plan.decisions:
        found = tensors[decision.tensor]
        assert found.tensor_type.name == decision.to_json()["scheme"]["name"]
        assert found.n_bytes == decision.nbytes
    # values too, by gguf-py's decoder, on a tensor that is stored as it stands in the folder
    values = gguf.quants.dequantize(
        tensors["blk.1.ffn_up.weight"].data, tensors["blk.1.ffn_up.weight"].tensor_type
    )
    shards = [load_file(f) for f in sorted(folder.glob("*.safetensors"))]
    merged = {name: value for shard in shards for name, value in shard.items()}
    expected = merged["model.layers.1.mlp.up_proj.weight"].astype(np.float32)
    noise = np.square(values - expected).sum() / np.square(expected).sum()
    assert noise < {"Q2_K": 0.15, "Q4_0": 0.02, "Q4_K_M": 0.02}.get(kind, 0.003)


def test_threads_do_not_change_a_byte(folder: Path, tmp_path: Path) -> None:
    for kind in ("Q4_K_M", "Q5_0"):
        convert(folder, tmp_path / "one.gguf", kind, threads=1)
        convert(folder, tmp_path / "four.gguf", kind, threads=4)
        assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "four.gguf").read_bytes()


def test_a_gguf_is_a_source_too(folder: Path, tmp_path: Path) -> None:
    """From F16 GGUF to Q4_K_M: the same tensors as straight from the folder."""
    convert(folder, tmp_path / "f16.gguf", "F16")
    convert(folder, tmp_path / "straight.gguf", "Q4_K_M")
    convert(tmp_path / "f16.gguf", tmp_path / "again.gguf", "Q4_K_M")
    straight = gguf.GGUFReader(tmp_path / "straight.gguf").tensors
    again = gguf.GGUFReader(tmp_path / "again.gguf").tensors
    for a, b in zip(straight, again, strict=True):
        assert (a.name, a.tensor_type) == (b.name, b.tensor_type)
        np.testing.assert_array_equal(a.data, b.data)


def test_tensors_that_keep_their_type_keep_their_bytes(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "a.gguf", "Q4_K_M")
    convert(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q4_K_M")
    assert without_digests(tmp_path / "a.gguf") == without_digests(tmp_path / "b.gguf")


def test_metadata_that_cannot_be_written_again(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "nested.gguf", "llama")
    writer.add_array("odd.key", [[1, 2], [3, 4]])
    writer.add_tensor("output_norm.weight", np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"odd\.key.*array of arrays"):
        read_model(open_source(tmp_path / "nested.gguf"))


def test_low_bits_are_not_quantized_again_unasked(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "a.gguf", "Q4_0")
    source = open_source(tmp_path / "a.gguf")
    model = read_model(source)
    with pytest.raises(SourceError, match="allow-requantize"):
        make_gguf_plan(source, model, GgufAsked("Q5_K_M"))
    assert make_gguf_plan(source, model, GgufAsked("Q5_K_M", allow_requantize=True)).decisions
    # next to nothing is lost in 8 bits: they may be the beginning
    convert(folder, tmp_path / "eight.gguf", "Q8_0")
    source = open_source(tmp_path / "eight.gguf")
    assert make_gguf_plan(source, read_model(source), GgufAsked("Q4_K_M")).decisions


def test_a_plan_comes_back_from_json(folder: Path, tmp_path: Path) -> None:
    source = open_source(folder)
    model = read_model(source)
    plan = make_gguf_plan(source, model, GgufAsked("Q3_K_M", (("ffn_up", "Q8_0"),)))
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert replayed(source, model, again, None) == again
    assert again.digest() == plan.digest()
    assert layout_of(model, again) == layout_of(model, plan)
    types = {d.tensor: d.to_json()["scheme"]["name"] for d in again.decisions}
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    document = plan.to_json()
    document["decisions"][3]["nbytes"] += 1
    with pytest.raises(UsageError, match="make it anew"):
        replayed(source, model, Plan.from_json(document), None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K_M"])
def test_weights_that_are_no_numbers_are_named(
    folder: Path, tmp_path: Path, kind: str, bad: float
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    shard = sorted(broken.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][5, 7] = bad
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(SourceError, match=r"blk\.1\.ffn_down\.weight.*NaN or Inf"):
        convert(broken, tmp_path / "a.gguf", kind)


_CHILD = """
import resource, sys, threading, time
from pathlib import Path
limit = 1 << 29
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # half the tensor: it cannot be held
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.01):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                peak[0] = max(peak[0], int(line.split()[1]) // 1024)
thread = threading.Thread(target=watch); thread.start()
from edgeopt.core import Decision, Ggml, Plan, Source
from edgeopt.files.open import open_source
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.plan import layout_of
from edgeopt.llm.stream import write_model
source, out, kind = open_source(sys.argv[1]), Path(sys.argv[2]), Ggml(sys.argv[3])
model = LanguageModel("llama", {}, source.weights)
decisions = tuple(
    Decision(w.name, "tensor", "ggml", "gguf", kind, "", kind.nbytes(w.shape), w.shape)
    for w in source.weights
)
plan = Plan("", {"type": sys.argv[3], "to": "gguf"}, decisions)
out.touch()
write_model(source, model, plan, layout_of(model, plan), out, threads=2)
done.set(); thread.join()
print(peak[0], out.stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and read the Linux way")
def test_one_tensor_of_a_gigabyte_under_a_memory_limit(tmp_path: Path) -> None:
    """A sparse file takes no disk; every row of it is gone through all the same."""
    shape = (1 << 17, 1 << 12)
    header = json.dumps(
        {"big": {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 * shape[0] * shape[1]]}}
    ).encode()
    source = tmp_path / "model.safetensors"
    with source.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 2 * shape[0] * shape[1])
    out = tmp_path / "a.gguf"
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(source), str(out), "Q4_0"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    peak_mb, size = map(int, done.stdout.split())
    assert size == out.stat().st_size > shape[0] * shape[1] // 32 * 18
    assert 10 < peak_mb < 300
