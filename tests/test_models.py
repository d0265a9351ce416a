"""The models of our own: what the demo and the documentation rely on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models are torch models")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from models import digits  # noqa: E402


def test_digits_are_all_there_and_shuffled_once() -> None:
    images, labels = digits.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert np.bincount(labels).min() > 170
    again, _ = digits.digits()
    assert np.array_equal(images, again)


def test_net_is_large_enough_for_int8_to_pay() -> None:
    assert sum(p.numel() for p in digits.build().parameters()) >= 100_000


def test_training_learns() -> None:
    images, labels = digits.digits()
    net = digits.train(images[:768], labels[:768], epochs=2, batch=32)
    with torch.inference_mode():
        right = net(torch.from_numpy(images[1500:])).argmax(-1).numpy() == labels[1500:]
    assert right.mean() > 0.7  # chance is 0.1


def test_the_seed_holds() -> None:
    images, labels = digits.digits()
    torch.set_num_threads(1)
    nets = [digits.train(images[:64], labels[:64], epochs=1) for _ in range(2)]
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_score_of_an_onnx_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    # A model that answers with the mean of each of the first ten columns of the flat image.
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Reshape", ["image", "flat"], ["rows"]),
            onnx.helper.make_node("Slice", ["rows", "zero", "ten", "one"], ["logits"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("image", 1, ["n", 1, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", 1, ["n", 10])],
        [
            onnx.numpy_helper.from_array(np.array(v, np.int64), name)
            for name, v in {"flat": [-1, 64], "zero": [0], "ten": [10], "one": [1]}.items()
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "m.onnx")
    image = np.zeros((3, 1, 8, 8), np.float32)
    image[0, 0, 0, 3] = image[1, 0, 0, 5] = image[2, 0, 1, 1] = 1
    np.savez(tmp_path / "d.npz", image=image, label=np.array([3, 5, 1]))
    assert digits.score(tmp_path / "m.onnx", tmp_path / "d.npz") == pytest.approx(2 / 3)
