"""What becomes of a draw on its way to what is estimated: nothing, smooth, kinked, or a jump.

A forward pass over a jaxpr gives each value the draws that it depends on with a derivative, and the
places at which it steps: comparisons, roundings, indices. `walk` is the pass through straight-line
code, `constructs` takes it through calls, branches and loops (`again` through what was walked
before), `rules` has what a single equation does, `noise` what draws by `jax.random` do. Whether a
step vanishes again, as that of a relu written with `where` does, cannot be read off a program:
there `probe` evaluates the few equations around the place, in NumPy, on both sides of the step;
`elements` and the modules of its rules are how, and what `likeness` says is computed alike is
looked at once.
The transform, and an estimator that differentiates a function of the user's, ask it.
"""
