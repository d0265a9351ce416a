"""Measure a pair: the source's graph and the artifact, both as files, in fresh processes.

One worker compares and times the two side by side; others load each file alone for its load
time and memory. A slowdown is believed only when a second fresh worker finds it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from edgeopt.core import Fidelity, InputSpec, Measurement, OfKind, Progress
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.onnx import describe
from edgeopt.measure.matching import RowCount
from edgeopt.measure.process import Elsewhere, Outcome, Workplace, workplace
from edgeopt.numerics.decide import compare_blocks
from edgeopt.numerics.statistics import Interval, paired_interval

__all__ = ["Mates", "PairResult", "Repeats", "measure_pair"]

#: A gain larger than this is believed of one worker; a smaller one, as a slowdown of any size, is
#: asked of a second, since where a process happens to lie in memory makes a few percent.
_PLAIN = 1.10

#: Fresh processes for load time and memory: three where loading both files is quick, else one.
_PROCESSES = 3
_QUICK = 1.5

#: Inferences before memory is read: the first allocates, later ones may grow the arena.
_MEMORY_RUNS = 3

#: What of a footprint makes each measurement of memory.
_MEMORY = {
    "memory": ("added",),
    "memory_heap": ("anonymous",),
    "memory_mapped": ("mapped", "other"),
}

PairSide: TypeAlias = Literal["source", "artifact"]
_SUBJECTS: tuple[PairSide, PairSide] = ("source", "artifact")


@dataclass(frozen=True)
class Mates:
    """The sample that lost most (dB) from being one of ``rows`` in a batch, by one output."""

    rows: int
    output: str
    alone_db: float
    beside_db: float
    lost: float


@dataclass(frozen=True)
class Repeats:
    """How close the source's own answers to one sample are from run to run."""

    output: str
    db: float


@dataclass(frozen=True)
class PairResult:
    """What was measured on a pair.

    ``failure`` is None, or why the artifact could not be loaded, run and compared; there are no
    fidelity and no latency then. ``inputs`` and ``outputs`` are the artifact's own, ``files`` its
    file and those of its external data. ``rows`` counts those of outputs that are sets, ``shapes``
    names outputs of other shapes. ``unproven`` names what could not be measured, and why;
    ``notes`` what a reader should know.
    """

    fidelity: tuple[Fidelity, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    failure: str | None = None
    samples: int = 0
    inputs: tuple[InputSpec, ...] = ()
    outputs: tuple[InputSpec, ...] = ()
    files: tuple[Path, ...] = ()
    unproven: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    mates: Mates | None = None
    repeats: Repeats | None = None
    rows: RowCount | None = None
    shapes: tuple[str, ...] = ()

    @property
    def ratio(self) -> Interval | None:
        """The artifact's latency over the source's, with its 95% interval."""
        values = {m.subject: m.values for m in self.measurements if m.metric == "latency"}
        if len(values) < 2:
            return None
        return paired_interval(values["source"], values["artifact"])

    @property
    def slower(self) -> bool:
        """Whether two fresh workers agree that the artifact is slower."""
        values = {m.subject: m.values for m in self.measurements if m.metric == "latency"}
        if len(values) < 2 or len(values["source"]) < 2:
            return False
        return compare_blocks(values["source"], values["artifact"]) == "worse"

    @property
    def nbytes(self) -> tuple[int, int]:
        """File bytes of (source graph, artifact), external data included."""
        sizes = {m.subject: int(m.values[0][0]) for m in self.measurements if m.metric == "file"}
        return sizes["source"], sizes["artifact"]


def measure_pair(
    source: Path,
    artifact: Path,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    output_map: Mapping[str, str] | None = None,
    batch: Sequence[str] = (),
    loose: Sequence[str] = (),
    probabilities: Sequence[str] = (),
    kinds: Sequence[str] = (),
    on: Elsewhere | None = None,
    progress: Progress | None = None,
) -> PairResult:
    """Compare and time two ONNX files on ``feeds`` (one mapping of input arrays a sample,
    gone through once).

    ``seconds`` is the time given to interleaved latency blocks, less once the ratio is known to
    1%. The first feed is what latency, load and memory are measured with; fidelity takes them
    all, one at a time. ``output_map`` names the artifact's output for each of the source's where
    the names differ; ``batch`` are inputs whose first axis is a batch, of which one is put together
    from several samples; ``loose`` are outputs that are sets of rows, matched before they are
    compared; ``probabilities`` are outputs between 0 and 1; ``kinds`` says of each feed what it is
    like, where they differ; ``on`` is another machine to measure on. Measurements: ``file`` (B),
    ``latency`` and ``load`` (s), ``memory`` (B, the peak above the process before loading),
    ``memory_heap`` and ``memory_mapped`` (B, what of it remains at the end, by kind).

    Raises the source's error where the source cannot be loaded or run, InputsError where the
    feeds do not fit it. What goes wrong with the artifact is in the result's ``failure``.
    """
    source, artifact = source.resolve(), artifact.resolve()
    if threads < 1:
        raise UsageError(f"{threads} threads; use 1 or more")
    files = {"source": _files(source), "artifact": _files(artifact)}
    sizes = tuple(
        _measurement(subject, "file", "B", {}, [[sum(f.stat().st_size for f in files[subject])]])
        for subject in _SUBJECTS
    )
    job = {
        "kind": "pair",
        "source": str(source),
        "artifact": str(artifact),
        "threads": threads,
        "seconds": seconds,
        "output_map": dict(output_map) if output_map else None,
        "batch": list(batch),
        "loose": list(loose),
        "probabilities": list(probabilities),
        "kinds": list(kinds),
        "compare": True,
    }
    with workplace(feeds, on) as place:
        first = _result(place.run(job, progress=progress))
        if isinstance(first, str):
            return PairResult(
                measurements=sizes,
                failure=first,
                samples=place.feeds.count,
                files=files["artifact"],
            )
        timings = [first]
        notes, unproven = [], []
        said = _verdict(first)
        if said == "worse" or (said == "better" and not _plainly_faster(first)):
            again = _result(place.run({**job, "compare": False}, progress=progress))
            if isinstance(again, str):
                unproven.append(f"speed, confirmed: {again}")
            else:
                timings.append(again)
        if len(timings) == 2 and _verdict(timings[1]) != said:
            way = "slower" if said == "worse" else "faster"
            notes.append(f"one worker found the artifact {way}, a second did not: not held up")
        pages = {subject: list(map(str, files[subject])) for subject in _SUBJECTS}
        alone, problems = _alone(place, {**job, "files": pages}, progress)
    unproven.extend(problems)
    unproven.extend(
        f"output {name}: the source gives NaN or Inf" for name in first["source_not_finite"]
    )
    notes.extend(f"output {a} of the source is {b} here" for a, b in first["renamed"].items())
    return PairResult(
        fidelity=tuple(_fidelity(values) for values in first["fidelity"]),
        measurements=(*sizes, *_latencies(timings, place, threads), *alone),
        samples=place.feeds.count,
        inputs=tuple(_spec(values) for values in first["inputs"]),
        outputs=tuple(_spec(values) for values in first["outputs"]),
        files=files["artifact"],
        unproven=tuple(unproven),
        notes=tuple(notes),
        shapes=tuple(first.get("shapes", ())),
        rows=None
        if first.get("rows") is None
        else RowCount(**{**first["rows"], "outputs": tuple(first["rows"]["outputs"])}),
        repeats=None if first.get("repeats") is None else Repeats(**first["repeats"]),
        mates=None if first.get("mates") is None else Mates(**first["mates"]),
    )


def _fidelity(values: Mapping[str, Any]) -> Fidelity:
    return Fidelity(**{**values, "kinds": tuple(OfKind(**kind) for kind in values["kinds"])})


def _files(path: Path) -> tuple[Path, ...]:
    """The model file and the files of external data that its tensors name.

    Of a file that is no ONNX model, itself: that it does not load is for the loader to say.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file; give the path of an ONNX file")
    try:
        return describe(path).files
    except SourceError:
        return (path,)


def _result(outcome: Outcome) -> Mapping[str, Any] | str:
    """The result, or why the artifact gave none; raises whatever is not the artifact's fault."""
    if outcome.result is not None:
        return outcome.result
    assert outcome.error is not None
    if outcome.subject != "artifact" or isinstance(outcome.error, UsageError):
        raise outcome.error
    return str(outcome.error)


def _verdict(result: Mapping[str, Any]) -> str:
    return compare_blocks([result["latency"]["source"]], [result["latency"]["artifact"]])


def _plainly_faster(result: Mapping[str, Any]) -> bool:
    ratio = paired_interval([result["latency"]["source"]], [result["latency"]["artifact"]])
    return ratio is not None and ratio.high < 1 / _PLAIN


def _latencies(
    results: Sequence[Mapping[str, Any]], place: Workplace, threads: int
) -> list[Measurement]:
    shapes = {name: list(shape) for name, shape in place.shapes.items()}
    return [
        _measurement(
            subject,
            "latency",
            "s",
            {
                "interleaved": "A B B A",
                "value": "median seconds per inference of one block",
                "runs_per_block": [result["runs"][subject] for result in results],
                "threads": threads,
                "input_shapes": shapes,
                "providers": results[0]["placement"][subject],
            },
            [result["latency"][subject] for result in results],
        )
        for subject in _SUBJECTS
    ]


def _alone(
    place: Workplace, job: Mapping[str, Any], progress: Progress | None
) -> tuple[list[Measurement], list[str]]:
    """Load time and memory of each file, every value from a process of its own."""
    conditions = {"threads": job["threads"], "process": "fresh", "file": "pages warm"}
    measurements: list[Measurement] = []
    problems: list[str] = []
    results: dict[PairSide, list[Mapping[str, Any]]] = {"source": [], "artifact": []}
    for turn in range(_PROCESSES):
        for subject in _SUBJECTS:
            if progress is not None:
                progress("loading", (2 * turn + (subject == "artifact")) / (2 * _PROCESSES))
            outcome = place.run(
                {
                    "kind": "solo",
                    "subject": subject,
                    "path": job[subject],
                    "files": job["files"][subject],
                    "threads": job["threads"],
                    "runs": _MEMORY_RUNS,
                }
            )
            if outcome.result is None:
                problems.append(f"load time and memory of the {subject}: {outcome.error}")
                return [], problems
            results[subject].append(outcome.result)
        if sum(results[subject][0]["load"] for subject in _SUBJECTS) > _QUICK:
            break
    for subject in _SUBJECTS:
        loads = [[result["load"]] for result in results[subject]]
        measurements.append(_measurement(subject, "load", "s", conditions, loads))
        uses = [r["memory"] for r in results[subject] if r["memory"]["added"] is not None]
        if not uses:
            problems.append(f"memory of the {subject}: this system does not say")
            continue
        after = {**conditions, "after": f"load and {_MEMORY_RUNS} runs", "how": uses[0]["how"]}
        for metric, kinds in _MEMORY.items():
            if all(use[kind] is not None for use in uses for kind in kinds):
                values = [[sum(use[kind] for kind in kinds)] for use in uses]
                measurements.append(_measurement(subject, metric, "B", after, values))
    return measurements, problems


def _measurement(
    subject: PairSide,
    metric: str,
    unit: str,
    conditions: Mapping[str, Any],
    values: Sequence[Sequence[float]],
) -> Measurement:
    return Measurement(subject, metric, unit, dict(conditions), tuple(map(tuple, values)))


def _spec(values: Mapping[str, Any]) -> InputSpec:
    return InputSpec(values["name"], values["dtype"], tuple(values["shape"]))
