"""What a model file says of itself beside its arithmetic: kept through every rewrite.

Programs read it: sherpa-onnx takes its sizes and vocabulary from ``metadata_props``, Ultralytics
the names of its classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

__all__ = ["Identity", "identify", "read_identity"]


@dataclass(frozen=True)
class Identity:
    """The header of an ONNX file, and the documentation of what goes in and out."""

    producer: tuple[str, str] = ("", "")
    domain: str = ""
    version: int = 0
    doc: str = ""
    properties: dict[str, str] = field(default_factory=dict)
    graph_name: str = ""
    graph_doc: str = ""
    graph_properties: dict[str, str] = field(default_factory=dict)
    values: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)


def read_identity(path: Path) -> Identity:
    """The identity of an ONNX file; weights beside it are not read."""
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    return Identity(
        producer=(model.producer_name, model.producer_version),
        domain=model.domain,
        version=model.model_version,
        doc=model.doc_string,
        properties=_properties(model),
        graph_name=graph.name,
        graph_doc=graph.doc_string,
        graph_properties=_properties(graph),
        values={
            value.name: (value.doc_string, _properties(value))
            for value in (*graph.input, *graph.output)
            if value.doc_string or value.metadata_props
        },
    )


def identify(model: ir.Model, identity: Identity) -> None:
    """Give a rewritten model its source's identity, in place."""
    model.producer_name, model.producer_version = identity.producer
    model.domain, model.model_version = identity.domain, identity.version
    model.doc_string = identity.doc
    model.metadata_props.clear()
    model.metadata_props.update(identity.properties)
    graph = model.graph
    graph.name, graph.doc_string = identity.graph_name or graph.name, identity.graph_doc
    graph.metadata_props.update(identity.graph_properties)
    for value in (*graph.inputs, *graph.outputs):
        doc, properties = identity.values.get(value.name or "", ("", {}))
        value.doc_string = doc
        value.metadata_props.update(properties)


def _properties(part: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in part.metadata_props}
