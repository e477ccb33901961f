"""The equations that a loss leaves in a staged program: draws and costs."""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from ._derivatives.primitives import lanes_first

sample_p = core.Primitive("gradest_sample")
sample_p.multiple_results = True

cost_p = core.Primitive("gradest_cost")


class Site(abc.ABC):
    """The static half of a `sample_p` equation: what to draw from its operands."""

    @abc.abstractmethod
    def draw(self, key: jax.Array, *operands: jax.Array) -> list[jax.Array]:
        """The leaves of one draw."""

    @abc.abstractmethod
    def vmapped(self, key_shared: bool, mapped: Sequence[bool]) -> "Site":
        """The site of the joint draw over the lanes of a `jax.vmap`.

        Every operand it gets has the lanes along its first axis, those that were not mapped
        too, and so has the key, repeated where `key_shared`.
        """


# Run by itself, it may meet a number of the program that is not yet an array.
sample_p.def_impl(lambda *args, site: site.draw(*map(jnp.asarray, args)))
mlir.register_lowering(
    sample_p, mlir.lower_fun(lambda *args, site: site.draw(*args), multiple_results=True)
)


@sample_p.def_abstract_eval
def _(*avals: Any, site: Site) -> list[Any]:
    out = jax.eval_shape(site.draw, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
    return [jax.core.ShapedArray(o.shape, o.dtype) for o in out]


def _batch_sample(args: Sequence[Any], dims: Sequence[Any], *, site: Site) -> Any:
    mapped = [d is not None for d in dims]
    site = site.vmapped(not mapped[0], mapped[1:])
    out = sample_p.bind(*lanes_first(args, dims), site=site)
    return out, [0] * len(out)


batching.primitive_batchers[sample_p] = _batch_sample


def cost_outside(*_: Any, **__: Any) -> Exception:
    return RuntimeError(
        "gradest.cost: expected to run inside a loss under gradest.expectation, which collects "
        "the costs. Wrap the loss in gradest.expectation, or add the term to its result."
    )


def _cost_outside(*_: Any, **__: Any) -> Any:
    raise cost_outside()


cost_p.def_impl(_cost_outside)
mlir.register_lowering(cost_p, _cost_outside)
cost_p.def_abstract_eval(lambda aval, *, where: aval)


def _batch_cost(args: Sequence[Any], dims: Sequence[Any], *, where: str) -> Any:
    # Under vmap a cond evaluates both of its branches: whose cost this is cannot be told.
    raise NotImplementedError(
        f"gradest.cost: a cost{where} is under jax.vmap inside a loss, where it cannot be told "
        "whether a branch that holds it is taken. Vmap the expectation of a per-lane loss, "
        "jax.vmap(gradest.expectation(per_lane_loss)), or return the costs from the vmapped "
        "function and give gradest.cost the whole array."
    )


batching.primitive_batchers[cost_p] = _batch_cost


def _differentiate_cost(*_: Any, where: str) -> Any:
    raise NotImplementedError(
        f"gradest.cost: a cost{where} is inside a function that the loss itself differentiates. "
        "Give the costs to gradest.cost outside of that jax.grad, or jax.jvp; auxiliary output "
        "(has_aux=True) takes them there."
    )


ad.primitive_jvps[cost_p] = _differentiate_cost
