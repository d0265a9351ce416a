"""Stored forms of a weight in a graph, as one table: add a form by adding a row.

:data:`FORMS` says for every form which kinds of site it serves at which bits, how its codes are
stored (:meth:`Form.scheme`) and how it is put into the graph (:meth:`Form.apply`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeopt.core import Affine, Codes
from edgeopt.graphs.forms import place, store
from edgeopt.graphs.forms.build import Builder
from edgeopt.graphs.sites import Site

__all__ = ["FORMS", "Form", "Placing"]


@dataclass(frozen=True)
class Placing:
    """Graph-wide choices that a form may ask for.

    ``unsigned``: uint8 weights (exact on x86-64 without VNNI, where int8 ones saturate).
    ``accuracy_level``: of MatMulNBits; 4 computes in int8, 0 in float.
    """

    unsigned: bool = False
    accuracy_level: int = 4


Apply = Callable[[Builder, Site, Codes, Affine, Placing], None]


def _fold(b: Builder, site: Site, codes: Codes, scheme: Affine, how: Placing) -> None:
    place.folded(b, site, codes, scheme)


def _integer(b: Builder, site: Site, codes: Codes, scheme: Affine, how: Placing) -> None:
    place.integer_product(b, site, codes, scheme, unsigned=how.unsigned)


def _gather(b: Builder, site: Site, codes: Codes, scheme: Affine, how: Placing) -> None:
    place.gather(b, site, codes, scheme, unsigned=how.unsigned)


def _gather_nibbles(b: Builder, site: Site, codes: Codes, scheme: Affine, how: Placing) -> None:
    place.gather_nibbles(b, site, codes, scheme)


def _nbits(b: Builder, site: Site, codes: Codes, scheme: Affine, how: Placing) -> None:
    place.nbits_product(b, site, codes, scheme, accuracy_level=how.accuracy_level)


@dataclass(frozen=True)
class Form:
    """One way to store a weight and to reach it.

    ``packs``: blocks are powers of two from 16 to 256 and the last may be short (the contrib
    operators' rule); otherwise blocks divide the row. ``compute``: the arithmetic of its consumers,
    ``float`` or ``int8``. ``resident``: what a weight is in memory once the session is open.
    """

    name: str
    kinds: frozenset[str]
    bits: frozenset[int]
    compute: str
    resident: str
    packs: bool
    apply: Apply

    def refuses(self, site: Site, bits: int) -> str | None:
        """None when the form can hold this site, else why not."""
        if site.kind not in self.kinds:
            return f"{self.name} does not serve {site.kind} weights"
        if bits not in self.bits:
            return f"{self.name} does not store {bits} bits"
        if site.dtype != "float32" and self.name != "folded":
            return f"{self.name} computes in float32, the graph in {site.dtype}"
        if self.name == "matmul-nbits" and site.kind == "tied" and site.matrix_shape[1] % 16:
            return "rows do not divide into blocks"
        if self.packs and site.kind == "tied" and (site.matrix_shape[1] * bits) % 8:
            return "rows do not end on a byte"
        if self.name == "gather-nibbles":
            return _why_no_nibbles(site)
        return None

    def misfits(self, site: Site, scheme: Affine) -> str | None:
        """None when codes of this scheme can be placed at this site, else why not: a plan may come
        from outside."""
        refused = self.refuses(site, scheme.bits)
        if refused is not None:
            return refused
        columns, block = site.matrix_shape[1], scheme.block
        if self.packs:
            if block not in _PACKED_BLOCKS or (site.kind == "tied" and columns % block):
                return f"{self.name} does not take blocks of {block}"
        elif block is not None and (block < 1 or columns % block):
            return f"blocks of {block} do not divide rows of {columns}"
        if self.name in ("matmul-integer", "gather") and (
            block is not None or not scheme.symmetric
        ):
            return f"{self.name} takes one scale a row and no zero points"
        if self.name == "gather-nibbles" and not scheme.symmetric:
            return f"{self.name} takes no zero points"
        return None

    def scheme(self, site: Site, bits: int, block: int, symmetric: bool, scale: str) -> Affine:
        """How this site's codes are stored, for a wished block size."""
        columns = site.matrix_shape[1]
        axis = 0 if site.by_column else len(site.shape) - 1
        if bits == 8 and self.name == "folded":
            # Expanded to float anyway. Blocks with zero points made a random ResNet 6% larger than
            # one scale a row did, and brought it from 31.8 to 37.3 dB.
            return Affine(8, store.block_for(columns, min(block, 64)), False, axis, "float16")
        if bits == 8 and not self.packs:
            return Affine(8, None, True, axis, "float32")
        if self.name == "gather-nibbles":
            symmetric = True
        size = block if self.packs else store.block_for(columns, block)
        if self.packs:
            # The operators pad a short last block: no wider than the row needs, and none at all
            # where a tied table is gathered and multiplied from the same bytes.
            assert size is not None
            while size > 16 and (size // 2 >= columns or (site.kind == "tied" and columns % size)):
                size //= 2
        return Affine(bits, size, symmetric, axis, scale)


def _why_no_nibbles(site: Site) -> str | None:
    if site.matrix_shape[1] % 2:
        return "rows of an odd length do not split into two halves"
    indices = [use.node.inputs[1] for use in site.uses]
    if any(value is None or value.shape is None for value in indices):
        return "the indices' rank is not known"
    return None


_PACKED_BLOCKS = frozenset({16, 32, 64, 128, 256})

_ANY = frozenset({"product", "table", "tied", "conv", "recurrent", "other"})
_PRODUCTS = frozenset({"product", "tied"})

FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("folded", _ANY, frozenset({4, 8}), "float", "float32", False, _fold),
        Form("matmul-integer", _PRODUCTS, frozenset({8}), "int8", "int8", False, _integer),
        Form("expanded", _PRODUCTS, frozenset({4}), "int8", "int8", False, _integer),
        Form("matmul-nbits", _PRODUCTS, frozenset({4, 8}), "int8", "packed", True, _nbits),
        Form("gather", frozenset({"table"}), frozenset({8}), "float", "int8", False, _gather),
        Form(
            "gather-nibbles",
            frozenset({"table"}),
            frozenset({4}),
            "float",
            "packed",
            False,
            _gather_nibbles,
        ),
    )
}
