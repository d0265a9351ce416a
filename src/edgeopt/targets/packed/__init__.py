"""Packed safetensors: weights alone, for load_weights."""
