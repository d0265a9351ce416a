from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import pytest
import static_models as nets

from edgeopt.errors import InputsError, SourceError, UsageError
from edgeopt.graphs.static import calibrate
from edgeopt.graphs.static import calibrate as function
from edgeopt.graphs.static.calibrate import METHODS


def relu_net():
    net = nets.Net(("x", ["n", 3, 64, 64]))
    y = net.op("Relu", net.conv("x", 3, 16), out="a")
    return net.model(net.conv(y, 16, 4, out="y"))


def test_minmax_is_numpys(tmp_path):
    model, feeds = relu_net(), nets.images(5, 3, 64)
    onnx.save(model, tmp_path / "m.onnx")
    ranges = calibrate(tmp_path / "m.onnx", ["x", "a", "y"], feeds, "minmax")
    tapped = relu_net()
    tapped.graph.output.extend([onnx.helper.make_empty_tensor_value_info("a")])
    runs = [dict(zip("ya", nets.run(tapped, feed), strict=True)) | feed for feed in feeds]
    for name, (low, high) in ranges.items():
        assert low == pytest.approx(min(float(r[name].min()) for r in runs))
        assert high == pytest.approx(max(float(r[name].max()) for r in runs))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lies_within_the_extremes(method):
    model, feeds = relu_net(), nets.images(3, 3, 64)
    exact = calibrate(model, ["a", "y"], feeds, "minmax")
    found = calibrate(model, ["a", "y"], feeds, method)
    for name, (low, high) in found.items():
        assert exact[name][0] <= low <= high <= exact[name][1]
        assert high > 0.3 * exact[name][1]
    assert [o.name for o in model.graph.output] == ["y"]


@pytest.mark.parametrize("method", METHODS)
def test_two_hundred_samples_cost_what_two_do(method):
    model = relu_net()
    rng = np.random.default_rng(0)
    names = ["a", "y"]
    activations = 4 * 64 * 64 * (16 + 4)

    def peak(n):
        feeds = ({"x": rng.standard_normal((1, 3, 64, 64), np.float32)} for _ in range(n))
        tracemalloc.start()
        calibrate(model, names, feeds, method)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(1)
    few, many = peak(2), peak(200 if method == "minmax" else 60)
    assert many < few + activations


def test_groups_bound_what_is_fetched_at_once(monkeypatch):
    module = __import__("sys").modules[function.__module__]
    model, feeds = relu_net(), nets.images(3, 3, 64)
    whole = calibrate(model, ["x", "a", "y"], feeds, "minmax")
    monkeypatch.setattr(module, "GROUP_BYTES", 1000)
    assert calibrate(model, ["x", "a", "y"], feeds, "minmax") == whole
    assert module._groups(["a", "b", "c"], {"a": 600, "b": 300, "c": 600}) == [["a", "b"], ["c"]]


def test_large_activations_keep_their_extremes():
    x = np.random.default_rng(0).standard_normal((1, 3, 400, 400)).astype(np.float32)
    x[0, 1, 17, 31] = 99
    net = nets.Net(("x", ["n", 3, "h", "w"]))
    model = net.model(net.conv("x", 3, 4, out="y"))
    assert calibrate(model, ["x"], [{"x": x}], "minmax")["x"] == (x.min(), x.max())
    cut = calibrate(model, ["x"], [{"x": x}], "percentile")["x"]
    np.testing.assert_allclose(cut, np.percentile(x, [0.005, 99.995]), rtol=0.1)


def test_nan_and_infinities_are_left_out():
    net = nets.Net(("x", ["n"]))
    model = net.model(net.op("Log", "x", out="y"))
    feeds = [{"x": np.array([-1, 0, 1, np.e], np.float32)}, {"x": np.array([-1], np.float32)}]
    assert calibrate(model, ["y"], feeds, "minmax")["y"] == pytest.approx((0, 1))
    assert calibrate(model, ["y"], feeds[1:], "mse") == {"y": (0.0, 0.0)}


def test_refusals():
    model = relu_net()
    with pytest.raises(UsageError, match="calibrator 'best'; use one of minmax"):
        calibrate(model, ["a"], nets.images(1, 3, 64), "best")
    with pytest.raises(InputsError, match="no samples"):
        calibrate(model, ["a"], [])


def test_models_over_protobufs_limit_are_refused(monkeypatch):
    module = __import__("sys").modules[function.__module__]
    monkeypatch.setattr(module, "_PROTO_LIMIT", 10)
    with pytest.raises(SourceError, match="up to 2 GB"):
        calibrate(relu_net(), ["a"], nets.images(1, 3, 64))


def test_progress_is_told():
    told = []
    calibrate(relu_net(), ["a"], nets.images(4, 3, 64), progress=lambda *a: told.append(a))
    assert told == [("calibrate", share) for share in (0.25, 0.5, 0.75, 1.0)]
