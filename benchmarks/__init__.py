"""Comparisons with peers, side by side; ``python -m benchmarks`` runs them all."""
