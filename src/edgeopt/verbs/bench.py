"""``edgeopt bench``: latency, load time, memory and size of artifacts, measured side by side."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from edgeopt.core import Layer, Measurement, Results, Source, Subject
from edgeopt.errors import UsageError
from edgeopt.files.atomic import checked_output
from edgeopt.files.open import open_source
from edgeopt.measure.bench import Bench, BenchSettings, Trial
from edgeopt.options.table import BenchOptions, BenchRequest
from edgeopt.report.results_files import write_document
from edgeopt.results.saved import against, file_of, open_saved
from edgeopt.targets.options import require_use
from edgeopt.verbs.bench_place import place
from edgeopt.verbs.bench_trials import names_of, runtime_of, trials_of
from edgeopt.verbs.calling import asking

__all__ = ["bench"]

#: Fewer processes than this cannot tell one process's luck from the artifact's time.
_FEWEST_PROCESSES = 5

#: More threads than the largest machines have. A runtime asked for many more takes minutes to
#: start them, or the machine down.
_MOST_THREADS = 1024


@asking(BenchOptions)
def bench(artifacts: Sequence[str | Path], options: BenchOptions) -> Results:
    """Measure ``artifacts`` side by side: the first is the one that others are compared with.

    ONNX files run in ONNX Runtime, GGUF files in llama.cpp (``prompt`` and ``generate`` as
    llama-bench defines pp and tg), torch files in torch, safetensors and bare state dicts are
    loaded only. Each is measured in fresh worker processes, at each of ``threads`` and ``batch``.
    Inputs come from ``data`` or are made up from the signature. With ``on`` the artifacts and a
    small runner are sent to that machine, measured there, and removed.

    Args:
        artifacts: files or folders to measure.
        {options}

    An artifact whose measuring fails (it does not load, its runtime crashes or hangs) has the
    reason in its subject's ``failure``; the others are measured all the same.

    Raises:
        SourceError: a file that is none of these kinds, or breaks its format.
        UsageError: options that cannot be honoured, a device that is not there.
        HostError: the machine of ``on`` cannot be reached, is not trusted, or lacks a runtime.
        InputsError: inputs are missing or do not fit.
        OutputError: ``out`` cannot be written.
    """
    _check(artifacts, options)
    asked = BenchRequest(**{f.name: getattr(options, f.name) for f in fields(BenchRequest)})
    baseline, progress, out = options.baseline, options.progress, options.out
    if baseline is not None:
        open_saved(baseline)  # what is wrong with it is said before minutes of measuring
    opened = [_described(open_source(artifact)) for artifact in artifacts]
    sources = [source for source, _ in opened]
    require_use(runtime_of(source, asked) for source in sources)
    if options.other_machine and baseline is None:
        raise UsageError(
            "--other-machine lets saved results of another machine count; give some with --baseline"
        )
    if out is not None:
        read = [source.path for source in sources]
        read += [file_of(given) for given in (baseline, options.data) if given is not None]
        checked_output(out, read)
    names = names_of([source.path for source in sources])
    described = next((source for source in sources if source.inputs), None)
    layers = dict(zip(names, (found for _, found in opened), strict=True))
    settings = BenchSettings(
        processes=options.processes,
        seconds=options.seconds,
        silence=options.timeout,
        cold=options.cold,
    )
    digests: dict[str, str] = {}
    if options.on is not None and progress is not None:
        progress(f"connecting to {options.on}", None)
    with place(options.on, options.remote_python) as machine:
        trials: list[Trial] = []
        for name, source in _zip(names, sources):
            found_device = machine.resolve(options.device, runtime_of(source, asked))
            trials.extend(trials_of(name, source, asked, found_device, described))
        before = machine.environment(threads=max(options.threads))
        document = _Draft(names, sources, layers, trials, asked, settings, before, options.on)
        if baseline is not None:
            # Results that cannot be compared are refused before minutes of measuring.
            nothing = Bench((), (), {}, {}, ())
            against(baseline, document.results(nothing, {}), other_machine=options.other_machine)

        def so_far(found: Bench) -> None:
            if out is not None:
                write_document(document.results(found, digests), Path(out))

        found = machine.run(trials, settings, progress=progress, on_round=so_far)
    for name, source in _zip(names, sources):
        # After measuring: reading every byte would have filled the page cache.
        if progress is not None:
            progress(f"hashing {name}", None)
        digests[name] = source.sha256()
    so_far(found)
    results = document.results(found, digests)
    if baseline is None:
        return results
    return replace(against(baseline, results, other_machine=options.other_machine), verb="bench")


def _described(source: Source) -> tuple[Source, tuple[Layer, ...]]:
    """The source without its tensors, and what is told of them.

    Tensors hold a map of the file, and pages that anybody maps cannot be evicted: a cold load
    would find them in memory.
    """
    layers = tuple(Layer(weight.name, weight.dtype, weight.nbytes) for weight in source.weights)
    return replace(source, weights=(), extras=()), layers


class _Draft:
    """What is known before measuring, ready to be joined with what is found."""

    def __init__(
        self,
        names: Sequence[str],
        sources: Sequence[Source],
        layers: Mapping[str, tuple[Layer, ...]],
        trials: Sequence[Trial],
        asked: BenchRequest,
        settings: BenchSettings,
        before: Mapping[str, Any],
        on: str | None,
    ) -> None:
        self._names = names
        self._layers = layers
        self._sources = dict(_zip(names, sources))
        self._runtimes = {trial.subject: trial.case.runtime for trial in trials}
        self._settings = {**asdict(asked), **asdict(settings), "on": on}
        self._before = before
        self._made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def results(self, found: Bench, digests: Mapping[str, str]) -> Results:
        sizes = [
            Measurement(name, "file", "B", {}, ((float(source.nbytes),),))
            for name, source in self._sources.items()
        ]
        return Results(
            verb="bench",
            made=self._made,
            baseline=self._names[0],
            subjects=tuple(self._subject(name, found, digests) for name in self._names),
            measurements=(*sizes, *found.measurements),
            environment={**self._before, "while_measuring": dict(found.activity)},
            settings=self._settings,
            unavailable=found.unavailable,
            warnings=found.warnings,
        )

    def _subject(self, name: str, found: Bench, digests: Mapping[str, str]) -> Subject:
        source = self._sources[name]
        root = source.path if source.path.is_dir() else source.path.parent
        return Subject(
            name=name,
            path=str(source.path),
            kind=source.kind,
            runtime=self._runtimes[name],
            files=tuple((_relative(file, root), file.stat().st_size) for file in source.files),
            sha256=digests.get(name, ""),
            placement=found.info.get(name, {}),
            layers=self._layers[name],
            failure=found.failures.get(name, ""),
        )


def _relative(file: Path, root: Path) -> str:
    try:
        return file.relative_to(root).as_posix()
    except ValueError:
        return file.name


def _zip(names: Sequence[str], sources: Sequence[Source]) -> list[tuple[str, Source]]:
    return list(zip(names, sources, strict=True))


def _check(artifacts: Sequence[str | Path], options: BenchOptions) -> None:
    if not artifacts:
        raise UsageError("nothing to measure; give one file or more")
    seen: dict[Path, str] = {}
    for artifact in artifacts:
        path = Path(artifact).resolve()
        if path in seen:
            raise UsageError(f"{artifact}: given twice; give each artifact once")
        seen[path] = str(artifact)
    if not options.threads:
        raise UsageError("--threads: give one number or more")
    for option, values in (("--threads", options.threads), ("--batch", options.batch)):
        for value in values:
            if value < 1:
                raise UsageError(f"{option} {value}; use 1 or more")
            if option == "--threads" and value > _MOST_THREADS:
                raise UsageError(f"--threads {value}; use {_MOST_THREADS} or fewer")
        if len(set(values)) != len(values):
            raise UsageError(f"{option} {','.join(map(str, values))}: give each number once")
    if options.seq is not None and options.seq < 1:
        raise UsageError(f"--seq {options.seq}; use 1 or more")
    if not 0 < options.seconds < float("inf"):
        raise UsageError(f"--time {options.seconds:g}; use a number of seconds above 0")
    if not 0 < options.timeout < float("inf"):
        raise UsageError(f"--timeout {options.timeout:g}; use a number of seconds above 0")
    if options.processes < _FEWEST_PROCESSES:
        raise UsageError(
            f"--processes {options.processes}; use {_FEWEST_PROCESSES} or more: fewer cannot tell"
            " one process's luck from the artifact's time"
        )
    if options.prompt < 0 or options.generate < 0 or not options.prompt + options.generate:
        raise UsageError(
            f"--prompt {options.prompt}, --generate {options.generate}; use 1 or more of either"
        )
