"""What a loss is given, which it must not change."""

from collections.abc import Callable
from typing import Any

import jax

from . import complaints


class Arguments:
    """The arguments that the loss is given, which it must not change: nobody would see it.

    They are copies, as under `jax.jit`, whose leaves are traced.

    Args:
      arguments: a tuple of positional ones, and a dictionary of those by keyword.
      is_leaf: of what is in them, whether it may change inside.
    """

    def __init__(self, *arguments: Any, is_leaf: Callable[[Any], bool] | None = None):
        self._arguments, self._is_leaf = arguments, is_leaf
        self._before = jax.tree_util.tree_flatten_with_path(arguments, is_leaf)
        # Some class makes its leaves anew whenever it is asked.
        again = jax.tree.leaves(arguments, is_leaf)
        self._kept = [a is b for (_, a), b in zip(self._before[0], again, strict=True)]

    def check(self, aux: Any) -> None:
        """Raises for what has changed, and is not part of the auxiliary output."""
        returned = set(map(id, jax.tree.leaves(aux, self._is_leaf)))
        leaves, treedef = self._before
        after, treedef_after = jax.tree_util.tree_flatten_with_path(self._arguments, self._is_leaf)
        if treedef_after != treedef:
            known = {path for path, _ in leaves}
            new = [path for path, leaf in after if path not in known and id(leaf) not in returned]
            if new or len(after) < len(leaves):
                raise self._changed(new[0] if new else ())
            return
        for (path, leaf), (_, leaf_after), kept in zip(leaves, after, self._kept, strict=True):
            if kept and leaf is not leaf_after and id(leaf_after) not in returned:
                raise self._changed(path)

    def _changed(self, path: Any) -> Exception:
        nodes = jax.tree_util.tree_flatten_with_path(self._arguments, is_of_nnx)[0]
        of_nnx = any(is_of_nnx(node) and path[: len(at)] == at for at, node in nodes)
        return complaints.argument_changed(named(path), of_nnx)


def named(path: Any) -> str:
    """What is at `path` in (args, kwargs), such as 'args[0].bn.mean', or nothing."""
    if not path:
        return ""
    of_args = path[0].idx == 0
    return ("args" if of_args else "kwargs") + jax.tree_util.keystr(path[1:])


def is_of_nnx(x: Any) -> bool:
    """Whether it is a module, an Rngs or a variable of flax.nnx, which is not imported for this."""
    kinds = (kind for kind in type(x).__mro__ if kind.__module__.startswith("flax.nnx"))
    return any(kind.__name__ in ("Object", "Pytree", "Variable") for kind in kinds)
