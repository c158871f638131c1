"""Distributions over token sequences of which everything is known: samples, log p(x), entropy, any conditional marginal."""
