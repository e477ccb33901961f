"""gradest next to the libraries that draw the same, or estimate the same gradients."""
