"""Problems on which the estimators are compared, by `python -m gradest` among others.

They are written as any user of gradest would write them, with the public names alone, and need
the `examples` extra: flax, matplotlib, rich and scikit-learn.
"""


class ProblemError(Exception):
    """What whoever called can put right; the command line prints it as one line."""


PROBLEMS = ("digits", "mnist", "toy")
LATENTS = ("bernoulli", "categorical")
#: Of `gradest table`.
DURATION = "some five minutes on two cores"
