"""A wanted size, read and searched for."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from tests.pruning.prune_nets import image  # noqa: E402
from torch import nn  # noqa: E402

from edgeopt.errors import SourceError, UsageError  # noqa: E402
from edgeopt.modules.counting import count  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.result import Cut, Pruning  # noqa: E402
from edgeopt.pruning.size_search import (  # noqa: E402
    Found,
    Reading,
    SizeTarget,
    parse_target,
    search_target,
)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("params=0.5", SizeTarget("params", 0.5, True)),
        ("params=1e6", SizeTarget("params", 1e6, False)),
        ("params=2k", SizeTarget("params", 2000, False)),
        ("FLOPs = 10M", SizeTarget("flops", 1e7, False)),
        ("flops=1.5g", SizeTarget("flops", 1.5e9, False)),
        ("bytes=2MB", SizeTarget("bytes", 2e6, False)),
        ("bytes=1.5 MiB", SizeTarget("bytes", 1.5 * 2**20, False)),
        ("bytes=5000", SizeTarget("bytes", 5000, False)),
        ("latency=0.6", SizeTarget("latency", 0.6, True)),
        ("latency=5ms", SizeTarget("latency", 0.005, False)),
        ("latency=0.002s", SizeTarget("latency", 0.002, False)),
    ],
)
def test_targets_are_read(text: str, target: SizeTarget) -> None:
    found = parse_target(text)
    assert found.kind == target.kind and found.relative == target.relative
    assert found.value == pytest.approx(target.value)
    assert parse_target(str(target).replace(" ", "").replace(",", "")).kind == target.kind


@pytest.mark.parametrize(
    "text",
    [
        *("", "params", "params=", "size=0.5", "params=0", "params=1", "params=0.0", "flops=-1"),
        *("bytes=2MW", "latency=5", "latency=1", "params=nan", "flops=inf", "params=5ms", "=0.5"),
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="target"):
        parse_target(text)


def model(width: int = 100) -> TorchModel:
    torch.manual_seed(0)
    return image(nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 10)), 10)


def narrow(changed: TorchModel, ratio: float) -> Pruning:
    """Keep the first hidden channels, one at least."""
    first, _, last = changed.module
    keep = max(1, round(first.out_features * (1 - ratio)))
    if keep == first.out_features:
        raise SourceError("nothing pruned")
    cut = Cut("0", "channels", first.out_features, keep)
    bias = first.bias[:keep]
    first.weight, first.bias = nn.Parameter(first.weight[:keep]), nn.Parameter(bias)
    last.weight = nn.Parameter(last.weight[:, :keep])
    first.out_features = last.in_features = keep
    return Pruning("channels", (cut,))


def reach(text: str, of: TorchModel) -> Found:
    return search_target(of, parse_target(text), narrow)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25, 0.05])
@pytest.mark.parametrize("kind", ["params", "flops", "bytes"])
def test_within_two_percent(kind: str, share: float) -> None:
    whole = model(1000)
    before = copy.deepcopy(whole.module.state_dict())
    found = reach(f"{kind}={share}", whole)
    assert found.reading.share == pytest.approx(share, rel=0.02) and not found.notes
    name = {"params": "parameters", "flops": "flops", "bytes": "nbytes"}[kind]
    narrow(other := model(1000), found.ratio)
    assert getattr(count(other), name) == found.reading.value
    for key, value in whole.module.state_dict().items():
        assert torch.equal(value, before[key])


def test_absolute_amounts() -> None:
    whole = model(1000)
    size = sum(p.numel() for p in whole.module.parameters())
    assert reach("params=5k", whole).reading.value == pytest.approx(5000, rel=0.02)
    assert reach("bytes=40kB", whole).reading.value == pytest.approx(40000, rel=0.02)
    with pytest.raises(UsageError, match=f"the model has {size:,} already; give less"):
        reach("params=1M", whole)


def test_coarse_steps_leave_the_nearest_below_and_say_so() -> None:
    found = reach("params=0.5", model(5))
    (note,) = found.notes
    # 115 parameters whole; 73 or 52 of them at three or two channels.
    assert found.reading.value == 52 and "5" in note and "below it" in note
    assert found.reading.share < 0.5


def test_what_cannot_be_reached_says_what_can() -> None:
    least = 31 / 2110
    with pytest.raises(UsageError, match=f"cannot be reached: .* leaves {least:.3g} of the params"):
        reach("params=0.001", model())


def test_latency_is_what_the_meter_says() -> None:
    asked: list[int] = []

    def latency(changed: TorchModel) -> Reading:
        width = changed.module[0].out_features
        asked.append(width)
        share = math.ceil(width / 8) / 125  # in steps, as kernels are
        return Reading(share * 0.01, share)

    found = search_target(model(1000), parse_target("latency=0.6"), narrow, latency=latency)
    assert found.reading.share == pytest.approx(0.6, rel=0.02)
    found = search_target(model(1000), parse_target("latency=4ms"), narrow, latency=latency)
    assert found.reading.value == pytest.approx(0.004, rel=0.02)
    assert len(asked) < 18
    with pytest.raises(UsageError, match="latency cannot be measured here"):
        search_target(model(), parse_target("latency=0.6"), narrow)


def test_progress_is_told_and_other_failures_come_through() -> None:
    told: list[str] = []
    target = parse_target("params=0.5")
    search_target(model(), target, narrow, progress=lambda text, _: told.append(text))
    assert told and all("params=0.5" in text for text in told)

    def wrong(changed: TorchModel, ratio: float) -> Pruning:
        raise UsageError("no such layer")

    with pytest.raises(UsageError, match="no such layer"):
        search_target(model(), target, wrong)


def test_a_model_without_arithmetic() -> None:
    empty = image(nn.Sequential(nn.ReLU()), 4)
    with pytest.raises(SourceError, match="no flops that can be counted"):
        search_target(empty, parse_target("flops=0.5"), narrow)
    assert np.isfinite(empty.example["x"]).all()
