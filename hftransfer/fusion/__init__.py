"""Several inputs: a plain model for each, one head on all, and what each contributes."""
