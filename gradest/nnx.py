"""`gradest.nnx.expectation`: losses that take flax.nnx modules, and change their state.

Flax is imported when this module is: `import gradest.nnx`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

import jax
from flax.nnx.extract import NodeStates
from flax.nnx.transforms.general import merge_inputs, split_inputs

from ._transform.arguments import Arguments, is_of_nnx
from ._transform.expectation import expectation as _expectation

P = ParamSpec("P")
T = TypeVar("T")


@overload
def expectation(loss: Callable[P, T], has_aux: bool = False, **options: Any) -> Callable[P, T]: ...


@overload
def expectation(
    *, has_aux: bool = False, **options: Any
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...


def expectation(
    loss: Callable[..., Any] | None = None, has_aux: bool = False, **options: Any
) -> Any:
    """`gradest.expectation` of a loss whose arguments hold flax.nnx modules.

    Modules, `nnx.Rngs` and variables may be anywhere among the arguments. What the loss changes in
    them is carried out once, as under `nnx.grad`: the statistics of a BatchNorm, the counts of
    Rngs, variables that it makes. It is auxiliary output of `gradest.expectation`: never
    differentiated, and that of the run that is evaluated, where that is one run; else that of one
    run with plain draws. Of several runs (`num_samples`) it is that of the first, and all of them
    have the same keys of Rngs, so that masks of dropout are common; draws are anew in each.

    It composes with `nnx.jit`, `nnx.grad`, `nnx.value_and_grad`, `nnx.scan`, `nnx.vmap` and
    `nnx.Optimizer` like any function of modules. An `nnx.Param` may be an option of a sampler, and
    `rngs.sample()` a key. What a module is made of is known when the loss is staged; modules that
    the loss closes over, and does not have as arguments, must not change. A function that closes
    over modules may be under `jax.vmap` and `gradest.monte_carlo` where the loss does not change
    those.

    Bias, variance and cost evaluations are those of `gradest.expectation`.

    Args:
      loss: as of `gradest.expectation`. Without one, `gradest.nnx.expectation(has_aux=True)` is a
        decorator.
      has_aux: whether `loss` returns a pair of the scalar and auxiliary output, in which there may
        be modules.
      options: those of `gradest.expectation`.

    Returns:
      A function with the arguments of `loss`, which returns a scalar, or the scalar and the
      auxiliary output, and changes the modules as `loss` does.

    Raises:
      ValueError: if the loss changes an argument that is none of flax.nnx (a list, say) and does
        not return what is new as auxiliary output; and as `gradest.expectation`.
      TypeError, NotImplementedError, UnestimatedGradientError: as `gradest.expectation`.

    Example:
      >>> import gradest as ge, gradest.nnx, jax
      >>> from flax import nnx
      >>> from gradest.distributions import Bernoulli
      >>> @gradest.nnx.expectation
      ... def loss(model, rngs, x):
      ...     bits = ge.rebar()(rngs.sample(), Bernoulli(model(x)))
      ...     return ((bits - 0.45) ** 2).mean()
      >>> model, rngs = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Rngs(sample=1)
      >>> value, gradient = nnx.value_and_grad(loss)(model, rngs, jax.numpy.ones((5, 3)))
      >>> gradient["kernel"].shape, int(rngs.sample.count[...])
      ((3, 2), 1)

    Reference:
      As of `gradest.expectation`: Schulman, Heess, Weber and Abbeel 2015, eq. 5 and Theorem 1.
    """
    if loss is None:
        return functools.partial(expectation, has_aux=has_aux, **options)
    if not callable(loss):
        return _expectation(loss)  # which says so
    several = options.get("num_samples", 1) != 1

    def watched(args: Any, kwargs: Any) -> Any:
        arguments = Arguments(args, kwargs, is_leaf=is_of_nnx)
        out = loss(*args, **kwargs)
        arguments.check(out[1:] if has_aux and isinstance(out, tuple) else ())
        return out

    @functools.wraps(loss)
    def pure(given: Any) -> Any:
        left, out = merge_inputs(watched, ctxtag=_TAG)(*given)
        if not has_aux:
            return out, (_changes(given, left), None)
        if not (isinstance(out, tuple) and len(out) == 2):
            return out  # which is complained of
        return out[0], (_changes(given, left), out[1])

    def split(*given: Any) -> Any:
        value, (changes, aux) = _expectation(pure, has_aux=True, **options)(given)
        left = _written(given, changes.put(given, first=several), aux)
        return left, (value, aux) if has_aux else value

    @functools.wraps(loss)
    def estimate(*args: Any, **kwargs: Any) -> Any:
        return split_inputs(split, ctxtag=_TAG)(args, kwargs)

    return estimate


_TAG = "gradest.nnx.expectation"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["new"], meta_fields=["treedef", "kept"]
)
@dataclasses.dataclass(frozen=True)
class _Changes:
    """The arguments as a loss has left them, by what is new in them.

    What it has not changed stays what it was: auxiliary output is not differentiated, and the
    parameters of a module still are after the loss.

    Attributes:
      new: the leaves that were none of the arguments'.
      treedef: structure of what the loss has left.
      kept: for each of its leaves the position among the arguments' leaves, or None for a new one.
    """

    new: list[Any]
    treedef: Any
    kept: tuple[int | None, ...]

    def put(self, given: Any, *, first: bool) -> Any:
        """The arguments `given`, changed; by the `first` of several runs, if there are several."""
        before, new = jax.tree.leaves(given), iter(self.new)
        take = lambda x: x[0] if first else x
        leaves = [take(next(new)) if i is None else before[i] for i in self.kept]
        return jax.tree.unflatten(self.treedef, leaves)


def _written(given: Any, left: Any, aux: Any) -> Any:
    """What of `left` there is to write: flax refuses to write in another trace than its own.

    A module or a variable that is as it was is None there, unless what is written refers to it.
    """
    referred = set().union(*map(_indices, _nodes(aux)))
    nodes, treedef = jax.tree.flatten(left, is_leaf=_is_node)
    for i, before in reversed(list(enumerate(_nodes(given)))):
        indices = _indices(nodes[i])
        if _alike(before, nodes[i]) and not indices & referred:
            nodes[i] = None
        else:
            referred |= indices
    return jax.tree.unflatten(treedef, nodes)


def _nodes(tree: Any) -> list[NodeStates]:
    return list(filter(_is_node, jax.tree.leaves(tree, is_leaf=_is_node)))


def _is_node(x: Any) -> bool:
    return isinstance(x, NodeStates)


def _indices(node: NodeStates) -> set[int]:
    """The numbers that flax gives the modules and variables in it."""
    indices = (getattr(x, "index", None) for x in node.graphdef.nodes)
    return {index for index in indices if index is not None}


def _alike(before: NodeStates, after: NodeStates) -> bool:
    """Whether they are made of the same, and hold the same arrays."""
    one, other = (x.graphdef.with_no_outer_index() for x in (before, after))
    arrays = zip(jax.tree.leaves(before.states), jax.tree.leaves(after.states), strict=False)
    return one == other and all(a is b for a, b in arrays)


def _changes(given: Any, left: Any) -> _Changes:
    places = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(given))}
    leaves, treedef = jax.tree.flatten(left)
    kept = tuple(places.get(id(leaf)) for leaf in leaves)
    return _Changes([x for x, i in zip(leaves, kept, strict=True) if i is None], treedef, kept)
