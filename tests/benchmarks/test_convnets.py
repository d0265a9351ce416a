"""The comparison on convolutional nets, from training to the page, in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the nets are torch modules")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from benchmarks import convnets  # noqa: E402


@pytest.mark.parametrize("name", convnets.SUBJECTS)
def test_nets_are_large_enough_for_int8_to_pay(name: str) -> None:
    subject = convnets.SUBJECTS[name]
    net = convnets._load(subject.build)()
    assert sum(p.numel() for p in net.parameters()) >= 100_000
    with torch.inference_mode():
        assert net(torch.zeros(2, *subject.shape)).shape == (2, 10)


def test_the_seed_holds() -> None:
    from benchmarks import _nets

    first, second = _nets.plain().state_dict(), _nets.plain().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_parts_are_disjoint_and_the_unseen_part_is_large() -> None:
    from models import digits

    images, _ = digits.digits()
    assert len(images) - convnets.TRAIN - convnets.CALIBRATION >= 400


@pytest.mark.slow
def test_all_of_it(tmp_path: Path) -> None:
    asked = ["--net", "conv1d", "--epochs", "2", "--rounds", "3", "--runs", "2", "--images", "40"]
    assert convnets.main([*asked, "--out", str(tmp_path), "--keep", str(tmp_path / "files")]) == 0
    document = json.loads((tmp_path / "convnets.json").read_text())
    (trial,) = document["trials"]
    names = [entry["name"] for entry in trial["entries"]]
    assert names == ["FP32", *convnets.PEERS, *convnets.OURS]
    for entry in trial["entries"]:
        assert len(entry["cpu_ms"]) == len(entry["wall_ms"]) == 3
        made = tmp_path / "files" / "conv1d" / entry["path"]
        assert entry["nbytes"] == made.stat().st_size
        assert 0 <= entry["right"] <= 40
    sizes = {entry["name"]: entry["nbytes"] for entry in trial["entries"]}
    assert sizes["edgeopt INT4"] < sizes["edgeopt INT8"] < sizes["FP32"]
    calibration = np.load(tmp_path / "files" / "conv1d" / "calibration.npz")["image"]
    assert calibration.shape == (convnets.CALIBRATION, 1, 64)
    assert len(document["goals"]) == 4
    page = (tmp_path / "convnets.md").read_text()
    assert all(name in page for name in names)
    assert str(tmp_path) not in page.replace("calibration.npz", "")
