"""Counting the evaluations of a cost in a program."""

import math

from jax.extend import core
from jax.interpreters import ad, batching, mlir

from .._jaxpr import as_scan, subjaxprs

# Its operand, whose elements `count_evaluations` counts in the program; its derivative has none.
evaluation_p = core.Primitive("gradest_evaluation")
evaluation_p.def_impl(lambda x: x)
evaluation_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(evaluation_p, lambda ctx, x: [x])
batching.defvectorized(evaluation_p)
ad.defjvp(evaluation_p, lambda tangent, x: tangent)


def count_evaluations(jaxpr: core.Jaxpr) -> int | None:
    """How many scalars `evaluation_p` meets when the program runs; None if that depends on data."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive is evaluation_p:
            total += math.prod(eqn.outvars[0].aval.shape)  # pyright: ignore
            continue
        counts = [count_evaluations(inner) for inner in subjaxprs(eqn)]
        if not any(count != 0 for count in counts):
            continue
        if None in counts or eqn.primitive.name == "while":
            return None
        if eqn.primitive.name == "cond":
            if len(set(counts)) > 1:
                return None
            counts = counts[:1]
        scan = as_scan(eqn)
        total += sum(filter(None, counts)) * (1 if scan is None else scan.length)
    return total
