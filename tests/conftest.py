"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Timing is never asserted: not by hypothesis' deadlines either, nor by how long data takes to make.
settings.register_profile("edgeopt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgeopt")
