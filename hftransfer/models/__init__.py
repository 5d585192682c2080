"""Checkpoints as networks: loading, weights, processors, heads, layers, partial execution."""
