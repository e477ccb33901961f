"""Measurements of gradest against the same mathematics written by hand."""
