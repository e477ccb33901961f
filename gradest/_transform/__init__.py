"""From a loss that draws to an estimate of its expectation, by way of its jaxpr."""
