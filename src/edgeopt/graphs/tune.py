"""Rewrites that change no result and only help where a runtime is slow; timed, never assumed."""

from __future__ import annotations

import onnx_ir as ir

from edgeopt.graphs.outliers import WITH_OUTLIERS

__all__ = ["TUNES", "can_tune", "tune"]

#: Value of the ``residual`` choice -> what it means.
TUNES = {
    "add": "residual additions as they are",
    "sum": "residual Add before LayerNormalization as Sum: the runtime then leaves the two apart",
}


def _residuals(graph: ir.Graph) -> list[ir.Node]:
    """Add nodes of two activations whose result a LayerNormalization takes."""
    found = []
    for node in graph:
        if node.op_type != "LayerNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "Add" or source.domain not in ("", "ai.onnx"):
            continue
        found.append(source)
    return list({id(node): node for node in found}.values())


def can_tune(graph: ir.Graph) -> bool:
    """Whether there is anything to choose."""
    return bool(_residuals(graph))


def tune(graph: ir.Graph, residual: str) -> None:
    """Carry the choice out in place.

    ONNX Runtime fuses Add and LayerNormalization to SkipLayerNormalization when a session opens;
    on the CPU the fused kernel of 1.32 took 41 us where the two took 6. Sum computes the same and
    matches no fusion.
    """
    if residual != "sum":
        return
    for add in _residuals(graph):
        owner = add.graph
        assert isinstance(owner, ir.Graph)
        joined = _joined_terms(add)
        terms = [t for v in add.inputs for t in (joined[id(v)].inputs if id(v) in joined else [v])]
        total = ir.node("Sum", terms, name=f"{add.outputs[0].name}/Sum")
        old, new = add.outputs[0], total.outputs[0]
        new.shape, new.type = old.shape, old.type
        owner.insert_before(add, total)
        if old.is_graph_output():
            for i, value in enumerate(owner.outputs):
                if value is old:
                    owner.outputs[i] = new
        name = old.name
        old.replace_all_uses_with(new)
        owner.remove([add, *joined.values()], safe=True)
        new.name = name


def _joined_terms(add: ir.Node) -> dict[int, ir.Node]:
    """Additions of an outlier part that only this one reads, by the value they give: Sum takes
    their terms as they are, one pass over the activation instead of two."""
    found = {}
    for value in add.inputs:
        maker = value.producer() if value is not None else None
        if (
            maker is not None
            and maker.name is not None
            and maker.name.endswith(WITH_OUTLIERS)
            and len(maker.outputs[0].uses()) == 1
            and not maker.outputs[0].is_graph_output()
        ):
            found[id(value)] = maker
    return found
