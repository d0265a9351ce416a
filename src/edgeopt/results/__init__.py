"""Saved results: read, put side by side, and held against conditions."""
