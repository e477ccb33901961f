"""Published results, reproduced with gradest's public functions."""
