"""Sequences that are read ahead of their step: in order, while the step before runs, and the same weights."""

import threading

import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from harness.training import loop
from harness.training.batches import read_ahead
from tests.kit.toys import job_of, one_thread, tiny_problem  # noqa: F401


def test_the_next_step_is_read_while_this_one_runs():
    read = {step: threading.Event() for step in range(3, 6)}

    def reader(step: int) -> int:
        read[step].set()
        return 10 * step

    made = []
    for step, value in read_ahead(reader, range(3, 6), "cuda"):
        made.append((step, value))
        assert step == 5 or read[step + 1].wait(10)
    assert made == [(3, 30), (4, 40), (5, 50)]
    assert list(read_ahead(reader, range(3, 3), "cuda")) == []


def test_what_a_reader_raises_is_raised_at_its_step():
    def reader(step: int) -> int:
        if step == 1:
            raise OSError("gone")
        return step

    steps = read_ahead(reader, range(3), "cuda")
    assert next(steps) == (0, 0)
    with pytest.raises(OSError, match="gone"):
        next(steps)


def test_weights_are_the_same(monkeypatch, tmp_path):
    states = []
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(loop, "read_ahead", lambda read, steps, _, device=device: read_ahead(read, steps, device))
        torch.manual_seed(0)
        method = MDLM(tiny_problem(), MDLMOptions())
        loop.train(job_of(method, tmp_path / device, steps=8, accumulate=2))
        states.append(method.state_dict())
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
