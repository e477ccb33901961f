"""Latent variables and terms of a probabilistic program, and which draws a term is credited to.

What a program knows is staged once, as a function of all its latent variables: their laws and the
terms of the loss. From the staged program it is read which latents a law or a term depends on, so
that a cost-based draw is credited

* with the terms of its own part of the program: latents and terms that depend on each other;
* among those, with the ones that depend on it or on what is drawn after it;
* in a plate, with those of its own lane, if all its part is in the plate.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from . import _jaxpr
from ._plates import pick, spread
from ._sampler import Sampler
from ._transform.expectation import expectation
from ._transform.spend import cost
from .distributions import base


class Plate(NamedTuple):
    """A dimension along which a site's elements are independent.

    Attributes:
      name: the same at every site of the plate.
      dim: negative, among the site's dimensions that are not of one event.
      size: how many lanes there are.
    """

    name: str
    dim: int
    size: int


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Place:
    """Where a latent or a term is.

    Attributes:
      name: of the site.
      plates: that it is in.
      batch_shape: of the site's independent elements; those of a term are its elements.
    """

    name: str
    plates: tuple[Plate, ...]
    batch_shape: tuple[int, ...]

    def axis(self, plate: str) -> int | None:
        """The plate's axis, if the site has all its lanes."""
        for name, dim, size in self.plates:
            axis = len(self.batch_shape) + dim
            if name == plate and axis >= 0 and self.batch_shape[axis] == size:
                return axis
        return None

    def axes(self, plates: Iterable[str]) -> list[tuple[int, str]]:
        """Those plates that the site has all lanes of, with their axes, from the first on."""
        found = [(self.axis(plate), plate) for plate in plates]
        return sorted((axis, plate) for axis, plate in found if axis is not None)


@dataclasses.dataclass(frozen=True)
class Latent:
    """A latent variable: where it is, its sampler and its key, and what its law is made of.

    Attributes:
      place: in the program.
      sampler: that draws it.
      key: of its draw.
      needs: the names of the latents that its law depends on.
    """

    place: Place
    sampler: Sampler
    key: jax.Array
    needs: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Term:
    """One of the terms whose sum is the loss, with the position of its elements in the results."""

    place: Place
    result: int
    needs: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Part:
    """Cost-based latents and terms that depend on each other, and on no others."""

    members: tuple[str, ...]
    terms: tuple[Term, ...]


class Staged:
    """A program as a function of its latents.

    Args:
      run: of a dictionary of all latents; returns (laws, terms, rest): a law for each latent, in
        order, a list of pairs of a `Place` and an array, and anything.
      drawn: for each latent, in the order of the program, its place, its shape and its sampler.
      key: that the latents' keys are made of.
    """

    def __init__(
        self,
        run: Callable[[Mapping[str, Any]], Any],
        drawn: Sequence[tuple[Place, jax.ShapeDtypeStruct, Sampler]],
        key: jax.Array,
    ):
        shapes = {place.name: shape for place, shape, _ in drawn}
        closed, out = jax.make_jaxpr(run, return_shape=True)(shapes)
        self._jaxpr, self._consts = _jaxpr.open_jaxpr(closed)
        self._shapes = dict(sorted(shapes.items()))
        results = iter(range(len(self._jaxpr.outvars)))
        self._laws, terms, self._rest = jax.tree.map(lambda _: next(results), out)
        inputs = dict(enumerate(self._shapes, start=len(self._consts)))
        needs = [
            frozenset(inputs[i] for i in of if i in inputs) for of in _jaxpr.dependence(self._jaxpr)
        ]
        self.latents = {}
        for i, ((place, _, sampler), law) in enumerate(zip(drawn, self._laws, strict=True)):
            of_law = frozenset[str]().union(*(needs[j] for j in jax.tree.leaves(law)))
            latent = Latent(place, sampler, jax.random.fold_in(key, i), of_law)
            self.latents[place.name] = latent
        self.terms = [Term(place, i, needs[i]) for place, i in terms]

    # ---- What depends on what --------------------------------------------------------------

    @functools.cached_property
    def _ancestors(self) -> dict[str, frozenset[str]]:
        """Of each latent the cost-based ones that its law depends on."""
        found: dict[str, frozenset[str]] = {}
        for name, latent in self.latents.items():
            found[name] = self._credited(latent.needs, found)
        return found

    def _credited(
        self, needs: Iterable[str], ancestors: Mapping[str, frozenset[str]]
    ) -> frozenset[str]:
        own = frozenset(name for name in needs if not self.latents[name].sampler.pathwise)
        return own.union(*(ancestors[name] for name in needs))

    def credited(self, term: Term) -> frozenset[str]:
        """The cost-based latents that a term depends on."""
        return self._credited(term.needs, self._ancestors)

    def parts(self) -> list[Part]:
        """The program in parts, the first of which depends on no cost-based latent."""
        groups: list[set[str]] = []
        for term in self.terms:
            joined = set(self.credited(term))
            for group in [g for g in groups if not g.isdisjoint(joined)]:
                groups.remove(group)
                joined |= group
            if joined:
                groups.append(joined)
        of = lambda group: tuple(t for t in self.terms if self._is_of(t, group))
        members = lambda group: tuple(name for name in self.latents if name in group)
        return [Part(members(group), of(group)) for group in (set[str](), *groups)]

    def _is_of(self, term: Term, group: set[str]) -> bool:
        credited = self.credited(term)
        return not credited if not group else not group.isdisjoint(credited)

    def lanes(self, part: Part) -> dict[str, int]:
        """The plates, and their sizes, in which all of the part is."""
        inside = [self.latents[name].place for name in self._per_lane(part)]
        plates = {name: size for place in inside for name, _, size in place.plates}
        places = [*inside, *(term.place for term in part.terms)]
        splits = all(self._is_split(name) for name in self._per_lane(part))
        return {
            name: size
            for name, size in plates.items()
            if splits and all(place.axis(name) is not None for place in places)
        }

    def _per_lane(self, part: Part) -> list[str]:
        """The latents that a lane of the part draws by itself: members, and what needs them."""
        group = set(part.members)
        return [n for n in self.latents if n in group or not group.isdisjoint(self._ancestors[n])]

    def _is_split(self, name: str) -> bool:
        """Whether a law is gradest's, whose leading axes are those of its draws."""
        law = self._law(name)
        shape = self.latents[name].place.batch_shape
        leaves = [self._jaxpr.outvars[i].aval for i in jax.tree.leaves(law)]
        own = jax.tree.structure(law).node_data()
        is_own = own is not None and issubclass(own[0], base.Distribution)
        return is_own and all(leaf.shape[: len(shape)] == shape for leaf in leaves)

    # ---- Evaluation ------------------------------------------------------------------------

    def _law(self, name: str) -> Any:
        return self._laws[list(self.latents).index(name)]

    def results(self, positions: Any, values: Mapping[str, jax.Array]) -> Any:
        """Results of the program, by a tree of their positions, from the latents they need."""
        leaves, treedef = jax.tree.flatten(positions)
        outvars = [self._jaxpr.outvars[i] for i in leaves]
        eqns, _ = _jaxpr.needed(self._jaxpr, outvars)
        part = self._jaxpr.replace(eqns=eqns, outvars=outvars)
        # Latents that are not drawn yet are in operands that these results do not depend on.
        latents = [
            values[name] if name in values else jnp.zeros(shape.shape, shape.dtype)
            for name, shape in self._shapes.items()
        ]
        outs = core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))(*self._consts, *latents)
        return jax.tree.unflatten(treedef, outs)

    def estimate(self, num_samples: int, baseline: Any) -> jax.Array:
        """The sum of all terms, with its gradient attached; the options are `expectation`'s."""
        parts = self.parts()
        takes = lambda part: any(self.latents[n].sampler.takes_baseline for n in part.members)
        # Where no part takes the baseline, `expectation` says so.
        of_all = not any(map(takes, parts))
        estimates = [
            self._of_part(part, num_samples, baseline if of_all or takes(part) else None)
            for part in parts
        ]
        return sum(estimates, start=jnp.zeros(()))

    def _of_part(self, part: Part, num_samples: int, baseline: Any) -> jax.Array:
        plates = self.lanes(part)

        def loss(lanes: tuple[jax.Array, ...]) -> jax.Array:
            self._run(part, dict(zip(plates, lanes, strict=True)), plates)
            return jnp.zeros(())

        def over(lanes: tuple[jax.Array, ...], sizes: Sequence[int]) -> jax.Array:
            if not sizes:
                run = expectation(loss, num_samples=num_samples, baseline=baseline)
                return run(lanes)
            of_lane = lambda lane: over((*lanes, lane), sizes[1:])
            return jnp.sum(jax.vmap(of_lane)(jnp.arange(sizes[0])))

        return over((), list(plates.values()))

    def _run(self, part: Part, lanes: Mapping[str, jax.Array], sizes: Mapping[str, int]) -> None:
        """One run of a part, in one lane of its plates: draws its latents, spends its terms."""
        values: dict[str, jax.Array] = {}
        waiting = list(part.terms)
        per_lane, group = set(self._per_lane(part)), set(part.members)
        wanted = self._wanted(part)

        def draw(name: str) -> None:
            latent = self.latents[name]
            law = self.results(self._law(name), values)
            if name not in per_lane:
                values[name] = latent.sampler(latent.key, law)
                return
            axes = latent.place.axes(lanes)
            # From the last axis on, so that those before it stay where they are.
            for axis, plate in reversed(axes):
                law = jax.tree.map(functools.partial(pick, lanes[plate], axis=axis), law)
            key = functools.reduce(jax.random.fold_in, lanes.values(), latent.key)
            x = latent.sampler(key, law)
            for axis, plate in axes:
                x = spread(lanes[plate], x, sizes[plate], axis)
            values[name] = x

        for member in (None, *part.members):
            if member is not None:
                draw(member)
            drawn = group & values.keys()
            for name in wanted:
                if name not in values and name not in group and self._ancestors[name] <= drawn:
                    draw(name)
            ready = [term for term in waiting if self.credited(term) <= drawn]
            waiting = [term for term in waiting if term not in ready]
            for term in ready:
                x = self.results(term.result, values)
                for axis, plate in reversed(term.place.axes(lanes)):
                    x = pick(lanes[plate], x, axis)
                cost(jnp.sum(x))

    def _wanted(self, part: Part) -> list[str]:
        """The latents on which the part's terms depend, in the order of the program."""
        wanted = set(part.members).union(*(term.needs for term in part.terms))
        for name in reversed(self.latents):
            if name in wanted:
                wanted |= self.latents[name].needs
        return [name for name in self.latents if name in wanted]

    def rest(self) -> Any:
        """The rest of the results, of a run of the whole program with plain draws."""
        if not jax.tree.leaves(self._rest):
            return self._rest

        def loss() -> Any:
            values: dict[str, jax.Array] = {}
            for name, latent in self.latents.items():
                values[name] = latent.sampler(latent.key, self.results(self._law(name), values))
            return jnp.zeros(()), self.results(self._rest, values)

        return expectation(loss, has_aux=True)()[1]
