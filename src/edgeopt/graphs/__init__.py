"""ONNX graphs: capture from torch, fold, place quantized forms, pack, read back."""
