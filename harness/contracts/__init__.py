"""What methods, samplers and metrics owe the harness, as functions: for `harness.check` and for the tests."""
