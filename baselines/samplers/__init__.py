"""Ways to draw from the baselines, one a file."""
