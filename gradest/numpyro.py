"""`gradest.numpyro.ELBO`: numpyro's SVI, with a sampler for each latent site of the guide.

numpyro is imported when this module is: `import gradest.numpyro`.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer import elbo
from numpyro.infer.util import is_identically_one
from numpyro.primitives import Messenger, prng_key
from numpyro.util import check_model_guide_match

from . import _check, _mesh
from ._credit import Place, Plate, Staged
from ._derivatives.vanishing import without_score
from ._sampler import Sampler
from ._transform.expectation import expectation


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
    Where latent sites of the guide are inside numpyro's `scan`, by the samplers that may be in a
    loop, each draw of the guide is credited with all terms, and keeps the type of numpyro's draws.
    Cost evaluations per gradient and particle: those of the samplers, of the terms that depend on
    the draw.

    Args:
      samplers: of latent sites, by their names in the guide.
      default: the sampler of all other latent sites.
      num_particles: how many times the bound is drawn, to be averaged.
      baseline: None, or "leave_one_out" of the particles, as in `gradest.expectation`.

    Raises:
      TypeError: if what is given is no sampler; from a sampler, for a law that it does not have.
      ValueError: if `samplers` names a site that the guide does not have.
      NotImplementedError: for a discrete site of the guide that a handler gives a value; from a
        sampler that may not be in a loop, for a site inside numpyro's `scan`.

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
        baseline: Literal["leave_one_out"] | None = None,
    ):
        super().__init__(num_particles=_check.integer("num_particles", num_particles, 1))
        self.samplers = dict(samplers or {})
        self.default = default
        self.baseline: Literal["leave_one_out"] | None = baseline
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

        program = _Program(rng_key, param_map, model, guide, args, kwargs)
        drawn, in_loops = self._drawn(program)
        names = [*(place.name for place, *_ in drawn), *in_loops]
        unknown = [name for name in self.samplers if name not in names]
        if unknown:
            raise ValueError(
                f"samplers: expected names of the guide's latent sites, {', '.join(names)}, got "
                f"{unknown[0]}."
            )
        if in_loops:
            loss, mutable = self._whole(program)
        else:
            staged = self._staged(program, drawn)
            loss = staged.estimate(self.num_particles, self.baseline)
            mutable = staged.rest()
        return {"loss": loss, "mutable_state": mutable or None}

    def _drawn(self, program: "_Program") -> tuple[Any, list[str]]:
        """The latent sites of the guide, as `Staged` takes them; the names of those in loops."""
        in_loops: list[str] = []

        def draw_in_loop(site: Any) -> Any:
            in_loops.append(site["name"])
            return self._draw_in_loop(site)

        def draw_all() -> Any:
            drawn = []

            def draw(site: Any) -> Any:
                x = self._draw(site, jax.random.fold_in(program.draw_key, len(drawn)))
                drawn.append((_place(site, site["fn"].batch_shape), x))
                return x

            program.of_guide(draw, draw_in_loop)
            return drawn

        shapes = jax.eval_shape(draw_all)
        drawn = [(place, shape, self._sampler(place.name)) for place, shape in shapes]
        return drawn, list(dict.fromkeys(in_loops))

    def _staged(self, program: "_Program", drawn: Any) -> Staged:
        """Model and guide as a function of the guide's latent sites."""

        def run(values: Mapping[str, jax.Array]) -> Any:
            laws = []

            def put(site: Any) -> Any:
                laws.append(self._sampler(site["name"])._opened(site["fn"], None))
                return values[site["name"]]

            terms, mutable = self._evaluated(program, put, set(values))
            return laws, terms, mutable

        return Staged(run, drawn, program.draw_key)

    def _whole(self, program: "_Program") -> tuple[jax.Array, Any]:
        """The bound of a guide with latent sites in loops, of which each is credited with all."""
        of_runs = self.num_particles > 1

        @expectation(has_aux=True, num_samples=self.num_particles, baseline=self.baseline)
        def loss() -> Any:
            names: set[str] = set()

            def draw(site: Any) -> Any:
                key = jax.random.fold_in(program.draw_key, len(names))
                names.add(site["name"])
                return self._draw(site, key)

            def draw_in_loop(site: Any) -> Any:
                names.add(site["name"])
                return self._draw_in_loop(site)

            terms, mutable = self._evaluated(program, draw, names, draw_in_loop)
            return sum((jnp.sum(term) for _, term in terms), start=jnp.zeros(())), mutable

        value, mutable = loss()
        return value, jax.tree.map(lambda x: x[0], mutable) if of_runs else mutable

    def _evaluated(
        self, program: "_Program", draw: Any, names: set[str], draw_in_loop: Any = None
    ) -> tuple[list[tuple[Place, jax.Array]], dict[str, Any]]:
        """The terms of the bound, and the mutable state, where the sites `names` are drawn."""
        of_guide = program.of_guide(draw, draw_in_loop)
        _check_drawn(of_guide, names)
        mutable = _mutable(of_guide)
        of_model = program.of_model(of_guide, mutable)
        check_model_guide_match(of_model, of_guide)
        terms = [
            *_terms(of_guide, 1.0, self._log_q),
            *_terms(of_model, -1.0, lambda site, law: law.log_prob(site["value"])),
        ]
        return terms, {**mutable, **_mutable(of_model)}

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
        # Before it is staged, or what is staged would make them vary once more.
        own, y = _mesh.varying_alike(law, fixed(x))
        return fixed(law).log_prob(x) + without_score(lambda: own.log_prob(y))

    def _draw(self, site: Any, key: jax.Array) -> Any:
        try:
            return self._sampler(site["name"])(key, site["fn"])
        except Exception as error:
            name = site["name"]
            named = ", ".join(self.samplers) or "nothing"
            by = "its own sampler" if name in self.samplers else f"`default`; samplers= has {named}"
            error.add_note(f"This is the site {name!r} of the guide, which is drawn by {by}.")
            raise

    def _draw_in_loop(self, site: Any) -> Any:
        key = prng_key()
        assert key is not None
        x = self._draw(site, key)
        # What the loop carries is of the type of numpyro's own draws.
        own = jax.eval_shape(site["fn"].sample, jax.random.key(0))
        return jax.tree.map(lambda x, own: x.astype(own.dtype), x, own)


class _Program:
    """A model and a guide, at their parameters and arguments."""

    def __init__(self, key: jax.Array, params: Any, model: Any, guide: Any, args: Any, kwargs: Any):
        self._model_key, self._guide_key, self.draw_key = jax.random.split(key, 3)
        self._model, self._guide, self._params = model, guide, params
        self._args, self._kwargs = args, kwargs

    def of_guide(self, draw: Any, draw_in_loop: Any) -> Any:
        """Its trace, with latent sites that these draw."""
        return self._traced(_Latents(self._guide, draw, draw_in_loop), self._guide_key, {})

    def of_model(self, of_guide: Any, mutable: Mapping[str, Any]) -> Any:
        """Its trace at the latent sites of the guide's."""
        return self._traced(replay(self._model, of_guide), self._model_key, mutable)

    def _traced(self, function: Any, key: jax.Array, mutable: Mapping[str, Any]) -> Any:
        program = seed(substitute(function, data={**self._params, **mutable}), key)
        return trace(program).get_trace(*self._args, **self._kwargs)


class _Latents(Messenger):
    """Hands latent sites to a function, which returns their values; those in a scan to another."""

    def __init__(self, fn: Any, value_of: Callable[[Any], Any], in_loop: Any):
        super().__init__(fn)
        self._value_of, self._in_loop = value_of, in_loop

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "control_flow" and self._in_loop is not None:
            body, *rest = msg["args"]
            msg["args"] = (_Latents(body, self._in_loop, self._in_loop), *rest)
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


def _check_drawn(of_guide: Any, names: set[str]) -> None:
    """Raises for a discrete site that no sampler has drawn."""
    for name, site in of_guide.items():
        latent = site["type"] == "sample" and not site["is_observed"] and name not in names
        if latent and not _is_delta(site["fn"]) and not site["fn"].has_rsample:
            raise NotImplementedError(
                f"samplers: the site {name!r} of the guide has a value that was put there, and no "
                "sampler draws it. Condition the model on the value, and leave the site out of the "
                "guide: numpyro.handlers.condition, numpyro.handlers.block."
            )
