"""Predictions of finished runs, explanations, reliability."""
