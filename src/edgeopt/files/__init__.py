"""Bytes on disk <-> named tensors: one module a format, plus sniffing and atomic writing."""
