"""What becomes of a draw on its way to what is estimated: nothing, smooth, kinked, or a jump.

A forward pass over a jaxpr gives each value the draws that it depends on with a derivative, and the
places at which it steps: comparisons, roundings, indices. `walk` takes the pass through calls,
branches and loops, `rules` has what a single equation does. Whether a step vanishes again, as that
of a relu written with `where` does, cannot be read off a program: there `probe` evaluates the few
equations around the place, in NumPy, on both sides of the step; `elements` and `arrays` are how.
The transform, and an estimator that differentiates a function of the user's, ask it.
"""
