"""Depth pruning: whole blocks."""
