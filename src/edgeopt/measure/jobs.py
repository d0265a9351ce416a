"""What a worker can be asked to do: compare and time a pair, measure one file, hold a contest.

Every job takes its document, the samples and a voice, and returns plain JSON. Sessions of all
files in a job live side by side, and their turns alternate in short blocks: whatever else the
machine does then falls on all of them alike.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from edgeopt.core import InputSpec
from edgeopt.errors import EdgeoptError, SourceError, UsageError
from edgeopt.measure.clock import quiet, timed
from edgeopt.measure.cold import warm
from edgeopt.measure.fidelity import FidelityMeter
from edgeopt.measure.footprint import Footprint
from edgeopt.measure.kinds import worst_kind
from edgeopt.measure.matching import RowCount, RowMatcher, unequal
from edgeopt.measure.process import Feeds
from edgeopt.measure.reporter import Reporter
from edgeopt.numerics.statistics import median, ratio_interval, round_ratios
from edgeopt.runtimes.engine import Case, Feed, GraphEngine, make_engine

__all__ = ["JOBS", "ROW_MARGIN_DB", "interleave", "match_outputs"]

#: Seconds that a block of inferences takes: long against the clock and a context switch, short
#: against what changes on the machine (frequency, neighbours).
BLOCK = 0.012

#: Rounds that a comparison has at least, time permitting, and in any case.
ROUNDS = 5
ROUNDS_IN_ANY_CASE = 3

#: How far beyond its time a comparison of slow models may go to reach its rounds.
OVERTIME = 8.0

#: Half the width of the ratio's interval at which more rounds would tell nothing new, and the
#: rounds before (and between) looking.
TIGHT = 0.01
LOOK_EVERY = 16

#: Runs so many inferences on the sample of that round, and gives the median seconds of one.
Timer: TypeAlias = Callable[[int, int], float]


# ---------------------------------------------------------------------------------------------
# jobs


def pair(job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter) -> dict[str, Any]:
    """Fidelity of the artifact over every sample, then both files timed in A B B A blocks."""
    source = _open(voice, "source", job["source"], job["threads"])
    artifact = _open(voice, "artifact", job["artifact"], job["threads"])
    meters: dict[str, FidelityMeter] = {}
    names: Mapping[str, str] = {}
    shapes: Sequence[str] = ()
    rows: RowCount | None = None
    if job["compare"]:
        names = match_outputs(source.outputs, artifact.outputs, job["output_map"])
        loose = frozenset(job.get("loose", ()))
        chances = frozenset(job.get("probabilities", ()))
        meters = {
            name: FidelityMeter(name, classes=name not in loose, probability=name in chances)
            for name in names
        }
        matcher = RowMatcher(loose)
        shapes = _compare(
            *(source, artifact, meters, names, feeds, folder, voice),
            matcher=matcher,
            kinds=job.get("kinds", ()),
        )
        rows = matcher.result()
    mates, repeats = None, None
    if job["compare"]:
        repeats = _repeats(source, names, feeds, folder, voice)
    if job["compare"] and job.get("batch") and not shapes:
        mates = _beside_others(job["batch"], source, artifact, meters, names, feeds, folder, voice)
    first = feeds.load(folder, 0)
    seconds = float(job["seconds"])
    blocks = interleave(
        [
            _timer(voice, "source", source, [first]),
            _timer(voice, "artifact", artifact, [first]),
        ],
        orders=((0, 1, 1, 0), (1, 0, 0, 1)),
        seconds=seconds,
        on_round=lambda part: voice.progress("timing", part),
    )
    return {
        "fidelity": [dataclasses.asdict(meter.result()) for meter in meters.values()],
        "source_not_finite": [n for n, meter in meters.items() if meter.source_not_finite],
        "mates": mates,
        "rows": rows and dataclasses.asdict(rows),
        "shapes": list(shapes),
        "repeats": repeats,
        "renamed": {a: b for a, b in names.items() if a != b},
        "latency": {"source": blocks.values[0], "artifact": blocks.values[1]},
        "runs": {"source": blocks.runs[0], "artifact": blocks.runs[1]},
        "inputs": [_spec_json(spec) for spec in artifact.inputs],
        "outputs": [_spec_json(spec) for spec in artifact.outputs],
        "placement": {
            "source": source.info()["providers"],
            "artifact": artifact.info()["providers"],
        },
    }


def solo(job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter) -> dict[str, Any]:
    """One file alone: seconds to create its session, and memory after that and a few runs."""
    first = feeds.load(folder, 0)
    files = tuple(map(Path, job.get("files", [job["path"]])))
    engine = _engine(job["path"], job["threads"])
    engine.imports()
    # Read once, so that a load measures the runtime and not the disk.
    warm(file for file in files if file.is_file())
    gc.collect()
    footprint = Footprint.begin(files)
    voice.busy(job["subject"], f"loading {job['path']}")
    (load,) = timed(engine.load)
    voice.busy(job["subject"], f"running {job['path']}")
    engine.prepare(first)
    for _ in range(job["runs"]):
        engine.run()
    return {"load": load, "memory": dataclasses.asdict(footprint.read())}


def contest(job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter) -> dict[str, Any]:
    """All candidates side by side, their blocks in rotating order; those that fail are named."""
    samples = [feeds.load(folder, i) for i in range(feeds.count)]
    timers: dict[str, Timer] = {}
    failures: dict[str, str] = {}
    for name, path in job["candidates"].items():
        try:
            engine = _open(voice, name, path, job["threads"])
            timer = _timer(voice, name, engine, samples)
            timer(1, 0)
        except EdgeoptError as error:
            failures[name] = str(error)
        else:
            timers[name] = timer
    if not timers:
        return {"timings": {}, "failures": failures}
    order = tuple(range(len(timers)))
    blocks = interleave(
        list(timers.values()),
        orders=tuple(order[i:] + order[:i] for i in order),
        seconds=float(job["seconds"]),
        on_round=lambda part: voice.progress("timing candidates", part),
    )
    return {"timings": dict(zip(timers, blocks.values, strict=True)), "failures": failures}


def score(job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Reporter) -> dict[str, Any]:
    """The SQNR of each candidate's worst float output, on the kind of samples that is worst for
    it, against the source; None: does not run."""
    source = _open(voice, "source", job["source"], job["threads"])
    scores: dict[str, float | None] = {}
    for name, path in job["candidates"].items():
        try:
            candidate = _open(voice, name, path, job["threads"])
            names = match_outputs(source.outputs, candidate.outputs, None)
            chances = frozenset(job.get("probabilities", ()))
            meters = {
                output: FidelityMeter(output, probability=output in chances) for output in names
            }
            if shapes := _compare(
                *(source, candidate, meters, names, feeds, folder, voice, name),
                kinds=job.get("kinds", ()),
            ):
                raise SourceError(shapes[0])
        except EdgeoptError:
            scores[name] = None
            continue
        found = [worst_kind(meter.result(), job.get("near")).db for meter in meters.values()]
        scores[name] = min((db for db in found if not math.isnan(db)), default=math.inf)
        if job.get("batch"):
            mates = _beside_others(
                *(job["batch"], source, candidate, meters, names, feeds, folder, voice)
            )
            if mates is not None and mates["alone_db"] > mates["beside_db"] + ROW_MARGIN_DB:
                scores[name] = min(scores[name], mates["beside_db"] + ROW_MARGIN_DB)
    return {"scores": scores}


JOBS: Mapping[str, Callable[[Mapping[str, Any], Feeds, Path, Any], dict[str, Any]]] = {
    "pair": pair,
    "solo": solo,
    "contest": contest,
    "score": score,
}


# ---------------------------------------------------------------------------------------------
# comparing


def match_outputs(
    source: Sequence[InputSpec], artifact: Sequence[InputSpec], given: Mapping[str, str] | None
) -> dict[str, str]:
    """Which output of the artifact answers to which of the source's.

    By ``given`` (source's name to artifact's), else by name, else by position where both have
    equally many. Raises SourceError naming the output that has no counterpart, UsageError where
    ``given`` names none of the source's.
    """
    there = [spec.name for spec in artifact]
    wanted = [spec.name for spec in source]
    if given:
        pairs = dict(given)
    elif all(name in there for name in wanted) or len(there) != len(wanted):
        pairs = {name: name for name in wanted}
    else:
        pairs = dict(zip(wanted, there, strict=True))
    for name, other in pairs.items():
        if name not in wanted:
            raise UsageError(f"the source has no output {name}; it has {', '.join(wanted)}")
        if other not in there:
            raise SourceError(f"the artifact has no output {other}; it has {', '.join(there)}")
    return pairs


def _compare(
    source: GraphEngine,
    artifact: GraphEngine,
    meters: Mapping[str, FidelityMeter],
    names: Mapping[str, str],
    feeds: Feeds,
    folder: Path,
    voice: Reporter,
    subject: str = "artifact",
    matcher: RowMatcher | None = None,
    kinds: Sequence[str] = (),
) -> Sequence[str]:
    """Every sample through both. Returns outputs whose shapes differ in more than rows, as a
    finding; they are not measured."""
    matcher = matcher or RowMatcher()
    shapes: dict[str, str] = {}
    for index in range(feeds.count):
        sample = feeds.load(folder, index)
        voice.busy("source", f"running {source.path}")
        expected = source.answer(sample)
        voice.busy(subject, f"running {artifact.path}")
        got = artifact.answer(sample)
        ours, theirs = matcher.pair(
            {name: np.asarray(expected[name]) for name in meters},
            {name: np.asarray(got[names[name]]) for name in meters},
        )
        for name, meter in meters.items():
            if ours[name].shape != theirs[name].shape:
                shapes.setdefault(name, *unequal({name: ours[name]}, theirs))
            elif problem := meter.add(ours[name], theirs[name], "".join(kinds[index : index + 1])):
                raise SourceError(problem)
        voice.progress("comparing", (index + 1) / feeds.count)
    return list(shapes.values())


def _repeats(
    source: GraphEngine, names: Mapping[str, str], feeds: Feeds, folder: Path, voice: Reporter
) -> dict[str, Any] | None:
    """How close (dB) the source's answers to one sample are from run to run, by its worst output:
    ``output`` and ``db``; None where it has no float output."""
    if not feeds.count:
        return None
    voice.busy("source", f"running {source.path}")
    feed = feeds.load(folder, 0)
    first, second = source.answer(feed), source.answer(feed)
    found = []
    for name in names:
        meter = FidelityMeter(name)
        if meter.add(np.asarray(first[name]), np.asarray(second[name])) is not None:
            return {"output": name, "db": -math.inf}  # not even of one size
        if not math.isnan(db := meter.result().sqnr_db):
            found.append((db, name))
    return None if not found else dict(zip(("db", "output"), min(found), strict=True))


#: Decibels under the floor that a single row of a batch may be. The floor is asked of all rows
#: together, about which single ones scatter; 6 dB is twice the amplitude of the error.
ROW_MARGIN_DB = 6.0

#: Rows of a batch that is put together from single samples.
_BATCH = 8


def _beside_others(
    inputs: Sequence[str],
    source: GraphEngine,
    artifact: GraphEngine,
    meters: Mapping[str, FidelityMeter],
    names: Mapping[str, str],
    feeds: Feeds,
    folder: Path,
    voice: Reporter,
) -> dict[str, Any] | None:
    """Samples in one batch against the same samples alone: what their neighbours do to them.

    ``inputs`` have a batch as their first axis. Dynamic quantization takes one scale for a whole
    batch, so that a large row costs a small one its bits. Returns the sample that lost most, as
    ``rows``, ``output``, ``alone_db`` and ``beside_db``; None where there is no such batch.
    """
    alike = _alike_samples(inputs, feeds, folder)
    if len(alike) < 2:
        return None
    samples = [feeds.load(folder, index) for index in alike]
    batch = {
        name: np.concatenate([sample[name] for sample in samples]) if name in inputs else array
        for name, array in samples[0].items()
    }
    try:
        voice.busy("source", f"running {source.path}")
        expected = source.answer(batch)
        voice.busy("artifact", f"running {artifact.path}")
        got = artifact.answer(batch)
    except EdgeoptError:
        return None  # a size that this graph does not take
    worst: dict[str, Any] | None = None
    for name, meter in meters.items():
        rows = [np.asarray(answers) for answers in (expected[name], got[names[name]])]
        size = len(rows[0]) if rows[0].ndim else 0
        if rows[0].shape != rows[1].shape or size == 0 or size % len(alike) or not meter.sample_db:
            continue
        step = size // len(alike)
        for place, index in enumerate(alike):
            part = slice(place * step, (place + 1) * step)
            beside = FidelityMeter(name)
            beside.add(rows[0][part], rows[1][part])
            alone_db, beside_db = meter.sample_db[index], beside.result().sqnr_db
            lost = alone_db - beside_db
            if math.isnan(lost) or (worst is not None and lost <= worst["lost"]):
                continue
            worst = {"output": name, "alone_db": alone_db, "beside_db": beside_db, "lost": lost}
    return None if worst is None else {**worst, "rows": len(alike)}


def _alike_samples(inputs: Sequence[str], feeds: Feeds, folder: Path) -> list[int]:
    """The first samples that fit into one batch: equal sizes, and all other inputs the same."""
    first = feeds.load(folder, 0) if feeds.count else {}
    found = []
    for index in range(feeds.count):
        sample = feeds.load(folder, index)
        if all(
            array.shape == first[name].shape and array.ndim > 0
            if name in inputs
            else np.array_equal(array, first[name])
            for name, array in sample.items()
        ):
            found.append(index)
        if len(found) == _BATCH:
            break
    return found


# ---------------------------------------------------------------------------------------------
# timing


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Seconds per inference (the median of a block) of each subject, and inferences a block."""

    values: list[list[float]]
    runs: list[int]


def interleave(
    timers: Sequence[Timer],
    orders: Sequence[Sequence[int]],
    seconds: float,
    on_round: Callable[[float], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Blocks:
    """Time every subject in rounds of short blocks, taking the orders by turns.

    ``timers[i](n, round)`` runs subject ``i`` n times and gives the median seconds. Each is
    warmed up, then gets blocks of about 12 ms. Rounds go on for ``seconds``, longer where slow
    models would have too few of them, shorter once every subject's ratio to the first is known
    to 1%.
    """
    runs = [_block_length(timer, clock) for timer in timers]
    values: list[list[float]] = [[] for _ in timers]
    per_round = len(orders[0]) // len(timers)
    start, rounds = clock(), 0
    with quiet():
        while True:
            for subject in orders[rounds % len(orders)]:
                values[subject].append(timers[subject](runs[subject], rounds))
            rounds += 1
            spent = clock() - start
            on_round(min(1.0, spent / seconds) if seconds > 0 else 1.0)
            if _enough(rounds, spent, seconds):
                break
            if rounds % LOOK_EVERY == 0 and _is_tight(values, per_round):
                break
    return Blocks(values, runs)


def _enough(rounds: int, spent: float, seconds: float) -> bool:
    if spent >= seconds * OVERTIME:
        return rounds >= ROUNDS_IN_ANY_CASE
    return spent >= seconds and rounds >= ROUNDS


def _is_tight(values: Sequence[Sequence[float]], per_round: int) -> bool:
    for other in values[1:]:
        interval = ratio_interval(round_ratios(values[0], other, per_round), resamples=400)
        if interval.high - interval.low > 2 * TIGHT * interval.estimate:
            return False
    return True


def _block_length(timer: Timer, clock: Callable[[], float]) -> int:
    """Warm up, and find how many inferences fill a block."""
    start = clock()
    fastest = timer(1, 0)
    for _ in range(200):
        if clock() - start > 4 * BLOCK:
            break
        fastest = min(fastest, timer(1, 0))
    return max(1, min(10_000, round(BLOCK / max(fastest, 1e-9))))


def _timer(voice: Reporter, subject: str, engine: GraphEngine, samples: Sequence[Feed]) -> Timer:
    """A block of inferences on the sample whose turn it is."""

    def block(runs: int, turn: int) -> float:
        voice.busy(subject, f"running {engine.path}")
        engine.prepare(samples[turn % len(samples)])
        return median(timed(engine.run, least=runs))

    return block


# ---------------------------------------------------------------------------------------------


def _engine(path: str, threads: int) -> GraphEngine:
    case = Case(Path(path), (Path(path),), "onnxruntime", threads=threads)
    return cast(GraphEngine, make_engine(case))


def _open(voice: Reporter, subject: str, path: str, threads: int) -> GraphEngine:
    voice.busy(subject, f"loading {path}")
    engine = _engine(path, threads)
    engine.imports()
    engine.load()
    return engine


def _spec_json(spec: InputSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
