"""How many more labels, and of which inputs: the learning curve of a probe, and what to label next."""
