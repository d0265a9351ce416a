"""Fidelity, latency, memory and load time, measured in fresh worker processes."""
