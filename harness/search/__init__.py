"""Searching what a study leaves open: spaces, objectives, trials, and the workers that share them (`harness.tune`)."""
