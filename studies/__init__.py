"""Configuration files, found by `harness.config.registry`: one folder for each group."""
