"""Every method that trains does with shares of its weights what it does with all of them: losses, gradients, bounds."""

import pytest
import torch
from torch import distributed

from harness.config.registry import find_entries, studies_folder
from harness.contracts.world import X, build_method, generator_of, scramble
from harness.training.checkpoint import load_model
from harness.training.shards import divide, gathered, local, whole
from tests.kit.toys import one_thread  # noqa: F401

ENTRIES = find_entries([studies_folder()])["method"]
TRAINED = sorted(
    name for name, entry in ENTRIES.items() if "path" not in entry.content and build_method(entry.content, 0).stages()
)


@pytest.fixture(scope="module", autouse=True)
def alone():
    """A group of one process, whose share is all: what is gathered, and when, is as with many."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", TRAINED)
def test_losses_gradients_and_bounds_are_those_of_whole_weights(tmp_path, name):
    plain, shared = (scramble(build_method(ENTRIES[name].content, 0)) for _ in range(2))
    divide(shared)
    assert all(local(p) is not p for p in shared.parameters())
    for stage in plain.stages():
        values = []
        for method in (plain, shared):
            method.train().set_stage(stage.name)
            method.zero_grad(set_to_none=True)
            total = method.loss(X, generator_of(1)).total
            total.backward()
            gradients = {n: whole(p.grad) for n, p in method.named_parameters() if p.grad is not None}
            values.append((total.detach(), gradients))
        (total, gradients), (other, others) = values
        assert total.equal(other) and gradients.keys() == others.keys() and gradients
        for key, gradient in gradients.items():
            torch.testing.assert_close(others[key], gradient, rtol=1e-6, atol=1e-7)
    bounds = []
    for method in (plain, shared):
        with torch.no_grad():
            method.eval().calibrate(X)
            method.diagnose(X, generator_of(2))
            bounds.append(method.bound(X, generator_of(2)))
    assert bounds[0] is None or bounds[0].total_B.equal(bounds[1].total_B)
    load_model(shared, build_method(ENTRIES[name].content, 1).state_dict(), tmp_path)
    assert gathered(shared.state_dict()).keys() == plain.state_dict().keys()
