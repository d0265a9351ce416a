"""Exact sizes of the ONNX files that edgeopt would write from an ONNX source.

The graph is at hand, so the rewriting itself is done, with codes that are all zero: how many bytes
a file takes depends on shapes and names, not on values. Nothing is encoded, run or written.

What is predicted is the plain recipe of ``--target portable``. The verb goes further where the
fidelity that it measures asks for more (channels taken out, tensors kept at 8 bits).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from edgeopt.core import Plan, Source
from edgeopt.verbs.anatomy.scan import WHOLE_BUDGET

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["onnx_sizes"]

#: Weights of 4 bits need it, so that quantize converts what is older.
_QUANTIZE_OPSET = 21

#: All digests have one length, so that the file's size does not depend on which it is.
_ANY_SHA256 = "0" * 64


def onnx_sizes(source: Source, *, deep: bool = False) -> dict[str, int] | None:
    """Bytes by name: ``FP16`` of ``export --half``, ``INT8`` and ``INT4`` of ``quantize --target
    portable``. A name is missing where the verb would refuse; None where nothing can be counted,
    because the file is too large or no graph that can be rewritten.

    Takes some 25 ms and 4 MB of memory a megabyte. Files that are read whole anyway are counted
    (see :mod:`edgeopt.verbs.anatomy.scan`), with ``deep`` all that one ONNX file can hold.
    """
    from edgeopt.graphs.capture.limits import EXTERNAL_OVER
    from edgeopt.graphs.capture.reasons import attempt

    if source.nbytes > (EXTERNAL_OVER if deep else WHOLE_BUDGET):
        return None
    # A file may pass the reader of its tensors and still be no graph that the libraries take.
    sizes, _ = attempt(lambda: dict(_sizes(source)))
    return sizes


def _sizes(source: Source) -> Iterator[tuple[str, int]]:
    as_given, raised = _openers(source)
    nbytes = _half_bytes(as_given(), source)
    if nbytes is not None:
        yield "FP16", nbytes
    for bits in (8, 4):
        nbytes = _quantized_bytes(raised(), bits)
        if nbytes is not None:
            yield f"INT{bits}", nbytes


def _openers(source: Source) -> tuple[Callable[[], ir.Model], Callable[[], ir.Model]]:
    """(the folded graph as export has it, as quantize has it), each a fresh one at every call."""
    import onnx
    import onnx.version_converter
    import onnx_ir as ir

    from edgeopt.graphs.capture.reasons import attempt
    from edgeopt.graphs.fold import load_model
    from edgeopt.verbs.graph_base import fold_float

    def as_given() -> ir.Model:
        return fold_float(load_model(source.path), source.path)

    opset = max((source.details["opset"].get(domain, 1) for domain in ("", "ai.onnx")), default=1)
    if opset >= _QUANTIZE_OPSET:
        return as_given, as_given
    whole = onnx.load(source.path)
    # As in capture: where the converter fails, the file keeps its opset.
    converted, _ = attempt(lambda: onnx.version_converter.convert_version(whole, _QUANTIZE_OPSET))

    def raised() -> ir.Model:
        return fold_float(ir.from_proto(converted or whole), source.path)

    return as_given, raised


def _half_bytes(model: ir.Model, source: Source) -> int | None:
    """Here the weights themselves decide: each is looked at, as export does."""
    from edgeopt.graphs.half import halve
    from edgeopt.verbs.export import options_of
    from edgeopt.verbs.graph_base import require_finite
    from edgeopt.verbs.output import metadata_of

    require_finite(source.path, model.graph)
    if all(change.decision.kept for change in halve(model)):
        return None
    return _nbytes(model, metadata_of(_ANY_SHA256, None, options_of(True, None)))


def _quantized_bytes(model: ir.Model, bits: int) -> int | None:
    """Rewritten as the portable recipe says, codes all zero."""
    from edgeopt.graphs.planning import decide, recipes
    from edgeopt.graphs.sites import find_sites
    from edgeopt.graphs.transform import BlankCodes, apply_decisions
    from edgeopt.verbs.graph_base import Asked
    from edgeopt.verbs.output import metadata_of

    asked = Asked(bits, target="portable")
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
    return _nbytes(model, metadata_of(_ANY_SHA256, plan, plan.options))


def _nbytes(model: ir.Model, metadata: dict[str, str]) -> int:
    import onnx_ir as ir

    from edgeopt.verbs.graph_build import sign

    sign(model, metadata)
    return int(ir.to_proto(ir.external_data.load_to_model(model)).ByteSize())
