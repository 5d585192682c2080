"""Which checkpoint suits the data: cross-validated probes on the same rows, and what each checkpoint costs."""
