"""Training: one loop, averaged weights, checkpoints, device and precision."""
