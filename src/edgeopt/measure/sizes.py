"""Which made-up inputs an ONNX file runs on: tried in a worker, by the runtime itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgeopt.core import InputSpec, Progress
from edgeopt.data.hint import Hint
from edgeopt.data.settle import settle
from edgeopt.errors import EdgeoptError
from edgeopt.measure.process import Feeds, workplace
from edgeopt.runtimes.onnxruntime import OnnxSession

__all__ = ["SIZE_JOBS", "try_sizes"]


def try_sizes(
    path: Path,
    specs: Sequence[InputSpec],
    hints: Mapping[str, Hint],
    asked: Mapping[str, int],
    progress: Progress | None = None,
) -> tuple[dict[str, int], dict[str, int]] | None:
    """(sizes by symbol, values by input) of the first feed that the file runs on, ``asked`` sizes
    being given; None where it runs on none, or the worker died trying.

    Raises InputsError where no inputs can be made up for a type.
    """
    job = {
        "kind": "sizes",
        "path": str(path.absolute()),
        "specs": [[s.name, s.dtype, list(s.shape)] for s in specs],
        "hints": {name: dataclasses.asdict(hint) for name, hint in hints.items()},
        "asked": dict(asked),
    }
    with workplace([{}]) as place:
        outcome = place.run(job, progress=progress)
    if outcome.result is None or outcome.result["sizes"] is None:
        return None
    return dict(outcome.result["sizes"]), dict(outcome.result["values"])


def sizes(job: Mapping[str, Any], feeds: Feeds, folder: Path, voice: Any) -> dict[str, Any]:
    """Open the file, and run it on one feed after the other until one is accepted."""
    voice.busy("artifact", f"loading {job['path']}")
    session = OnnxSession.open(job["path"])
    specs = tuple(InputSpec(name, dtype, tuple(shape)) for name, dtype, shape in job["specs"])
    hints = {name: _hint(values) for name, values in job["hints"].items()}

    def runs(feed: Mapping[str, NDArray[Any]]) -> str | None:
        voice.busy("artifact", f"running {job['path']}")
        try:
            session.run(session.fit(feed))
        except EdgeoptError as error:
            return str(error)
        return None

    found = settle(specs, hints, runs, job["asked"])
    accepted = None if found.feed is None else dict(found.sizes)
    return {"sizes": accepted, "values": dict(found.values)}


def _hint(values: Mapping[str, Any]) -> Hint:
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    known["known"] = tuple((axis, size) for axis, size in known["known"])
    return Hint(**known)


SIZE_JOBS: Mapping[str, Callable[[Mapping[str, Any], Feeds, Path, Any], dict[str, Any]]] = {
    "sizes": sizes
}
