"""Losses of a vector of six, without jumps and with them, as people write them.

`SILENT` are continuous, or say by a rule of their own what their derivative is; `JUMPS` step, in
every way that a comparison, a rounding or an index can come back as a number. `STOPPED` depends on
who asks, and the jumps of `BLIND` are not seen.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
import optax
from jax import lax

import gradest as ge
from gradest import distributions as dists

KEY = jax.random.key(0)
_RNG = np.random.default_rng(0)
Y = jnp.asarray(_RNG.normal(size=6), jnp.float32)
W = jnp.asarray(_RNG.normal(size=(6, 6)) * 0.5, jnp.float32)
POSITIVE = jnp.abs(Y) + 0.1
LABELS = np.array([0, 2])
MASK = np.asarray(Y) > 0
GRID = jnp.arange(6.0).reshape(2, 3) / 6
THRESHOLDS = jnp.array([0.0, 0.5])


def logits(x):
    return x.reshape(2, 3)


# ---- Layers, written out -------------------------------------------------------------------


def layer_norm(x):
    return (x - jnp.mean(x)) * lax.rsqrt(jnp.var(x) + 1e-6) * POSITIVE


def attention(x):
    h = x.reshape(3, 2)
    scores = h @ h.T / np.sqrt(2.0)
    scores = jnp.where(np.tril(np.ones((3, 3), bool)), scores, -jnp.inf)
    return jax.nn.softmax(scores, -1) @ h


def mixed_precision(x):
    h = (x.astype(jnp.bfloat16) @ W.astype(jnp.bfloat16)).astype(jnp.float32)
    return jnp.sum(jax.nn.gelu(h) ** 2)


def pooled(x):
    image = (x[:, None] * Y[None]).reshape(1, 6, 6, 1)
    pool = lax.reduce_window(image, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.sum(pool**2)


def recurrent(x):
    def step(h, v):
        h = jnp.tanh(W @ h + v)
        return h, jnp.sum(h)

    return jnp.sum(lax.scan(step, jnp.zeros(6), x)[1])


def clipped(x):
    updates: Any = optax.clip_by_global_norm(1.0).update({"a": x}, optax.EmptyState())[0]
    return updates["a"]


def clipped_steps(x):
    """Of an optimizer inside, which divides all of a gradient by one number."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    weights: Any = Y
    state = optimizer.init(Y)
    for _ in range(2):
        gradient = jax.grad(lambda w: jnp.sum((W @ w - x) ** 2))(weights)
        updates, state = optimizer.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
    return jnp.sum(weights**2)


def queue(x):
    """Lindley's recursion, by a select."""
    return lax.scan(lambda c, v: (jnp.where(c + v > 0, c + v, 0.0), None), jnp.zeros(()), x)[0]


def categorical_projection(x):
    """Of returns onto the atoms of a categorical value distribution (C51)."""
    atoms = jnp.linspace(-3.0, 3.0, 7)

    def projected(reward):
        at = (jnp.clip(reward + 0.9 * atoms, -3.0, 3.0) + 3.0) / (atoms[1] - atoms[0])
        low, high = jnp.floor(at).astype(int), jnp.ceil(at).astype(int)
        same = (low == high).astype(jnp.float32)
        mass = jnp.zeros(7).at[low].add(high - at + same)
        return mass.at[jnp.minimum(high, 6)].add(at - low)

    return jnp.sum(jax.vmap(projected)(x[:3]) * jnp.sin(atoms))


def two_hot(x):
    """A number as weights of the two bins that it is between, which are counted off."""
    bins = jnp.linspace(-3.0, 3.0, 41)
    low = jnp.clip(jnp.sum(bins <= jnp.tanh(x)[:, None], axis=-1) - 1, 0, 39)
    share = (jnp.tanh(x) - bins[low]) / (bins[low + 1] - bins[low])
    return jnp.sum((1 - share) * jnp.sin(bins[low]) + share * jnp.sin(bins[low + 1]))


def between_knots(x):
    knots = jnp.linspace(-2.0, 2.0, 9)
    i = jnp.clip(jnp.searchsorted(knots, x) - 1, 0, 7)
    share = (x - knots[i]) / (knots[i + 1] - knots[i])
    return jnp.sum(jnp.cos(knots[i]) * (1 - share) + jnp.cos(knots[i + 1]) * share)


def rational_quadratic_spline(x):
    width = jax.nn.softmax(0.2 * jnp.arange(6.0)) * 6
    height = jax.nn.softmax(jnp.cos(jnp.arange(6.0))) * 6
    ends = lambda w: jnp.concatenate([jnp.zeros(1), jnp.cumsum(w)]) - 3
    slopes = jnp.concatenate([jnp.ones(1), jax.nn.softplus(jnp.sin(jnp.arange(5.0))), jnp.ones(1)])
    i = jnp.clip(jnp.searchsorted(ends(width), x) - 1, 0, 5)
    t, s = jnp.clip((x - ends(width)[i]) / width[i], 0, 1), height[i] / width[i]
    above = height[i] * (s * t**2 + slopes[i] * t * (1 - t))
    below = s + (slopes[i + 1] + slopes[i] - 2 * s) * t * (1 - t)
    return jnp.sum(jnp.where(jnp.abs(x) < 3, ends(height)[i] + above / below, x))


def dropout(x):
    keep = jax.random.bernoulli(KEY, 0.5, (6,))
    return jnp.sum(jnp.where(keep, x / 0.5, 0.0) ** 2)


def transformer(x):
    h = x.reshape(3, 2)
    for _ in range(2):
        n = jax.vmap(lambda r: (r - jnp.mean(r)) / jnp.sqrt(jnp.var(r) + 1e-5))(h)
        h = h + jax.nn.softmax(n @ n.T) @ n
        h = h + jax.nn.relu(h @ W[:2, :4]) @ W[:4, :2]
    return jnp.sum(jax.nn.log_softmax(h)[0])


# ---- Rules of their own --------------------------------------------------------------------


@jax.custom_vjp
def spike(x):
    return (x > 0).astype(x.dtype)


spike.defvjp(lambda x: (spike(x), x), lambda x, ct: (ct / (1 + jnp.abs(x)) ** 2,))


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, ct: (ct,))


@jax.custom_jvp
def clipped_sign(x):
    return jnp.sign(x)


clipped_sign.defjvp(lambda x, dx: (jnp.sign(x[0]), dx[0] * (jnp.abs(x[0]) < 1)))


def ode(x):
    from jax.experimental.ode import odeint

    return jnp.sum(odeint(lambda y, t: jnp.sin(y) - 0.1 * y, x, jnp.linspace(0.0, 1.0, 3)))


def root(x):
    a = jnp.exp(x[0])
    solve = lambda f, s: lax.while_loop(
        lambda s: jnp.abs(f(s)) > 1e-5, lambda s: s - f(s) / (2 * s), s
    )
    return lax.custom_root(lambda s: s**2 - a, 1.0, solve, lambda g, y: y / g(1.0))


def interpolated(x):
    """Between grid points, by hand."""
    grid, at = jnp.arange(5.0) ** 2, jnp.clip(x, 0, 3.999)
    i = jnp.floor(at).astype(int)
    t = at - i
    return jnp.sum(grid[i] * (1 - t) + grid[i + 1] * t)


def falling(x, max_steps):
    """The height, the velocity and the time of what falls, at the first step below the ground."""
    fall = lambda state: (state[0] + 0.1 * state[1], state[1] - 1.0, state[2] + 0.1)
    start = jnp.float32(1.0), x[0], jnp.float32(0.0)
    return ge.while_loop(lambda state: state[0] > 0, fall, start, max_steps=max_steps)


def time_of_fall(x):
    """Between two steps, where the height is zero."""
    height, velocity, time = falling(x, 40)
    return time - height / (velocity + 1.0)


def iterated(x):
    """To a fixed point, as a scan with a mask."""

    def step(state, _):
        y, change = state
        new, going_on = jnp.tanh(0.5 * y + x[0]), change > 1e-5
        return (jnp.where(going_on, new, y), jnp.where(going_on, jnp.abs(new - y), change)), None

    return (lax.scan(step, (jnp.float32(1.0), jnp.float32(1.0)), None, length=60)[0][0] - 1.2) ** 2


def binned(x):
    """A histogram in which each point is shared between two bins."""
    at = jnp.clip(x[:2] + 2, 0, 3.999)
    i = jnp.floor(at).astype(int)
    return jnp.zeros(5).at[i].add(1 - (at - i)).at[i + 1].add(at - i)


def gated(x, threshold):
    return jnp.where(x > threshold, x, 0.0)


def safe_norm(x):
    s = jnp.sum(x**2)
    zero = s == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, s)))


def vq(x):
    """Vector quantisation with straight-through, commitment and codebook terms."""
    q = W[jnp.argmin(jnp.sum((lax.stop_gradient(x) - W) ** 2, -1))]
    through = x + lax.stop_gradient(q - x)
    return jnp.sum(through**2) + jnp.sum((x - lax.stop_gradient(q)) ** 2)


def huber(x):
    return jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5)


one_hot = jax.nn.one_hot(LABELS, 3)
total = jnp.sum

#: Continuous.
SILENT = {
    "squared": lambda x: total(optax.squared_error(x, Y)),
    "optax huber": lambda x: total(optax.huber_loss(x, Y)),
    "optax log_cosh": lambda x: total(optax.log_cosh(x, Y)),
    "optax hinge": lambda x: total(optax.hinge_loss(x, np.sign(Y))),
    "optax cosine": lambda x: total(optax.cosine_distance(x, Y, epsilon=1e-6)),
    "optax cross entropy": lambda x: total(optax.softmax_cross_entropy(logits(x), one_hot)),
    "optax labels": lambda x: total(
        optax.softmax_cross_entropy_with_integer_labels(logits(x), LABELS)
    ),
    "optax bce": lambda x: total(optax.sigmoid_binary_cross_entropy(x, MASK * 1.0)),
    "optax kl": lambda x: total(
        optax.kl_divergence(jax.nn.log_softmax(logits(x)), jax.nn.softmax(logits(Y)))
    ),
    "optax clip": lambda x: total(clipped(x) * Y),
    "relu": lambda x: total(jax.nn.relu(x)),
    "leaky relu": lambda x: total(jax.nn.leaky_relu(x) * Y),
    "elu": lambda x: total(jax.nn.elu(x) * Y),
    "gelu": lambda x: total(jax.nn.gelu(x, approximate=False)),
    "hard swish": lambda x: total(jax.nn.hard_swish(x)),
    "relu by where": lambda x: total(jnp.where(x > 0, x, 0.0)),
    "relu by mask": lambda x: total(x * (x > 0)),
    "leaky by masks": lambda x: total((x > 0) * x + (x <= 0) * 0.1 * x),
    "pinball": lambda x: total((x - Y) * (0.9 - (x < Y))),
    "huber": lambda x: total(huber(x)),
    "dead zone": lambda x: total(jnp.where(jnp.abs(x) > 0.3, jnp.abs(x) - 0.3, 0.0) ** 2),
    "signed": lambda x: total(jnp.sign(x) * jnp.log1p(jnp.abs(x)) * Y),
    "triangle wave": lambda x: total(jnp.abs(x % 1.0 - 0.5)),
    "angle": lambda x: total(jnp.cos((x * 3 + jnp.pi) % (2 * jnp.pi) - jnp.pi)),
    "clip": lambda x: total(jnp.clip(x, -1, 1) * Y),
    "sort": lambda x: total(jnp.sort(x) * POSITIVE),
    "median": jnp.median,
    "quantile": lambda x: jnp.quantile(x, 0.3),
    "top_k": lambda x: total(lax.top_k(x, 3)[0] ** 2),
    "x[argmax]": lambda x: x[jnp.argmax(x)],
    "x[argsort]": lambda x: total(x[jnp.argsort(x)] * POSITIVE),
    "chamfer": lambda x: total(jnp.min((x[:, None] - Y[None]) ** 2, 1)),
    "ppo": lambda x: jnp.mean(jnp.minimum(jnp.exp(x) * Y, jnp.clip(jnp.exp(x), 0.8, 1.2) * Y)),
    "cond": lambda x: lax.cond(x[0] > 0, lambda v: v, lambda v: 0.3 * v, x[0]),
    "vmapped cond": lambda x: total(
        jax.vmap(lambda v: lax.cond(v > 0, lambda v: v, lambda v: -v, v))(x)
    ),
    "switch": lambda x: lax.switch((x[0] > 0).astype(int), [lambda v: -v, lambda v: v], x[0]),
    "interp": lambda x: total(jnp.interp(x, jnp.arange(4.0), jnp.arange(4.0) ** 2)),
    "interpolated": interpolated,
    "binned": lambda x: total(binned(x) ** 2 * Y[:5]),
    "copysign": lambda x: total(jnp.copysign(jnp.sqrt(jnp.abs(x)), x) * Y),
    "cosine of an angle": lambda x: total(jnp.cos(jnp.arctan2(x - 0.5, x[::-1] - 0.7))),
    "count likelihood": lambda x: total(dists.Poisson(jnp.exp(W @ x)).log_prob(np.arange(6.0))),
    "mixture likelihood": lambda x: dists.MixtureSameFamily(
        dists.Categorical(x[:2]), dists.Normal(x[2:4], 1.0)
    ).log_prob(0.3),
    "density of what is positive": lambda x: total(dists.Gamma(2.0, 1.0).log_prob(jnp.exp(x))),
    "complex": lambda x: total(jnp.abs(x + 1j * Y) ** 2),
    "nan guard": lambda x: total(jnp.where(jnp.isnan(x), 0.0, x) ** 2),
    "safe norm": safe_norm,
    "logsumexp": lambda x: jsp.special.logsumexp(x, b=POSITIVE),
    "special": lambda x: total(jsp.special.log_ndtr(x) + jsp.special.gammaln(jnp.exp(x))),
    "solve": lambda x: total(jnp.linalg.solve(jnp.eye(6) * 3 + jnp.outer(x, x), Y)),
    "layer norm": lambda x: total(layer_norm(x) ** 3),
    "attention": lambda x: total(attention(x) ** 2),
    "pooling": pooled,
    "transformer": transformer,
    "mixed precision": mixed_precision,
    "recurrent": recurrent,
    "queue": queue,
    "categorical projection": categorical_projection,
    "between knots": between_knots,
    "dropout": dropout,
    "checkpoint": lambda x: total(jax.checkpoint(lambda x: jnp.where(x > 0, x, 0.0) ** 2)(x)),
    "jit of jit": lambda x: jax.jit(lambda x: total(jax.jit(jax.nn.relu)(x)))(x),
    "unused metric": lambda x: (jnp.mean(x > 0), total(x**2))[1],
    "metric times zero": lambda x: total(x**2) + 0.0 * jnp.mean(x > 0),
    "penalty of a gradient": lambda x: total(jax.grad(lambda x: total(jnp.tanh(x) ** 2))(x) ** 2),
    "surrogate gradient": lambda x: total(spike(x - 0.3) * Y),
    "straight-through rule": lambda x: total(rounded(x * 4) / 4 * Y),
    "sign with a rule": lambda x: total(clipped_sign(x) * Y),
    "adjoint of an ODE": ode,
    "root": root,
    "newton": lambda x: lax.fori_loop(0, 5, lambda _, s: 0.5 * (s + jnp.exp(x[0]) / s), 1.0),
    "running maximum": lambda x: total(
        lax.scan(lambda c, v: (lambda m: (m, m))(jnp.where(v > c, v, c)), -9.0, x)[1] * Y
    ),
    "large scale": lambda x: 6e4 * jnp.mean(x**2),
    "clipped steps of adam": clipped_steps,
    "interpolated, and the same beyond": lambda x: total(
        jnp.interp(x, jnp.linspace(0.0, 1.0, 5), Y[:5], left=Y[0], right=Y[4])
    ),
    "shortest of some": lambda x: jnp.min(
        jnp.where(np.eye(6, dtype=bool), jnp.inf, x[:, None] * x)
    ),
    "spectrum": lambda x: total(jnp.abs(jnp.exp(1j * x) * Y + x) ** 2),
}

#: Obeyed by a draw that is differentiated as it is, and transparent at a relaxed point.
STOPPED = {
    "straight-through": lambda x: total((x + lax.stop_gradient(jnp.round(x) - x)) ** 2),
    "vq": vq,
    "weights": lambda x: total(lax.stop_gradient((x > 0.5) * 1.0) * x),
    "metric": lambda x: total(x**2) + lax.stop_gradient(jnp.mean(x > 0.5)),
}

#: With a jump.
# Of one draw: several of these are more than a probe has time for.
LONG = {
    "two hot": two_hot,
    "rational quadratic spline": rational_quadratic_spline,
    "iterated to a fixed point": iterated,
    "time of an event": time_of_fall,
}

JUMPS = {
    "indicator": lambda x: total(jnp.where(x > 0.5, 1.0, 0.0)),
    "mean of a comparison": lambda x: jnp.mean(x > 0.5),
    "indicator times x": lambda x: total((x > 0.5) * x),
    "beside smooth": lambda x: total(x**2) + 1e-2 * total(x > 0.5),
    "barrier": lambda x: jnp.where(jnp.max(jnp.cumsum(x)) > 1.0, 0.0, jax.nn.relu(jnp.sum(x))),
    "counted bins": lambda x: total(jnp.sum(jnp.linspace(-3.0, 3.0, 41) <= x[:, None], axis=-1)),
    "accuracy": lambda x: jnp.mean(jnp.argmax(logits(x), -1) == LABELS),
    "argmax": lambda x: jnp.argmax(x) * 1.0,
    "argmin of a table": lambda x: Y[jnp.argmin(x)],
    "one-hot of argmax": lambda x: total(jax.nn.one_hot(jnp.argmax(x), 6) * Y),
    "mask of the maximum": lambda x: total(jnp.where(x == jnp.max(x), Y, 0.0)),
    "dynamic slice": lambda x: total(lax.dynamic_slice(Y, (jnp.argmax(x),), (2,))),
    "floor": lambda x: total(jnp.floor(x * 3)),
    "ceil": lambda x: total(jnp.ceil(x * 3)),
    "round": lambda x: total(jnp.round(x * 3) ** 2),
    "rounding error": lambda x: total(x * 3 - jnp.round(x * 3)),
    "sawtooth": lambda x: total((x * 3) % 1.0),
    "sign": lambda x: total(jnp.sign(x - 0.5) * Y),
    "heaviside": lambda x: total(jnp.heaviside(x - 0.5, 0.5)),
    "cast": lambda x: total((x * 3).astype(jnp.int32).astype(jnp.float32)),
    "quantised": lambda x: total((x * 16).astype(jnp.int8).astype(jnp.float32) / 16 * Y),
    "cast as an index": lambda x: total(Y[jnp.clip((x * 3).astype(int), 0, 5)]),
    "hard threshold": lambda x: total(jnp.where(jnp.abs(x) > 0.5, x, 0.0)),
    "gate": lambda x: (x[0] > 0.5) * x[1],
    "mean of the active": lambda x: total(jnp.where(x > 0.5, x, 0)) / (total(x > 0.5) + 1e-6),
    "penalty": lambda x: total(x**2) + 10.0 * jnp.any(x > 0.9),
    "cond": lambda x: lax.cond(x[0] > 0.5, lambda: 1.0, lambda: 0.0),
    "cond of smooth": lambda x: lax.cond(total(x) > 1, lambda: total(x**2), lambda: x[0]),
    "switch": lambda x: lax.switch(
        jnp.argmax(x[:3]), [lambda v: v + 1, lambda v: 2 * v, lambda v: v * v - 1], x[3]
    ),
    "vmapped cond": lambda x: total(
        jax.vmap(lambda v: lax.cond(v > 0.5, lambda: 2.0, lambda: v))(x)
    ),
    "state at an event": lambda x: falling(x, 30)[1] ** 2,
    "steps of a loop": lambda x: lax.while_loop(
        lambda s: s[0] < 2, lambda s: (s[0] + 0.3, s[1] + 1.0), (x[0], 0.0)
    )[1],
    "first passage": lambda x: jnp.argmax(jnp.cumsum(x) > 0.5) * 1.0,
    "resets": lambda x: lax.scan(
        lambda c, v: (jnp.where(c + v > 1, 0.0, c + v), None), jnp.zeros(()), x
    )[0],
    "spikes": lambda x: lax.scan(
        lambda c, v: (lambda s: (0.9 * c + v - s, s))((c > 0.3) * 1.0), jnp.zeros(()), x
    )[1].sum(),
    "count in a scan": lambda x: lax.scan(lambda c, v: (c + (v > 0.5), None), 0, x)[0] * 1.0,
    "ranks": lambda x: total(jnp.argsort(jnp.argsort(x)) * Y),
    "sorted labels": lambda x: total(Y[jnp.argsort(-x)] / jnp.log2(jnp.arange(6) + 2.0)),
    "sort's payload": lambda x: total(lax.sort((x, Y), num_keys=1)[1] * POSITIVE),
    "top_k indices": lambda x: total(Y[lax.top_k(x, 2)[1]]),
    "histogram": lambda x: total(jnp.histogram(x, bins=np.linspace(-2, 2, 9))[0] * np.arange(8.0)),
    "segments": lambda x: total(
        jax.ops.segment_sum(Y, (x > 0.5).astype(int), 2) * np.array([1.0, 3.0])
    ),
    "scatter": lambda x: total(jnp.zeros(6).at[jnp.argmax(x)].set(1.0) * Y),
    "searchsorted": lambda x: total(jnp.searchsorted(np.linspace(-1, 1, 9), x)) * 1.0,
    "nearest": lambda x: total(W[jnp.argmin(total((x - W) ** 2, -1))] ** 2 * POSITIVE),
    "xor": lambda x: jnp.logical_xor(x[0] > 0.5, x[1] > 0.5) * 1.0,
    "isclose": lambda x: total(jnp.isclose(x, Y, atol=0.5)),
    "bernoulli": lambda x: total(jax.random.bernoulli(KEY, jax.nn.sigmoid(x)) * Y),
    "categorical": lambda x: Y[jax.random.categorical(KEY, x)],
    "resampling": lambda x: total(Y[jnp.searchsorted(jnp.cumsum(jax.nn.softmax(x)), POSITIVE / 3)]),
    "gradient of relu": lambda x: total(jax.grad(lambda x: total(jax.nn.relu(x - 0.5)))(x) * Y),
    "gradient of max-pooling": lambda x: jnp.sum(jax.grad(pooled)(x) * Y),
    "interpolated, and zero beyond": lambda x: total(
        jnp.interp(x, jnp.linspace(0.2, 0.8, 5), POSITIVE[:5], left=0.0, right=0.0)
    ),
    "logits of the largest": lambda x: total(
        jax.nn.softmax(jnp.where(x < lax.top_k(x, 2)[0][-1], -jnp.inf, x)) * Y
    ),
    "logits of the largest of each row": lambda x: total(
        jax.nn.softmax(
            jnp.where(x.reshape(2, 3) >= lax.top_k(x.reshape(2, 3), 2)[0][:, 1:], GRID, -jnp.inf)
        )
        * Y.reshape(2, 3)
    ),
    "angle of a complex number": lambda x: total(jnp.angle(jnp.exp(9j * x)) * Y),
    "gradient of max": lambda x: total(jax.grad(jnp.max)(x) * Y),
    "binary layer": lambda x: total(jnp.tanh(W @ jnp.where(W @ x > 0, 1.0, -1.0))),
    "checkpoint": lambda x: jax.checkpoint(lambda x: total(jnp.where(x > 0.5, 1.0, 0.0)) ** 2)(x),
    "bits": lambda x: total((lax.bitcast_convert_type(x, jnp.int32) >> 20).astype(jnp.float32)),
    "one of two arrays of thresholds": lambda x: total(
        gated(x, np.zeros(6)) * Y + gated(x, np.full(6, 0.5)) * POSITIVE
    ),
    "one of two thresholds in an array": lambda x: total(
        gated(x, THRESHOLDS[0]) * Y + gated(x, THRESHOLDS[1]) * POSITIVE
    ),
    "one element of many": lambda x: total(gated(jnp.tile(x, 50), np.arange(300) // 299 * 0.5)),
    "what an element is compared with": lambda x: total(
        jnp.where(jnp.arange(6) < 3 * x[0], jnp.arange(6) % 3, 0.0)
    ),
    "last step of a scan": lambda x: lax.scan(
        lambda c, v: (c + jnp.where((v[0] == 5) & (v[1] > 0.5), 1.0, v[1]), None),
        jnp.zeros(()),
        (jnp.arange(6), x),
    )[0],
    "beside what is large": lambda x: 1e4 * total(x**2) + total(jnp.where(x > 0.5, 1.0, 0.0)),
    "angle": lambda x: total((jnp.arctan2(x - 0.5, x[::-1] - 0.7) - 0.3) ** 2),
    "signbit": lambda x: total(jnp.signbit(x - 0.5) * Y),
    "wrong huber": lambda x: total(jnp.where(jnp.abs(x) < 0.5, 0.5 * x * x, jnp.abs(x))),
    "small": lambda x: total(jnp.where(x > 0.5, x**2 + 0.01, x**2)),
    "mean of a wide layer": lambda x: jnp.where(
        jnp.mean(jnp.tanh(jnp.ones((300, 1)) * Y @ x)) > 0.1, x[0], 0.0
    ),
}

#: With a jump that is not seen; docs/promise.md says why.
BLIND = {
    "norm of order 0": lambda x: x[0] + jnp.linalg.norm(jax.nn.relu(x), 0),
    "cut of a complex logarithm": lambda x: total(jnp.log(x - 0.5 + 1j * x[::-1]).imag * Y),
    "sign of slogdet": lambda x: jnp.linalg.slogdet(x[:4].reshape(2, 2))[0],
    "tolerance": lambda x: lax.while_loop(
        lambda s: jnp.abs(s**2 - jnp.exp(x[0])) > 1e-2,
        lambda s: 0.5 * (s + jnp.exp(x[0]) / s),
        1.0,
    ),
    "tiny": lambda x: total(jnp.where(x > 0.5, x + 1e-7, x)),
    "callback": lambda x: total(
        jax.pure_callback(np.round, jax.ShapeDtypeStruct((6,), jnp.float32), x)
    ),
}
