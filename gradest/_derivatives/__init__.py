"""Derivatives that are not JAX's own.

They are attached (`attach`), refused or passed on to first order only (`refuse`), complained of
(`watch`), of the variance in place of the loss (`variance`), or zero to first order (`vanishing`);
`primitives` and `chunks` are what these are made of. Nothing here knows of samplers or
distributions.
"""
