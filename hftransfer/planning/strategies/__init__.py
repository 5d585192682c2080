"""Which strategy? Every candidate from a guess to full training, measured on the same held-out rows within a time budget.

`decision` compares predictions alone and knows no network; `experiments` makes them; `candidates` lists what is tried, in
which order, and when it is not worth it; `wording` describes it; `kept` is the run folder, complete from the first minute on.
"""
