"""Operations that have an element of the result for each of the operands', in NumPy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.special


def _same(x: Any) -> Any:
    return x


def inexact(x: Any) -> np.ndarray:
    """As a floating or complex number."""
    x = np.asarray(x)
    return x if np.iscomplexobj(x) else x.astype(float)


def as_real(x: Any) -> np.ndarray:
    """Of a complex number something that steps where it does."""
    x = np.asarray(x)
    return np.asarray(np.real(x) + 0.6 * np.imag(x) if np.iscomplexobj(x) else x, float)


UNARY: Mapping[str, Callable[[Any], Any]] = {
    "neg": np.negative,
    **{name: getattr(np, name) for name in ("exp", "exp2", "log", "log1p", "expm1", "sqrt")},
    **{name: getattr(np, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{name: getattr(np, f"arc{name[1:]}") for name in ("asin", "acos", "atan")},
    **{name: getattr(np, f"arc{name[1:]}") for name in ("asinh", "acosh", "atanh")},
    **{name: getattr(np, name) for name in ("cbrt", "sign", "floor", "ceil", "square", "abs")},
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "gradest_log_sigmoid": lambda x: -np.logaddexp(0, -x),
    "is_finite": np.isfinite,
    "signbit": np.signbit,
    "not": np.logical_not,
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
    "erf_inv": scipy.special.erfinv,
    "lgamma": scipy.special.gammaln,
    "digamma": scipy.special.digamma,
    "bessel_i0e": scipy.special.i0e,
    "bessel_i1e": scipy.special.i1e,
    **dict.fromkeys(("copy", "copy_p", "stop_gradient", "reduce_precision"), _same),
    **{name: getattr(np, name) for name in ("real", "imag", "conj")},
    **dict.fromkeys(("optimization_barrier", "pvary", "pcast"), _same),
}
BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("add", "add_any"), np.add),
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "atan2": np.arctan2,
    "pow": lambda x, y: np.power(inexact(x), y),
    "complex": lambda x, y: x + 1j * y,
    "nextafter": lambda x, y: x,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "ne": np.not_equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    **dict.fromkeys(("eq", "eq_to"), np.equal),
    **dict.fromkeys(("lt", "lt_to"), np.less),
    **dict.fromkeys(("le", "le_to"), np.less_equal),
}
