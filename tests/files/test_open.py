"""The front door: content decides, and what is no model is told what it is."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as save_bytes

from edgeopt.errors import EdgeoptError, FormatError, SourceError
from edgeopt.files import sniff
from edgeopt.files.open import open_source

MODEL = save_bytes({"w": np.ones((2, 3), np.float32)})


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def saved(save) -> bytes:
    buffer = io.BytesIO()
    save(buffer, a=np.ones(3), b=np.ones(4))
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.onnx", "model", "x.gguf"])
def test_content_decides_not_the_suffix(tmp_path, name):
    (tmp_path / name).write_bytes(MODEL)
    source = open_source(tmp_path / name)
    assert source.kind == "safetensors"
    assert source.weights[0].shape == (2, 3)
    assert open_source(str(tmp_path / name)).nbytes == len(MODEL)


def test_through_a_symbolic_link(tmp_path):
    (tmp_path / "blob").write_bytes(MODEL)
    (tmp_path / "link").symlink_to("blob")
    assert open_source(tmp_path / "link").kind == "safetensors"


FOREIGN = {
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body>", "a web page"),
    "html, small": (b"<html lang='en'>", "a web page"),
    "keras h5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "Keras HDF5.*tf2onnx"),
    "keras": (zipped("config.json", "model.weights.h5"), "Keras archive"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
    "ort": (b"\x28\x00\x00\x00ORTM" + bytes(64), ".ort file"),
    "executorch": (b"\x28\x00\x00\x00ET12" + bytes(64), "ExecuTorch"),
    "npz": (saved(np.savez), "numpy archive"),
    "npz, compressed": (saved(np.savez_compressed), "numpy archive"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(64), "numpy array"),
    "zip": (zipped("folder/model.pt"), "a zip archive; unpack it"),
    "empty zip": (zipped(), "a zip archive; unpack it"),
    "gzip": (gzip.compress(MODEL), "gzip archive; unpack it"),
    "tar": (tarred(), "tar archive; unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(64), "zstd archive"),
    "ggml": (b"tjgg" + bytes(64), "before GGUF"),
    "xml": (b"<?xml version='1.0'?><net name='x'>", "OpenVINO"),
    "elf": (b"\x7fELF\x02\x01" + bytes(64), "compiled program"),
    "json": (b'{"a": 1}', "a JSON document"),
    "text": ("Weights for the café model\n".encode() * 200, "a text file"),
    "text, a character cut": (b"x" * 4095 + "é".encode() * 10, "a text file"),
    "coreml": (
        b"\x08\x04\x12\x03abc" + b"\xa2\x1f\x03abc",
        "a CoreML model",
    ),
    "random": (b"\xde\xad\xbe\xef" * 32, "no known format .begins with de ad be ef"),
    "one byte": (b"\xff", "no known format .begins with ff"),
    "almost safetensors": (b"hello wo{ld, this is text", "a text file"),
    "broken zip": (b"PK\x03\x04" + bytes(60), "a zip archive"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_model(tmp_path, case):
    data, message = FOREIGN[case]
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("saved_model.pb", b"\x08\x01\x12\x02ab", "TensorFlow graph"),
        ("config.json", b'{"model_type": "bert"}', "configuration, not its weights"),
        ("pytorch_model.bin.index.json", b'{"weight_map": {}}', "index of shards.*give the folder"),
    ],
)
def test_known_by_name_as_well(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path / name)


def test_missing_empty_and_unreadable(tmp_path):
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(tmp_path / "missing.pt")
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(tmp_path / "missing" / "deep.pt")
    with pytest.raises(SourceError, match="NUL"):
        open_source("a\0b")
    with pytest.raises(SourceError, match="too long"):
        open_source(tmp_path / ("n" * 300))
    (tmp_path / "empty").touch()
    with pytest.raises(SourceError, match="is empty"):
        open_source(tmp_path / "empty")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SourceError, match=r"symbolic links|no such file"):
        open_source(tmp_path / "loop")


def test_fifo_and_device_are_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(os, "open", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(SourceError, match="is a FIFO"):
        open_source(tmp_path / "fifo")
    with pytest.raises(SourceError, match="is a character device"):
        open_source("/dev/zero")


def test_permission_denied(tmp_path):
    """Permissions do not hold for root, so a child gives its privileges up first."""
    (tmp_path / "closed").write_bytes(MODEL)
    (tmp_path / "closed").chmod(0)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        code = 9
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            try:
                open_source(tmp_path / "closed")
            except SourceError as error:
                code = 0 if "permission denied" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------------------------------------
# folders


def test_a_folder_with_one_model_file(tmp_path):
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "labels.txt").write_text("a\nb")
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights.bin").write_bytes(MODEL)
    source = open_source(tmp_path)
    assert source.path == tmp_path / "weights.bin"
    assert source.kind == "safetensors"


def test_a_folder_with_two_model_files(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(MODEL)
    with pytest.raises(SourceError, match=r"2 model files \(a.safetensors, b.safetensors\)"):
        open_source(tmp_path)


def test_a_folder_with_shards_and_no_config(tmp_path):
    (tmp_path / "m-1.safetensors").write_bytes(MODEL)
    (tmp_path / "m.safetensors.index.json").write_text('{"weight_map": {"w": "m-1.safetensors"}}')
    assert len(open_source(tmp_path).files) == 2


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(SourceError, match="no model in it; looked for config"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="no model in it"):
        open_source(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(SourceError, match="TensorFlow SavedModel"):
        open_source(tmp_path)
    package = tmp_path / "x.mlpackage"
    package.mkdir()
    (package / "Manifest.json").write_text("{}")
    with pytest.raises(SourceError, match="CoreML package"):
        open_source(package)


# ---------------------------------------------------------------------------------------------
# the table


def test_every_format_of_the_table_has_both_functions():
    for row in sniff.FORMATS:
        if not Path(sniff.__file__).with_name(row.module.rpartition(".")[2] + ".py").exists():
            pytest.skip(f"{row.module} is not there yet")
        module = row.load()
        assert callable(module.matches)
        assert callable(module.describe)


def test_a_truncated_model_is_a_broken_file_not_an_unknown_one(tmp_path):
    (tmp_path / "x").write_bytes(MODEL[:40])
    with pytest.raises(FormatError, match="cut short"):
        open_source(tmp_path / "x")


def test_opening_loads_no_heavy_library(tmp_path):
    (tmp_path / "x").write_bytes(MODEL)
    code = (
        "import sys; from edgeopt.files.open import open_source; "
        f"open_source({str(tmp_path / 'x')!r}).weights[0].array(); "
        "print([m for m in ('torch', 'onnx', 'onnx_ir', 'onnxruntime', 'transformers', 'gguf') "
        "if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(sniff.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout == b"[]\n"


LARGE = """
import sys, time
from edgeopt.files.open import open_source
begin = time.process_time()
source = open_source(sys.argv[1])
seconds = time.process_time() - begin
assert source.weights[0].nbytes == 10 << 30, source
row = source.weights[0].rows(1234567, 1234568)
assert row.shape == (1, 1024) and not row.any()
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak.split()[1]) / 1024)
"""


def ten_gigabytes(folder: Path, kind: str) -> Path:
    """A model of one tensor of 10 GiB, all holes: it takes no room on the disk."""
    rows = (10 << 30) // 4096
    path = folder / f"x.{kind}"
    if kind == "safetensors":
        entry = {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, 10 << 30]}
        head = json.dumps({"w": entry}).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head)
    elif kind == "gguf":
        head = b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"w"
        head += struct.pack("<IQQIQ", 2, 1024, rows, 0, 0)
        path.write_bytes(head + bytes(-len(head) % 32))
    else:
        onnx = pytest.importorskip("onnx")
        made = onnx.TensorProto(name="w", data_type=1, dims=[rows, 1024], data_location=1)
        made.external_data.add(key="location", value="x.data")
        graph = onnx.helper.make_graph([], "g", [], [], [made])
        path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
        with (folder / "x.data").open("wb") as stream:
            stream.truncate(10 << 30)
        return path
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + (10 << 30))
    return path


@pytest.mark.parametrize("kind", ["safetensors", "gguf", "onnx"])
def test_ten_gigabytes_are_described_without_being_read(tmp_path, kind):
    path = ten_gigabytes(tmp_path, kind)
    env = {**os.environ, "PYTHONPATH": str(Path(sniff.__file__).parents[2])}
    command = [sys.executable, "-c", LARGE, str(path)]
    done = subprocess.run(command, env=env, capture_output=True, check=True, text=True)
    seconds, megabytes = map(float, done.stdout.split())
    # Reading even a tenth of the file would break both bounds by far.
    assert seconds < 1
    assert megabytes < 100


def test_noise_never_escapes_the_error_tree(tmp_path, rewrite):
    rng = random.Random(23)
    path = tmp_path / "x"
    starts = [b"", b"GGUF", b"PK\x03\x04", b"\x80\x02", b"\x08\x0a", MODEL[:12], b"{", b"<?xml"]
    opened = 0
    for _ in range(1500):
        data = rng.choice(starts) + rng.randbytes(rng.choice((0, 1, 8, 64, 300)))
        rewrite(path, data or b"x")
        try:
            opened += open_source(path) is not None
        except EdgeoptError as error:
            assert "\n" not in str(error)
    assert opened == 0
