"""Structured pruning: channels and attention heads, with all that depends on them."""
