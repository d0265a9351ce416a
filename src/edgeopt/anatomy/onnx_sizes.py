"""Exact sizes of the ONNX files that edgeopt would write from an ONNX source.

The graph is at hand, so the rewriting itself is done, with codes that are all zero: how many bytes
a file takes depends on shapes and names, not on values. Nothing is encoded, run or written.

That is done in a child process with a limit on its memory and time: a graph can ask of whoever
folds it for any amount of either, and a file that is only looked at may come from anybody.

What is predicted is the plain recipe of ``--target portable``. The verb goes further where the
fidelity that it measures asks for more (channels taken out, tensors kept at 8 bits).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edgeopt.anatomy.scan import WHOLE_BUDGET
from edgeopt.core import Plan, Source
from edgeopt.files.open import open_source

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["main", "onnx_sizes", "rewritten_sizes"]

#: Weights of 4 bits need it, so that quantize converts what is older.
_QUANTIZE_OPSET = 21

#: The child begins with the parent's module path and nothing of the current folder's.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from edgeopt.anatomy.onnx_sizes import main; main(sys.argv[1])"
)

#: Address space that the libraries take before anything is read, and what a file's bytes become.
_MEMORY, _MEMORY_A_BYTE = 4 << 30, 8

#: Ten times what it takes on a slow core.
_SECONDS, _SECONDS_A_BYTE = 20.0, 0.5e-6

#: All digests have one length, so that the file's size does not depend on which it is.
_ANY_SHA256 = "0" * 64


def onnx_sizes(source: Source, *, deep: bool = False) -> dict[str, int] | None:
    """Bytes by name: ``FP16`` of ``export --half``, ``INT8`` and ``INT4`` of ``quantize --target
    portable``. A name is missing where the verb would refuse; None where nothing can be counted,
    because the file is too large or no graph that can be rewritten.

    Takes a second, and some 25 ms and 4 MB of memory a megabyte. Files that are read whole anyway
    are counted (see :mod:`edgeopt.anatomy.scan`), with ``deep`` all that one ONNX file can
    hold.
    """
    from edgeopt.graphs.capture.limits import EXTERNAL_OVER

    if source.nbytes > (EXTERNAL_OVER if deep else WHOLE_BUDGET):
        return None
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), str(source.path.resolve())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS + source.nbytes * _SECONDS_A_BYTE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    # A file may pass the reader of its tensors and still be no graph that the libraries take.
    if child.returncode != 0:
        return None
    sizes: dict[str, int] = json.loads(child.stdout.splitlines()[-1])
    return sizes


def main(path: str) -> None:
    """The child: bound its own memory, count, and print the answer as JSON on the last line."""
    source = open_source(path)
    limit = _MEMORY + _MEMORY_A_BYTE * source.nbytes
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    print(json.dumps(dict(rewritten_sizes(source))))


def rewritten_sizes(source: Source) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each file, in this process. Raises whatever the graph makes it raise."""
    as_given, raised = _openers(source)
    nbytes = _half_bytes(as_given(), source)
    if nbytes is not None:
        yield "FP16", nbytes
    for bits in (8, 4):
        nbytes = _quantized_bytes(raised(), source, bits)
        if nbytes is not None:
            yield f"INT{bits}", nbytes


def _openers(source: Source) -> tuple[Callable[[], ir.Model], Callable[[], ir.Model]]:
    """(the folded graph as export has it, as quantize has it), each a fresh one at every call."""
    import onnx
    import onnx_ir as ir

    from edgeopt.graphs.capture.converting import converted_model
    from edgeopt.graphs.fold import load_model
    from edgeopt.graphs.identity import identify
    from edgeopt.modules.reasons import attempt
    from edgeopt.targets.onnx.base_graph import fold_float, identity_of

    identity = identity_of(source)

    def folded(model: ir.Model) -> ir.Model:
        fold_float(model, source.path)
        identify(model, identity)
        return model

    def as_given() -> ir.Model:
        return folded(load_model(source.path))

    opset = max((source.details["opset"].get(domain, 1) for domain in ("", "ai.onnx")), default=1)
    if opset >= _QUANTIZE_OPSET:
        return as_given, as_given
    whole = onnx.load(source.path)
    # As in capture: where the converter fails, the file keeps its opset.
    converted, _ = attempt(lambda: converted_model(whole, _QUANTIZE_OPSET))

    def raised() -> ir.Model:
        return folded(ir.from_proto(converted or whole))

    return as_given, raised


def _half_bytes(model: ir.Model, source: Source) -> int | None:
    """Here the weights themselves decide: each is looked at, as export does."""
    from edgeopt.graphs.half import halve
    from edgeopt.targets.keep import metadata_of
    from edgeopt.targets.onnx.base_graph import require_finite
    from edgeopt.targets.onnx.build import options_of

    require_finite(source.path, model.graph)
    if all(change.decision.kept for change in halve(model)):
        return None
    return _nbytes(model, source, "fp16", metadata_of(_ANY_SHA256, None, options_of(True, None)))


def _quantized_bytes(model: ir.Model, source: Source, bits: int) -> int | None:
    """Rewritten as the portable recipe says, codes all zero."""
    from edgeopt.graphs.planning import decide, recipes
    from edgeopt.graphs.sites import find_sites
    from edgeopt.graphs.transform import BlankCodes, apply_decisions
    from edgeopt.targets.asked import Asked
    from edgeopt.targets.keep import metadata_of

    asked = Asked(bits, prefer="size", target="portable")
    sites, left = find_sites(model.graph)
    (recipe,) = recipes(
        bits,
        prefer=asked.prefer,
        target=asked.target,
        block=None,
        unsigned=False,
        kinds=frozenset(site.kind for site in sites),
    )
    decisions = decide(recipe, sites, left)
    changing = {d.tensor: d for d in decisions if d.scheme is not None}
    if not changing:
        return None
    apply_decisions(model, changing, recipe.placing, cache=BlankCodes(), measure=False)
    plan = Plan(_ANY_SHA256, asked.options(), decisions)
    return _nbytes(model, source, f"int{bits}", metadata_of(_ANY_SHA256, plan, plan.options))


def _nbytes(model: ir.Model, source: Source, tag: str, metadata: dict[str, str]) -> int:
    from edgeopt.graphs.external import written_nbytes
    from edgeopt.targets.keep import default_path
    from edgeopt.targets.onnx.build import sign

    sign(model, metadata)
    return written_nbytes(model, default_path(source, tag, ".onnx").name)
