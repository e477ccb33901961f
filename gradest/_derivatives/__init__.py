"""Derivatives that are not JAX's own: attached, refused, or passed on to first order only.

The bottom of the package: nothing here knows of samplers or distributions.
"""
