"""`gradest.numpyro.ELBO`: numpyro's SVI, with a sampler for each latent site of the guide.

numpyro is imported when this module is: `import gradest.numpyro`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer import elbo
from numpyro.infer.util import is_identically_one
from numpyro.primitives import Messenger
from numpyro.util import check_model_guide_match

from . import _check
from ._credit import Place, Plate, Staged
from ._derivatives.primitives import without_score
from ._sampler import Sampler


class ELBO(elbo.ELBO):
    r"""An evidence lower bound for `numpyro.infer.SVI`, drawn by gradest's samplers.

    .. math:: L = E_{q(z)}[\log p(x, z) - \log q(z)]

    Each latent site of the guide is drawn by the sampler that is named for it, the others by
    `default`; discrete and continuous ones may be together. The terms of the bound, log p and
    -log q of each site, are costs of their own. Cost-based draws that share no term, directly or
    through other draws, are estimated apart, as in numpyro's `TraceGraph_ELBO`; of those that do,
    each is credited with the terms that need it or a later one. In a plate, each lane is
    estimated by itself, with its own terms, if all terms that depend on the draw are in the
    plate: plates are taken at their word.

    Assumptions, bias and variance are those of the samplers, but that the score of a cost-based
    draw's own log q, whose mean is zero, is left out. The draws are of gradest's law of
    the same name, a float for a Bernoulli; a `Delta` of the guide is its value, and is not drawn.
    Sites inside numpyro's `scan` are not reached. Cost evaluations per gradient and particle:
    those of the samplers, of the terms that depend on the draw.

    Args:
      samplers: of latent sites, by their names in the guide.
      default: the sampler of all other latent sites.
      num_particles: how many times the bound is drawn, to be averaged.
      baseline: None, or "leave_one_out" of the particles, as in `gradest.expectation`.

    Raises:
      TypeError: if what is given is no sampler; from a sampler, for a law that it does not have.
      ValueError: if `samplers` names a site that the guide does not have.
      NotImplementedError: if a discrete site of the guide is drawn inside numpyro's `scan`.

    Example:
      >>> import gradest as ge, gradest.numpyro, jax, numpyro, numpyro.distributions as dist
      >>> def model(x):
      ...     rain = numpyro.sample("rain", dist.Bernoulli(0.3))
      ...     numpyro.sample("x", dist.Normal(2.0 * rain, 1.0), obs=x)
      >>> def guide(x):
      ...     numpyro.sample("rain", dist.Bernoulli(numpyro.param("p", 0.5)))
      >>> elbo = gradest.numpyro.ELBO({"rain": ge.enumeration()}, default=ge.reparameterize())
      >>> svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(0.1), elbo)   # and svi.run
      >>> loss = lambda p: elbo.loss(jax.random.key(0), {"p": p}, model, guide, 1.4)
      >>> print(f"{jax.grad(loss)(0.5):.4f}")  # minus the logit of the posterior
      0.0473

    Reference:
      Schulman, Heess, Weber and Abbeel 2015, "Gradient Estimation Using Stochastic Computation
      Graphs", eq. 5.
    """

    can_infer_discrete = True

    def __init__(
        self,
        samplers: Mapping[str, Sampler] | None = None,
        *,
        default: Sampler,
        num_particles: int = 1,
        baseline: str | None = None,
    ):
        super().__init__(num_particles=_check.integer("num_particles", num_particles, 1))
        self.samplers = dict(samplers or {})
        self.default = default
        self.baseline = baseline
        for name, sampler in {**self.samplers, "default": default}.items():
            if not isinstance(sampler, Sampler):
                raise TypeError(
                    f"samplers: expected a sampler for {name}, got {type(sampler).__name__}. Make "
                    "one: gradest.rebar()."
                )

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, Any],
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The negative bound, with its gradient attached, and the state of `numpyro.mutable` sites.

        Args:
          rng_key: a PRNG key.
          param_map: the values of `numpyro.param` sites, and the state of mutable ones.
          model: with numpyro's primitives.
          guide: likewise.
          args: of the model and the guide.
          kwargs: likewise.

        Returns:
          A dictionary of the `loss` and of the `mutable_state`, or None: that of
          one run, with plain draws.
        """

        staged = self._staged(rng_key, param_map, model, guide, args, kwargs)
        loss = staged.estimate(self.num_particles, self.baseline)
        return {"loss": loss, "mutable_state": staged.rest() or None}

    def _staged(
        self, key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Staged:
        """Model and guide as a function of the guide's latent sites."""
        model_key, guide_key, draw_key = jax.random.split(key, 3)

        def traced(function: Any, key: jax.Array, params: Any) -> Any:
            return trace(seed(substitute(function, data=params), key)).get_trace(*args, **kwargs)

        def draw_all() -> Any:
            drawn = []

            def draw(site: Any) -> Any:
                x = self._draw(site, jax.random.fold_in(draw_key, len(drawn)))
                drawn.append((_place(site, site["fn"].batch_shape), x))
                return x

            traced(_Latents(guide, draw), guide_key, params)
            return drawn

        shapes = jax.eval_shape(draw_all)
        drawn = [(place, shape, self._sampler(place.name)) for place, shape in shapes]
        names = [place.name for place, _ in shapes]
        unknown = [name for name in self.samplers if name not in names]
        if unknown:
            raise ValueError(
                f"samplers: expected names of the guide's latent sites, {', '.join(names)}, got "
                f"{unknown[0]}."
            )

        def run(values: Mapping[str, jax.Array]) -> Any:
            laws = []

            def put(site: Any) -> Any:
                laws.append(self._sampler(site["name"])._opened(site["fn"], None))
                return values[site["name"]]

            of_guide = traced(_Latents(guide, put), guide_key, params)
            _check_drawn(of_guide, values)
            mutable = _mutable(of_guide)
            of_model = traced(replay(model, of_guide), model_key, {**params, **mutable})
            check_model_guide_match(of_model, of_guide)
            terms = [
                *_terms(of_guide, 1.0, self._log_q),
                *_terms(of_model, -1.0, lambda site, law: law.log_prob(site["value"])),
            ]
            return laws, terms, {**mutable, **_mutable(of_model)}

        return Staged(run, drawn, draw_key)

    def _sampler(self, name: str) -> Sampler:
        return self.samplers.get(name, self.default)

    def _log_q(self, site: Any, law: Any) -> jax.Array:
        """The log-probability of a guide's site, in its term.

        A score has mean zero: that of a cost-based draw's own term would be noise.
        """
        x = site["value"]
        if site["is_observed"] or self._sampler(site["name"]).pathwise:
            return law.log_prob(x)
        fixed = jax.lax.stop_gradient
        return fixed(law).log_prob(x) + without_score(law.log_prob(fixed(x)))

    def _draw(self, site: Any, key: jax.Array) -> Any:
        try:
            return self._sampler(site["name"])(key, site["fn"])
        except Exception as error:
            name = site["name"]
            named = ", ".join(self.samplers) or "nothing"
            by = "its own sampler" if name in self.samplers else f"`default`; samplers= has {named}"
            error.add_note(f"This is the site {name!r} of the guide, which is drawn by {by}.")
            raise


class _Latents(Messenger):
    """Hands the latent sites of a guide to a function, which returns their values."""

    def __init__(self, fn: Callable[..., Any], value_of: Callable[[Any], Any]):
        super().__init__(fn)
        self._value_of = value_of

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["value"] is not None or _is_delta(msg["fn"]):
            return
        shape = msg["kwargs"].get("sample_shape", ())
        if shape:
            msg["fn"] = msg["fn"].expand((*shape, *msg["fn"].batch_shape))
            msg["kwargs"]["sample_shape"] = ()
        msg["value"] = self._value_of(msg)


def _is_delta(law: Any) -> bool:
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return isinstance(law, dist.Delta)


def _place(site: Any, batch_shape: Any) -> Place:
    plates = tuple(Plate(*frame) for frame in site["cond_indep_stack"])
    return Place(site["name"], plates, tuple(batch_shape))


def _terms(
    traced: Any, sign: float, log_prob_of: Callable[[Any, Any], jax.Array]
) -> Iterator[tuple[Place, jax.Array]]:
    """The log-probabilities of the sample sites of a trace, times the sign."""
    for site in traced.values():
        if site["type"] == "sample":
            law = site["fn"] if site["is_observed"] else _unvalidated(site["fn"])
            log_prob = log_prob_of(site, law)
            scale = site["scale"]
            if scale is not None and not is_identically_one(scale):
                log_prob = scale * log_prob
            yield _place(site, jnp.shape(log_prob)), sign * log_prob


def _unvalidated(law: Any) -> Any:
    """The same law, whose density is not minus infinity at relaxed draws, off the support."""
    law = copy.copy(law)
    law._validate_args = False
    for name, part in vars(law).items():
        if isinstance(part, dist.Distribution):
            setattr(law, name, _unvalidated(part))
    return law


def _mutable(traced: Any) -> dict[str, Any]:
    sites = traced.items()
    return {name: site["value"] for name, site in sites if site["type"] == "mutable"}


def _check_drawn(of_guide: Any, values: Mapping[str, Any]) -> None:
    """Raises for a discrete site that no sampler has drawn."""
    for name, site in of_guide.items():
        latent = site["type"] == "sample" and not site["is_observed"] and name not in values
        if latent and not _is_delta(site["fn"]) and not site["fn"].has_rsample:
            raise NotImplementedError(
                f"samplers: the site {name!r} of the guide is drawn inside numpyro's scan, or has "
                "a value that was put there, and no sampler draws it. Write the loop in Python, "
                "or draw all its variables at one site."
            )
