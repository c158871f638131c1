"""Randomness that depends on what it is for, and on nothing that ran before."""

from __future__ import annotations

import numpy as np
import torch


def step_generator(device: str, *key: int) -> torch.Generator:
    """A generator whose state depends on the whole key and on nothing else."""
    seed = int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device=device).manual_seed(seed)
