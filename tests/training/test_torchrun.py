"""Two processes that train as one: torchrun's own agent, gloo, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from tests.training.loop_nets import (  # noqa: E402
    Hard,
    Hint,
    Soft,
    accuracy,
    data,
    model,
    one_thread,
    weights,
)
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: E402
from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: E402

from edgeopt.errors import InputsError, WorkerError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.training import log  # noqa: E402
from edgeopt.training.batches import ArrayData, StreamData  # noqa: E402
from edgeopt.training.checkpoint import NAME  # noqa: E402
from edgeopt.training.loop import Trained, train  # noqa: E402
from edgeopt.training.settings import TrainSettings  # noqa: E402

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a process that uses a GPU cannot be forked"
)


@pytest.fixture(autouse=True)
def _still() -> Iterator[None]:
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def launched(work: Callable[..., Any], *given: Any) -> None:
    """Run ``work`` in two processes, as torchrun does; forked, so that nothing is imported anew."""
    chosen = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="edgeopt",
        start_method="fork",
        monitor_interval=0.05,
        max_restarts=0,
    )
    elastic_launch(chosen, work)(*given)


def _reset() -> None:
    """A forked process has not been one that trained alone."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()
    GradientState._reset_state()


class Seen(ArrayData):
    """Keeps the places of the rows that were drawn."""

    def parts(self, *given: Any, **more: Any) -> Iterator[Any]:
        for parts in super().parts(*given, **more):
            for part in parts:
                if given[3] is not None and part.share:
                    seen.append([int(row) for row in part.rows])
            yield parts


seen: list[list[int]] = []


def once(folder: Path | None, path: Path | None) -> tuple[TorchModel, Trained]:
    """50 rows in batches of at most 16: parts of 7, 6 and 6, 6."""
    base = data(50)
    student = model(1)
    chosen = TrainSettings(
        epochs=2,
        batch_size=16,
        learning_rate=0.02,
        log_every=1,
        evaluate_every=2,
        checkpoint=folder,
        device="cpu",
    )
    trained = train(
        student,
        [Hard(), Soft(), Hint()],
        Seen(base.inputs, base.targets),
        teacher=model(2, width=12),
        validation=data(21, seed=1),
        metric=accuracy,
        settings=chosen,
        log=path,
    )
    return student, trained


def _as_one(folder: Path) -> None:
    _reset()
    rank = os.environ["RANK"]
    seen.clear()
    student, trained = once(folder / "checkpoint", folder / "log.jsonl")
    shared = torch.cat([tensor.flatten() for tensor in weights(student).values()])
    np.save(folder / f"weights-{rank}.npy", shared.numpy())
    document = [seen, trained.writer, [r.to_json() for r in trained.history]]
    (folder / f"seen-{rank}.json").write_text(json.dumps(document))

    def one_spoilt() -> Iterator[dict[str, Any]]:
        for number in range(4):
            x = np.ones((8, 6), np.float32)
            if number == 2:
                x[6] = np.nan  # among the second process's rows
            yield {"x": x, "y": np.zeros(8, np.int64)}

    try:
        train(
            model(1),
            [Hard()],
            StreamData(one_spoilt, ("x",), "gen"),
            settings=TrainSettings(steps=4, batch_size=8, device="cpu"),
        )
    except InputsError as error:
        (folder / f"error-{rank}.txt").write_text(str(error))


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    seen.clear()
    alone, told = once(None, None)  # first: what it imports, the others need not
    told_seen, ours = list(seen), [weights(alone)]
    launched(_as_one, tmp_path)

    (first, writes, history), (second, writes_too, other) = (
        json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in "01"
    )
    assert (writes, writes_too) == (True, False)
    assert len(first) == len(second) == len(told_seen) == 8
    for mine, yours, whole in zip(first, second, told_seen, strict=True):
        assert not set(mine) & set(yours)
        assert [*mine, *yours] == whole
    # the same curve as one process, and the same weights in both
    for name in ("loss", "metric", "grad_norm", "lr"):
        curve = {r.step: getattr(r, name) for r in told.history if getattr(r, name) is not None}
        found = {r["step"]: r[name] for r in history if r[name] is not None}
        assert found == pytest.approx(curve, rel=2e-4) and len(curve) >= 5, name
        assert [r[name] for r in history] == [r[name] for r in other], name
    zero, one = (np.load(tmp_path / f"weights-{rank}.npy") for rank in "01")
    assert np.array_equal(zero, one)
    flat = torch.cat([tensor.flatten() for tensor in ours[0].values()]).numpy()
    assert zero == pytest.approx(flat, abs=1e-4)
    # one writer
    assert [r.to_json() for r in log.read(tmp_path / "log.jsonl")] == history
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == [NAME]
    # what one of them could not train on, both say
    for rank in "01":
        said = (tmp_path / f"error-{rank}.txt").read_text()
        assert "gen, batch 2, sample 6: input x holds NaN" in said


def _one_dies(folder: Path) -> None:
    _reset()
    rank = os.environ["RANK"]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the agent's, that comes as soon as one is dead
    steps = iter(range(10))

    def dies() -> None:
        if next(steps) == 2 and rank == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        train(
            model(1),
            [Hard()],
            data(),
            settings=TrainSettings(steps=8, batch_size=16, device="cpu"),
            after_step=dies,
        )
    except WorkerError as error:
        (folder / "said.txt").write_text(str(error))
        raise


def test_one_process_dying_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises(ChildFailedError) as caught:
        launched(_one_dies, tmp_path)
    # Whom the agent finds first is chance: the one that was killed, or the one that lost it.
    assert caught.value.get_first_failure()[0] in (0, 1)
    said = (tmp_path / "said.txt").read_text()
    assert "process 0 of 2 lost another one" in said and "\n" not in said


@pytest.mark.slow
def test_torchrun_itself_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Killed by the step, started again by hand: the same weights as never killed."""
    script = tmp_path / "student.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import numpy as np, torch\n"
        "from edgeopt.training.loop import train\n"
        "from edgeopt.training.settings import TrainSettings\n"
        "from tests.training.loop_nets import Hard, data, model, weights\n"
        "folder, out, die = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])\n"
        "student, steps = model(1, dropout=0.2), iter(range(1, 99))\n"
        "def after():\n"
        "    if next(steps) == die and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "settings = TrainSettings(steps=8, batch_size=16, checkpoint=folder, checkpoint_every=2)\n"
        "if train(student, [Hard()], data(), settings=settings, after_step=after).writer:\n"
        "    flat = torch.cat([t.flatten() for t in weights(student).values()])\n"
        "    np.save(out, flat.numpy())\n"
    )

    def torchrun(folder: str, out: str, die: int) -> int:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(script), str(tmp_path / folder), str(tmp_path / out), str(die)),
        ]
        root = Path(__file__).parents[2]
        paths = os.pathsep.join([str(root / "src"), str(root)])
        env = {
            **os.environ,
            "PYTHONPATH": paths,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.run(command, env=env, capture_output=True, check=False).returncode

    assert torchrun("a", "whole.npy", 0) == 0
    assert torchrun("b", "again.npy", 5) != 0
    assert not (tmp_path / "again.npy").exists()
    assert torchrun("b", "again.npy", 0) == 0
    assert np.array_equal(np.load(tmp_path / "whole.npy"), np.load(tmp_path / "again.npy"))
