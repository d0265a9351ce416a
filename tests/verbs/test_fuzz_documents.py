"""What users hand over beside a model, twisted: plans, saved results and data are used, or refused
in one line with one of our own errors."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.numpy import save_file
from tests.files.test_fuzz_readers import damaged, mostly, twisted
from tests.results.test_saved import document

import edgeopt
from edgeopt.data import samples
from edgeopt.errors import EdgeoptError
from edgeopt.numerics.derive import derive
from edgeopt.report.results_text import render_results
from edgeopt.results.saved import merge, open_saved

pytestmark = pytest.mark.no_cover

#: In the slow run; the fast one tries a sample of them.
MANY, FEW = 2_000, 30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    drawn = np.random.default_rng(0)
    save_file(
        {"a": drawn.standard_normal((64, 32)).astype(np.float32), "b": np.zeros(3, np.float32)},
        folder / "model.safetensors",
    )
    edgeopt.quantize(folder / "model.safetensors", bits=4, out=folder / "made.safetensors")
    return folder


def used(place: Path, what: Callable[[], Any]) -> None:
    """It works, or says why not; and writes nothing that it did not say."""
    try:
        what()
    except EdgeoptError as error:
        text = str(error)
        assert "\n" not in text, text
        assert len(text) < 2000
        assert not (place / "out.safetensors").exists()
    (place / "out.safetensors").unlink(missing_ok=True)
    for beside in place.glob("out.*"):
        beside.unlink()


@st.composite
def document_of(draw: st.DrawFn, text: str) -> bytes:
    raw = json.dumps(twisted(draw, json.loads(text))).encode()
    return draw(damaged(st.just(raw))) if not mostly(draw, 8) else raw


@st.composite
def array_file(draw: st.DrawFn) -> bytes:
    dtype = draw(st.sampled_from(["<f4", "<f8", "<i8", "|i1", "|b1", "<U3", "|O", ">f4", "<c8"]))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    said = draw(st.sampled_from([shape, shape, shape, [2**62, 4], [-1], [2**40]]))
    nbytes = max(int(np.prod(shape)), 0) * (np.dtype(dtype).itemsize or 1)
    order = draw(st.sampled_from(["False", "False", "True", "3", "[]"]))
    said_dtype = repr(dtype) if mostly(draw, 12) else draw(st.sampled_from(["7", "'q'", "[]"]))
    text = f"{{'descr': {said_dtype}, 'fortran_order': {order}, 'shape': {tuple(said)!r}, }}\n"
    header = text.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(nbytes)


@st.composite
def archive_file(draw: st.DrawFn) -> bytes:
    out = io.BytesIO()
    how = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    with zipfile.ZipFile(out, "w", how) as archive:
        for name in draw(st.lists(st.sampled_from("abc"), max_size=3, unique=mostly(draw, 12))):
            end = ".npy" if mostly(draw, 8) else draw(st.sampled_from(["", "/", ".txt"]))
            archive.writestr(name + end, draw(damaged(array_file())))
    return out.getvalue()


def plan(place: Path, raw: bytes) -> None:
    (place / "plan.json").write_bytes(raw)
    source, out = place / "model.safetensors", place / "out.safetensors"
    used(place, lambda: edgeopt.quantize(source, out=out, plan=place / "plan.json"))


def results(place: Path, raw: bytes) -> None:
    path = place / "results.json"
    path.write_bytes(raw)

    def shown() -> None:
        whole = merge([open_saved(path)])
        render_results(whole, derive(whole), Console(file=io.StringIO()))

    used(place, shown)


def data(place: Path, raw: bytes, name: str) -> None:
    path = place / name
    path.write_bytes(raw)
    used(place, lambda: [*samples.load(str(path), 4)])


def small_results() -> str:
    """A document of two rounds of four samples."""
    whole = document("one", "two").to_json()
    for measured in whole["measurements"]:
        measured["values"] = [values[:4] for values in measured["values"][:2]]
        measured["blocks"] = [[2, 2], [2, 2]]
    return json.dumps(whole)


SAVED = small_results()


def kinds(place: Path) -> dict[str, tuple[st.SearchStrategy[bytes], Callable[[bytes], None]]]:
    made = (place / "made.safetensors.plan.json").read_text()
    return {
        "plan": (document_of(made), lambda raw: plan(place, raw)),
        "results": (document_of(SAVED), lambda raw: results(place, raw)),
        "npy": (damaged(array_file()), lambda raw: data(place, raw, "x.npy")),
        "npz": (damaged(archive_file()), lambda raw: data(place, raw, "x.npz")),
    }


def check(place: Path, name: str, number: int) -> None:
    sound, asked = kinds(place)[name]

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(sound)
    def tried(raw: bytes) -> None:
        asked(raw)

    tried()


KINDS = ["plan", "results", "npy", "npz"]


@pytest.mark.parametrize("name", KINDS)
def test_a_few(place: Path, name: str) -> None:
    check(place, name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many(place: Path, name: str) -> None:
    check(place, name, MANY)
