"""The command that a finding proposes: one line for a shell, that works as it stands.

Lossless rewrites are a line of Python with the format's own library, as that is where they
belong; whatever needs the graph goes through edgeopt itself.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from edgeopt.core import Source

__all__ = ["export", "quantize", "rewrite", "shell", "weights_only"]

#: Kinds that are a dict of tensors, and can be rewritten as one.
_DICTS = ("torch-state-dict", "torch-checkpoint")


def quantize(source: Source, *options: str) -> str:
    """``edgeopt quantize SOURCE``, with the user's word where the source needs it."""
    return _edgeopt("quantize", source, *options)


def export(source: Source, *options: str) -> str:
    return _edgeopt("export", source, *options)


def _edgeopt(verb: str, source: Source, *options: str) -> str:
    trust = ["--trust-pickle"] if source.needs_trust else []
    return shlex.join(["edgeopt", verb, str(source.path), *options, *trust])


def shell(*words: str) -> str:
    """A command of the system, quoted."""
    return shlex.join(words)


def _python(*statements: str) -> str:
    return shlex.join(["python", "-c", "; ".join(statements)])


def _beside(path: Path, what: str) -> str:
    return json.dumps(str(path.with_name(f"{path.stem}-{what}{path.suffix}")))


def _plain_torch(source: Source) -> bool:
    return source.kind in _DICTS and not source.details.get("foreign_globals")


def weights_only(source: Source) -> str | None:
    """Save a checkpoint's model and nothing else; None where that takes running its code."""
    if not _plain_torch(source):
        return None
    load = f"c = torch.load({json.dumps(str(source.path))}, weights_only=True)"
    key = source.details.get("checkpoint_key", "")
    if key:
        kept = "c" + "".join(f"[{json.dumps(part)}]" for part in key.split("."))
    else:
        dropped = sorted({extra.name.split(".")[0] for extra in source.extras})
        kept = f"{{k: v for k, v in c.items() if k not in {json.dumps(dropped)}}}"
    return _python("import torch", load, f"torch.save({kept}, {_beside(source.path, 'weights')})")


def rewrite(source: Source, what: str, *statements: str, need_torch: bool = True) -> str | None:
    """Load the tensors as a dict ``t``, run ``statements`` (they may call torch), save ``t``.

    ``what`` is added to the new file's name. None where the source is no plain dict of tensors in
    one file.
    """
    if _plain_torch(source):
        load = f"t = torch.load({json.dumps(str(source.path))}, weights_only=True)"
        key = source.details.get("checkpoint_key", "")
        if key:
            load += "".join(f"[{json.dumps(part)}]" for part in key.split("."))
        out = _beside(source.path, what)
        return _python("import torch", load, *statements, f"torch.save(t, {out})")
    file = _single_safetensors(source)
    if file is None:
        return None
    imports = ["from safetensors.torch import load_file, save_file"]
    imports = ["import torch", *imports] if need_torch else imports
    load = f"t = load_file({json.dumps(str(file))})"
    metadata = ', {"format": "pt"}' if source.kind == "hf-folder" else ""
    return _python(*imports, load, *statements, f"save_file(t, {_beside(file, what)}{metadata})")


def _single_safetensors(source: Source) -> Path | None:
    if source.kind == "safetensors" and len(source.files) == 1:
        return source.files[0]
    if source.kind == "hf-folder" and source.details.get("weights") == "safetensors":
        names = list(source.details.get("weight_files", {}))
        return source.path / names[0] if len(names) == 1 else None
    return None
