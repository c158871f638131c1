"""Muon beside AdamW: which of them moves what, what a step is, and one schedule for both rates."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from baselines.autoregressive import Autoregressive
from baselines.mdlm import MDLM, MDLMOptions
from harness.config.fields import NoOptions
from harness.config.schema import ScaleConfig, TrainConfig
from harness.training.loop import Diverged, train
from harness.training.optimizer import adamw, block_matrices, method_optimizer, muon
from lddm.fuji import FUJI, FUJIOptions
from lddm.seq import SEQ, SEQOptions
from lddm.seq_discrete import SEQDiscrete, SEQDiscreteOptions
from tests.kit.toys import job_of, one_thread, tiny_problem  # noqa: F401

PROBLEM = tiny_problem()
METHODS = {
    "mdlm": lambda: MDLM(PROBLEM, MDLMOptions(time_conditioning=True)),
    "ar": lambda: Autoregressive(PROBLEM, NoOptions()),
    "fuji": lambda: FUJI(PROBLEM, FUJIOptions(slots=2, dims=2)),
    "seq": lambda: SEQ(PROBLEM, SEQOptions(slots=2, dims=2, one_call_share=0.2)),
    "seq_discrete": lambda: SEQDiscrete(PROBLEM, SEQDiscreteOptions(slots=2, codes=4)),
}


def moved_by(optimizer) -> list[set[int]]:
    """Parameters of each part."""
    return [{id(p) for group in part.param_groups for p in group["params"]} for part in optimizer._parts]


@pytest.mark.parametrize("name", METHODS)
def test_muon_moves_the_matrices_of_blocks_and_adamw_all_else(name):
    method = METHODS[name]()
    names = {id(p): n for n, p in method.named_parameters()}
    plain, muon = moved_by(method_optimizer(method, ScaleConfig(), TrainConfig(optimizer="muon")))
    assert not plain & muon and plain | muon == set(names)
    kinds = {re.sub(r".*\bblocks\.\d+\.", "", names[p]) for p in muon}
    assert kinds - {"modulation.weight"} == {"attention.qkv.weight", "attention.out.weight", "up.weight", "down.weight"}
    assert not any(n.endswith(tuple(kinds)) for n in map(names.get, plain))
    (everything,) = moved_by(method_optimizer(method, ScaleConfig(), TrainConfig(optimizer="adamw")))
    assert everything == set(names)


def test_a_module_without_blocks_is_adamws_alone():
    module = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3))
    assert (
        block_matrices(module) == [] and len(moved_by(adamw(module, 0.1, (0.9, 0.9), 0.0, lambda n, p: True, 0.1))) == 1
    )


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_a_step_of_muon_turns_all_directions_alike(shape):
    """Three iterations bring singular values that are up to twenty times apart close to 1."""
    module = nn.ModuleList([nn.Linear(shape[1], shape[0], bias=False)])
    before = module[0].weight.detach().clone()
    gradient = torch.randn(shape) @ torch.diag(torch.logspace(0, -1, shape[1]))
    optimizer = adamw(module, 0.1, (0.9, 0.9), 0.0, lambda n, p: True, muon_lr=0.5)
    optimizer.set_rate(0.2)
    module[0].weight.grad = gradient
    optimizer.step()
    step = (before - module[0].weight.detach()) / (0.2 * 0.5 * max(1, shape[0] / shape[1]) ** 0.5)
    values = torch.linalg.svdvals(step)
    assert values.min() > 0.3 and values.max() < 1.35
    # Along the gradient: the inner product is the sum of its singular values, up to the iterations' error.
    assert (step * gradient).sum() == pytest.approx(torch.linalg.svdvals(gradient).sum().item(), rel=0.3)


def test_matrices_that_are_moved_together_move_as_torchs_muon_moves_each():
    shapes = [(48, 16), (16, 16), (16, 48), (48, 16), (16, 16), (8, 8)]
    torch.manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    for mine, yours in zip(ours, theirs, strict=True):
        yours.data.copy_(mine)
    optimizers = muon(ours, 0.1, 0.3), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.3, ns_steps=3)
    for _ in range(3):
        for mine, yours in list(zip(ours, theirs, strict=True))[:-1]:  # the last one has no gradient
            mine.grad = yours.grad = torch.randn(mine.shape)
        for optimizer in optimizers:
            optimizer.step()
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours, atol=3e-3, rtol=0)  # of steps of 0.1: the iterations are in bfloat16
    assert not optimizers[0].state[ours[-1]]


def test_one_schedule_for_both_rates():
    method = METHODS["mdlm"]()
    optimizer = method_optimizer(method, ScaleConfig(lr=4e-3), TrainConfig(optimizer="muon", muon_lr=0.02))
    for share in (0.25, 1.0, 0.5):
        optimizer.set_rate(share)
        rates = [[group["lr"] for group in part.param_groups] for part in optimizer._parts]
        assert rates == [[4e-3 * share] * 2, [0.02 * share]]


def test_a_run_that_diverges_names_both_rates(tmp_path):
    method = METHODS["mdlm"]()
    with pytest.raises(Diverged, match=r"a smaller scale\.lr \(now 1e\+30\) or train\.muon_lr \(now 0\.02\) may help$"):
        train(job_of(method, tmp_path, lr=1e30, optimizer="muon"))
