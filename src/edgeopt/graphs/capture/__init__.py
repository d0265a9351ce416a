"""From any source that has a graph to one float ONNX file, proven to agree with it.

The work is done in a child process: the memory of torch and the crashes of native code stay there,
and this package imports no torch in the parent.
"""

from __future__ import annotations

from edgeopt.graphs.capture.parent import Captured, capture

__all__ = ["Captured", "capture"]
