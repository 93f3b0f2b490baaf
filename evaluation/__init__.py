"""How good are the vectors? Metrics over pairs of sentences, each beside a plain baseline.

Floor 2: it evaluates checkpoints, and those are `training`'s. Only `evaluation.checkpoint`
knows that, and torch; everything else runs without either.
"""
