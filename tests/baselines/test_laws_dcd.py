"""DCD: its paths, its loss by enumeration, and its rounds."""

import numpy as np
import pytest
import torch
from torch import nn

from baselines.dcd import DCD, DCDOptions
from harness.config.schema import TrainConfig
from harness.diffusion import uniform
from harness.nn.slices import Logits
from harness.study.budget import stage_flops
from harness.training import loop
from tests.kit.toys import chi_square_p, generator_of, job_of, one_thread, tiny_problem  # noqa: F401

V = 3


class ByToken(nn.Module):
    """Logits (V, V) by the noisy token alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.logits_VV = torch.randn(V, V, generator=generator_of(seed), dtype=torch.float64)

    def forward(self, z_BL, select_BL, t_B):
        return Logits.of(self.logits_VV[z_BL.flatten()])


def test_a_path_jumps_once_from_noise_to_data_and_has_the_law_of_the_process_at_each_time():
    x_BL, noise = torch.full((30_000, 1), 2), torch.randn(30_000, 1, V, generator=generator_of(1))
    alphas = [0.0, 0.2, 0.5, 0.8, 1.0]
    zs = [uniform.around(x_BL, torch.full((30_000,), a, dtype=torch.float64), noise).argmax(-1) for a in alphas]
    for before, after, alpha in zip(zs, zs[1:], alphas[1:], strict=False):
        assert ((after == before) | (after == x_BL)).all()
        expected = np.full(V, (1 - alpha) / V) + alpha * np.eye(V)[2]
        assert alpha == 1 or chi_square_p(torch.bincount(after.flatten(), minlength=V).numpy(), expected) > 1e-3
    assert torch.equal(zs[-1], x_BL)


def expected_loss(method: DCD, x: int, step: float) -> float:
    """KL between teacher and student over all pairs of tokens of a path, by quadrature over time."""
    node_Q, weight_Q = np.polynomial.legendre.leggauss(400)
    total = 0.0
    for t, weight in zip(0.5 * (node_Q + 1), 0.5 * weight_Q, strict=True):
        s = max(t - step, 0.0)
        chance = {(x, x): 1 - t + t / V}
        for i in set(range(V)) - {x}:
            chance |= {(i, i): s / V, (i, x): (t - s) / V}
        for (z, nearer), mass in chance.items():
            log_p, log_q = (
                (network.logits_VV[token] + np.log1p(V * (1 - at) / max(at, 1e-9)) * torch.eye(V)[token]).log_softmax(
                    -1
                )
                for network, token, at in ((method.teacher, nearer, s), (method.network, z, t))
            )
            total += weight * mass * float((log_p.exp() * (log_p - log_q)).sum())
    return total


@pytest.mark.parametrize(("number", "step"), [(1, 0.25), (2, 0.5)])
def test_the_loss_is_the_mean_over_paths(number, step):
    method = DCD(tiny_problem(V, 4), DCDOptions(rounds=2, first=4))
    method.set_stage(f"round {number}")
    method.network, method.kept[number - 1] = ByToken(2), ByToken(3)
    found = float(method.loss(torch.full((60_000, 4), 1), generator_of(2)).total)
    assert found == pytest.approx(expected_loss(method, 1, step), rel=0.01)


def test_teacher_and_rounds_are_stages_that_are_counted(tmp_path):
    method = DCD(tiny_problem(), DCDOptions(rounds=2, first=4, curriculum=0.5, teacher_share=0.6))
    assert [s.name for s in method.stages()] == ["curriculum", "tokens", "round 1", "round 2"]
    assert [s.share for s in method.stages()] == pytest.approx([0.3, 0.3, 0.2, 0.2])
    loop.train(job_of(method, tmp_path, steps=20))
    for number in (0, 1):
        weights = [network.state_dict()["head.weight"] for network in map(method.network_of, (number, number + 1))]
        assert not torch.equal(*weights)
    wide = DCD(tiny_problem(length=32, width=64), DCDOptions(rounds=1, first=4))
    teacher, student = stage_flops(wide, TrainConfig(), torch.zeros((8, 32), dtype=torch.int64), [(0,)])
    assert student / teacher == pytest.approx(4 / 3, rel=0.05), "and the teacher's call"
