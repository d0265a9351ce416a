"""Packed safetensors as a target: weights alone, every tensor proven from the written bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core import Change, Plan, Proof, Source
from edgeopt.errors import UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.base import Request
from edgeopt.targets.keep import artifact_path
from edgeopt.targets.onnx.source import has_graph, require_graph
from edgeopt.targets.options import require_same
from edgeopt.targets.packed.make import carry_out
from edgeopt.targets.packed.plan import plan_weights
from edgeopt.targets.packed.prove import verify_weights

__all__ = ["TARGET"]


@dataclass(frozen=True)
class _PackedTarget:
    form: str = "safetensors"
    kinds: frozenset[str] = frozenset({"safetensors"})

    def accepts(self, source: Source, request: Request) -> bool:
        """Weights alone, when asked for or when there is no graph; says why ONNX cannot be."""
        if request.verb == "export":
            return False
        if request.to == "safetensors":
            return True
        if has_graph(source, request.model):
            return False
        if request.to == "onnx":
            require_graph(source, request.model)
        return True

    def place(self, source: Source, request: Request) -> Path:
        asked = request.asked().bits
        bits = asked if request.plan is None else request.plan.options.get("bits", asked)
        return artifact_path(
            source,
            request.out,
            f"int{bits}",
            ".safetensors",
            instead="give the code with --model package.module:callable for an ONNX file",
        )

    def beside(self, path: Path, request: Request) -> Path | None:
        return None

    @contextmanager
    def begin(self, source: Source, request: Request) -> Iterator[_PackedJob]:
        request.step("reading")
        yield _PackedJob(source, request, source.sha256())

    def prove(self, source: Source, artifact: Source, request: Request) -> Proof:
        request.step("reading")
        sha256 = source.sha256()
        return verify_weights(source, artifact, sha256, request.min_sqnr, request.threads)


TARGET = _PackedTarget()


@dataclass(frozen=True)
class _PackedJob:
    source: Source
    request: Request
    sha256: str

    def plan(self) -> Plan:
        given = self.request.plan
        if given is None:
            asked = self.request.asked()
            return plan_weights(
                self.source,
                bits=asked.bits,
                block_size=asked.block_size,
                options=asked.options(),
                sha256=self.sha256,
            )
        asked = self.request.asked()
        require_same({**asked.options(), "block_size": asked.block_size}, given.options)
        if given.source_sha256 != self.sha256:
            raise UsageError(
                f"the plan was made for another source (SHA-256 {given.source_sha256[:12]}..., "
                f"{self.source.path} has {self.sha256[:12]}...); make it anew"
            )
        return given

    def write(self, plan: Plan | None, path: Path) -> tuple[Change, ...]:
        assert plan is not None
        self.request.step("quantizing")
        return carry_out(self.source, plan, path)

    def prove(
        self, plan: Plan | None, changes: tuple[Change, ...], written: Path, final: Path
    ) -> Proof:
        self.request.step("proving")
        proof = verify_weights(
            self.source,
            open_source(written),
            self.sha256,
            self.request.min_sqnr,
            self.request.threads,
            final,
        )
        return dataclasses.replace(proof, verb="quantize", plan=plan, changes=changes)
