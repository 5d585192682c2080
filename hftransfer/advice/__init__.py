"""Which strategy? Every rung from a guess to full training, measured on the same held-out rows within a time budget.

`judge` decides from answers alone and knows no network; `bench` makes the answers; `rungs` says what is tried, in which
order, and when it is not worth it; `words` says it; `kept` is the run folder that is whole from the first minute on.
"""
