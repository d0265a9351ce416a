"""Convolutional nets side by side: ``edgeopt quantize --data`` against ONNX Runtime's quantizers.

    python benchmarks/convnets.py [--net NAME ...]

Six nets of more than 100,000 parameters are trained on scikit-learn's digits, each in seconds, on
one thread from a fixed seed. 797 images train, 200 calibrate, 800 that neither has seen are scored.
All files of a net are open in one process, one thread, batch 1, and are timed in short blocks
whose order is drawn anew each round; ratios are taken within a round and their median is reported
with a bootstrap interval. Every raw sample is in the JSON.

The peers start from the FP32 file and get all 200 calibration images; edgeopt gets the same 200 and
holds a quarter of them back for its own proof.

Results go to ``benchmarks/results/convnets.json`` and ``convnets.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

from benchmarks._common import (
    REFERENCE,
    RESULTS,
    Entry,
    Goal,
    goals_table,
    machine,
    machine_list,
    make_ours,
    makers_table,
    open_session,
    race,
    ratio,
    sqnr_db,
    table,
    with_interval,
    write_results,
)

TRAIN, CALIBRATION = 797, 200  # the remaining 800 images are for testing
PACKAGES = ("onnxruntime", "onnx", "torch", "numpy", "scikit-learn")
LOGITS = "logits"
INPUT = "image"


@dataclass(frozen=True)
class Subject:
    """A net to train: what builds it, the shape of one image, and what it stands for."""

    build: str
    shape: tuple[int, ...]
    about: str


SUBJECTS: Mapping[str, Subject] = {
    "digits": Subject("models.digits:build", (1, 8, 8), "the demo's residual net, ReLU"),
    "plain": Subject("benchmarks._nets:plain", (1, 8, 8), "3x3 convolutions, ReLU"),
    "pooled": Subject("benchmarks._nets:pooled", (1, 8, 8), "the same, max pooling twice"),
    "conv1d": Subject("benchmarks._nets:conv1d", (1, 64), "1-D convolutions of width 5, ReLU"),
    "silu": Subject("benchmarks._nets:silu", (1, 8, 8), "residual blocks with SiLU"),
    "mobile": Subject(
        "benchmarks._nets:mobile", (1, 8, 8), "depthwise, SiLU and squeeze-and-excite"
    ),
}


@dataclass
class Classifier(Entry):
    """One file of the comparison, and how many of the unseen images it gets right."""

    right: int = 0
    changed: int = 0  # answers that differ from the FP32 file's


@dataclass
class Trial:
    """One net, and all the files made of it; FP32 is the first."""

    name: str
    about: str
    parameters: int
    images: int
    entries: list[Classifier] = field(default_factory=list)
    feed_of_round: list[int] = field(default_factory=list)

    def drop(self, entry: Classifier) -> float:
        """Points of accuracy lost against FP32."""
        return 100 * (self.entries[0].right - entry.right) / self.images

    def speed(self, name: str, over: str = REFERENCE) -> tuple[float, float, float]:
        by = {entry.name: entry for entry in self.entries}
        return ratio(by[over].cpu_ms, by[name].cpu_ms)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "entries": [entry.to_json() for entry in self.entries]}


# ---------------------------------------------------------------------------------------------
# the files


def _load(name: str) -> Any:
    package, _, part = name.partition(":")
    return getattr(__import__(package, fromlist=[part]), part)


def train(
    subject: Subject, folder: Path, epochs: int
) -> tuple[int, NDArray[np.float32], NDArray[np.int64]]:
    """Write ``model.pt`` and ``calibration.npz``; (parameters, test images, test labels)."""
    import torch
    from models import digits

    torch.set_num_threads(1)  # the same sums on every machine
    images, labels = digits.digits()
    images = images.reshape(-1, *subject.shape)
    net = digits.train(images[:TRAIN], labels[:TRAIN], epochs=epochs, net=_load(subject.build)())
    torch.save(net.state_dict(), folder / "model.pt")
    np.savez(folder / "calibration.npz", **{INPUT: images[TRAIN : TRAIN + CALIBRATION]})
    test = slice(TRAIN + CALIBRATION, None)
    return sum(p.numel() for p in net.parameters()), images[test], labels[test]


def peer_static(source: Path, out: Path, calibration: Path, *, calibrator: str) -> None:
    """ONNX Runtime's quantize_static as its guide says, for x86-64 with VNNI."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(np.load(calibration)[INPUT])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            row = next(self.rows, None)
            return None if row is None else {INPUT: row[None]}

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)
    with contextlib.redirect_stdout(sys.stderr):  # it tells of its calibration
        quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[calibrator],
        )


def peer_dynamic(source: Path, out: Path, calibration: Path, *, weight_type: str) -> None:
    """ONNX Runtime's quantize_dynamic, which needs no data; uint8 weights, as convolutions need."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, out, weight_type=QuantType[weight_type])


_STATIC = (
    "quant_pre_process, quantize_static: QDQ, per_channel=True, activations QUInt8, weights QInt8, "
)
#: name -> (what to call, its flags, how to show them)
PEERS: Mapping[str, tuple[Callable[..., None], Mapping[str, str], str]] = {
    "ORT static MinMax": (
        peer_static,
        {"calibrator": "MinMax"},
        f"{_STATIC}calibrate_method=MinMax",
    ),
    "ORT static Percentile": (
        peer_static,
        {"calibrator": "Percentile"},
        f"{_STATIC}calibrate_method=Percentile (99.999)",
    ),
    "ORT dynamic": (peer_dynamic, {"weight_type": "QUInt8"}, "quantize_dynamic: QUInt8 weights"),
}
STATIC_PEERS = ("ORT static MinMax", "ORT static Percentile")

#: name -> options of ``edgeopt.quantize``; the defaults, as a user would have them.
OURS: Mapping[str, Mapping[str, Any]] = {
    "edgeopt INT8": {"bits": 8},
    "edgeopt INT4": {"bits": 4},
}


def make_files(folder: Path, subject: Subject) -> list[Classifier]:
    """FP32 and ours made from the state dict, the peers made from FP32."""
    model, calibration, fp32 = (
        folder / name for name in ("model.pt", "calibration.npz", "fp32.onnx")
    )
    common = {"model": subject.build, "data": str(calibration.resolve())}
    made, peak, notes = make_ours("export", model, fp32, common)
    entries = [Classifier(REFERENCE, "edgeopt.export", fp32, made_in_s=made, notes=notes)]
    entries[0].maker_peak_mb = peak
    for name, (make, flags, text) in PEERS.items():
        path = folder / f"{name.replace(' ', '-').lower()}.onnx"
        begin = time.perf_counter()
        make(fp32, path, calibration, **flags)
        entries.append(Classifier(name, text, path, made_in_s=time.perf_counter() - begin))
    for name, options in OURS.items():
        path = folder / f"{name.replace(' ', '-').lower()}.onnx"
        made, peak, notes = make_ours("quantize", model, path, {**common, **options, "force": True})
        text = "edgeopt.quantize: data=calibration.npz, " + ", ".join(
            f"{key}={value}" for key, value in options.items()
        )
        entry = Classifier(name, text, path, made_in_s=made, maker_peak_mb=peak, notes=notes)
        entries.append(entry)
    for entry in entries:
        entry.nbytes = entry.path.stat().st_size
    return entries


# ---------------------------------------------------------------------------------------------
# how they answer


def answers(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [N, 10], one image at a time: dynamic scales would see the rest of a batch."""
    session = open_session(path)
    return np.concatenate([session.run(None, {INPUT: row[None]})[0] for row in images])


def judge(
    entries: Sequence[Classifier], images: NDArray[np.float32], labels: NDArray[np.int64]
) -> None:
    """Fill in quality, against the first entry."""
    reference = answers(entries[0].path, images)
    for entry in entries:
        got = answers(entry.path, images)
        entry.right = int((got.argmax(-1) == labels).sum())
        entry.changed = int((got.argmax(-1) != reference.argmax(-1)).sum())
        entry.sqnr_db = {LOGITS: sqnr_db([reference], [got])}


def run_trial(
    name: str, folder: Path, *, epochs: int, images: int | None, rounds: int, runs: int, seed: int
) -> Trial:
    """Train one net, make its files, time and score them; ``images`` of the test part only."""
    subject = SUBJECTS[name]
    parameters, unseen, labels = train(subject, folder, epochs)
    unseen, labels = unseen[:images], labels[:images]
    entries = make_files(folder, subject)
    trial = Trial(name, subject.about, parameters, len(labels), entries)
    feeds = [{INPUT: row[None]} for row in unseen[:5]]
    trial.feed_of_round = race(entries, feeds, None, rounds=rounds, runs=runs, seed=seed)
    judge(entries, unseen, labels)
    return trial


# ---------------------------------------------------------------------------------------------
# the result


def goals(trials: Sequence[Trial]) -> list[Goal]:
    """What the project set out to reach with data, at both widths, for every net."""
    return [
        goal
        for trial in trials
        for entry in trial.entries
        if entry.name in OURS
        for goal in (
            Goal(
                f"{trial.name}, {entry.name}: speed over FP32",
                trial.speed(entry.name)[0],
                1.9,
                False,
            ),
            Goal(
                f"{trial.name}, {entry.name}: accuracy drop, points", trial.drop(entry), 0.3, True
            ),
        )
    ]


COLUMNS = (
    "file", "kB", "x FP32 (CPU time)", "x FP32 (wall)", "p50 us", "right, %", "drop, points",
    "answers changed", "SQNR logits, dB",
)  # fmt: skip


def _section(trial: Trial) -> list[str]:
    reference = trial.entries[0]
    rows = []
    for entry in trial.entries:
        wall = ratio(reference.wall_ms, entry.wall_ms)
        rows.append(
            (
                entry.name,
                f"{entry.nbytes / 1e3:.1f}",
                with_interval(trial.speed(entry.name)),
                with_interval(wall),
                f"{statistics.median(entry.wall_ms) * 1e3:.0f}",
                f"{100 * entry.right / trial.images:.2f}",
                f"{trial.drop(entry):+.2f}",
                f"{entry.changed} of {trial.images}",
                f"{entry.sqnr_db[LOGITS]:.1f}",
            )
        )
    best = max(STATIC_PEERS, key=lambda name: trial.speed(name)[0])
    against = ", ".join(f"{name} {with_interval(trial.speed(name, best))} times" for name in OURS)
    title = f"## {trial.name}: {trial.about}, {trial.parameters:,} parameters"
    return [
        *(title, "", *table(COLUMNS, rows)),
        *(f"Against the faster static peer ({best}): {against} its speed.", ""),
    ]


def markdown(
    trials: Sequence[Trial],
    aims: Sequence[Goal],
    env: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> list[str]:
    return [
        "# Convolutional nets: edgeopt against ONNX Runtime's quantizers",
        "",
        "scikit-learn's digits, one thread, batch 1, all files of a net interleaved in one run"
        f" ({settings['rounds']} rounds of {settings['runs']} runs each). {TRAIN} images trained,"
        f" {CALIBRATION} calibrated, {trials[0].images} that neither saw were scored, one at a"
        f" time: one image is {100 / trials[0].images:.3f} points. Made by"
        " `benchmarks/convnets.py`; raw samples in `convnets.json`. Speeds are medians of ratios"
        " round by round with 95% intervals: by the CPU time of the working thread, and by the"
        " wall clock. There is no 4-bit peer: ONNX Runtime's 4-bit tool takes no convolutions.",
        "",
        *goals_table(aims),
        *(line for trial in trials for line in _section(trial)),
        *makers_table((f"{t.name}: {entry.name}", entry) for t in trials for entry in t.entries),
        *machine_list(env),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", choices=SUBJECTS, action="append", help="one net; default: all")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--runs", type=int, default=20, help="runs in a block")
    parser.add_argument("--images", type=int, help="score the first N unseen images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="leave the files in this folder")
    given = parser.parse_args(arguments)
    logging.getLogger().setLevel(logging.ERROR)
    env = machine(PACKAGES)
    trials = []
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as scratch:
        for name in given.net or SUBJECTS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            folder = (given.keep or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            settings = {
                key: getattr(given, key) for key in ("epochs", "images", "rounds", "runs", "seed")
            }
            trials.append(run_trial(name, folder, **settings))
    env["load_1min_after"] = machine(())["load_1min"]
    aims = goals(trials)
    document = {
        "benchmark": "convnets",
        "version": 1,
        "settings": settings,
        "environment": env,
        "trials": [trial.to_json() for trial in trials],
        "goals": [goal.to_json() for goal in aims],
    }
    write_results(given.out, "convnets", document, markdown(trials, aims, env, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
