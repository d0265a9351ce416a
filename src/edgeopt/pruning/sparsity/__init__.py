"""Sparsity: single weights set to zero, and held there."""
