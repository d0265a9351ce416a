"""Tables of the tensors of each artifact: the largest, and those furthest from the baseline's."""

from __future__ import annotations

from collections.abc import Iterator

from edgeopt.core import Subject
from edgeopt.report.document import Document
from edgeopt.report.numbers import Phrase, Said
from edgeopt.report.plots.layers import nbytes, sqnr
from edgeopt.report.tables import Column, Table

__all__ = ["tensor_tables"]

#: Tensors shown of each artifact for their size, and for their error.
_LARGEST, _WORST = 30, 15

#: Artifacts whose tensors are listed.
_MOST = 8


def tensor_tables(document: Document) -> Iterator[tuple[str, Table]]:
    """(artifact, table) of every artifact whose tensors are known."""
    for place, subject in enumerate(document.results.subjects[:_MOST]):
        if subject.layers:
            yield subject.name, _table(subject, place)


def _table(subject: Subject, place: int) -> Table:
    chosen = _chosen(subject)
    rows: list[tuple[Phrase, ...]] = []
    for i in chosen:
        layer = subject.layers[i]
        error = sqnr(layer, place, i)
        said: Phrase = () if layer.sqnr_db is None else (_INFINITE.get(layer.sqnr_db, "-"),)
        rows.append(
            (
                (Said(layer.name),),
                (Said(layer.dtype),),
                (nbytes(layer, place, i),),
                said if error is None else (error,),
            )
        )
    whole = len(chosen) == len(subject.layers)
    title = "All tensors" if whole else "The largest tensors, and those with the largest errors"
    columns = (Column("tensor", words=True), Column("type", words=True), Column("bytes"))
    if any(row[3] for row in rows):
        return Table("tensors", title, None, (*columns, Column("SQNR")), tuple(rows))
    return Table("tensors", title, None, columns, tuple(row[:3] for row in rows))


_INFINITE = {float("inf"): "identical", float("-inf"): "no signal"}


def _chosen(subject: Subject) -> list[int]:
    """Places in the file: of the largest, then of the worst that are not among them."""
    order = sorted(range(len(subject.layers)), key=lambda i: -subject.layers[i].nbytes)
    if len(order) <= _LARGEST + _WORST:
        return order
    known = [(e, i) for i in order[_LARGEST:] if (e := subject.layers[i].sqnr_db) is not None]
    return order[:_LARGEST] + [i for _, i in sorted(known)[:_WORST]]
