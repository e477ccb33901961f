"""What a checker of types is told of the arguments of samplers."""

from typing import Any, Protocol


class DistributionLike(Protocol):
    """A distribution of gradest's, numpyro's, distrax's, TFP's or the user's own.

    For a checker of types, which tells it from an array of logits: an array cannot be sampled.
    Libraries spell the arguments of `sample` differently, so that they are not looked at here.
    What else a sampler needs of a distribution, `log_prob` or a family that it knows, it checks
    itself when it draws, with an error that names the remedy.
    """

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        """One draw, or more of them."""
        ...
