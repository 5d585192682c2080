"""Linear probes: solver and fit."""
