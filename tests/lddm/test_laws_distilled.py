"""SDTT on the token network of SEQ with codes: what is distilled, from whom, and what it learns where the answer is known."""

import numpy as np
import pytest
import torch

from harness.config.schema import TrainConfig
from harness.errors import UserError
from harness.study.budget import stage_flops
from harness.training import loop
from lddm.samplers.chosen_codes import ChosenCodes
from lddm.samplers.distilled_codes import DistilledCodes
from lddm.seq_distilled import SEQDistilled, SEQDistilledOptions
from tests.kit.toys import generator_of, job_of, one_thread, sampler_of, scramble, tiny_problem  # noqa: F401

V, L = 3, 4


def made(**options) -> SEQDistilled:
    own = {"slots": 2, "codes": 3, "first": 2, "rounds": 1}
    method = SEQDistilled(tiny_problem(V, L), SEQDistilledOptions(**own | options))
    method.fit(np.random.default_rng(0).integers(V, size=(400, L)))
    return method


def test_stages_are_those_of_seq_and_the_rounds_train_the_token_network_alone(tmp_path):
    method = made(rounds=2, first=4)
    assert [s.name for s in method.stages()] == ["tokens", "prior", "round 1", "round 2"]
    assert sum(s.share for s in method.stages()) == pytest.approx(1.0)
    for stage in ("round 1", "tokens"):
        method.set_stage(stage)
        assert all(p.requires_grad for p in method.decoder.parameters())
        assert not any(p.requires_grad for p in method.prior.parameters())
    loop.train(job_of(method, tmp_path, steps=20))
    weights = [dict(method.network_of(r).state_dict()) for r in range(3)]
    assert all(any(not torch.equal(a[name], b[name]) for name in a) for a, b in zip(weights, weights[1:], strict=False))
    draws = [sampler_of(method, DistilledCodes, round=r).draw(2000, 3, generator_of(0)).x_NL for r in range(3)]
    assert torch.equal(draws[2], sampler_of(method).draw(2000, 3, generator_of(0)).x_NL)
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(UserError, match="round=3: there are 2 rounds; use 2"):
        sampler_of(method, DistilledCodes, round=3)


def test_a_student_of_one_round_is_the_mean_of_two_steps_of_its_teacher_beside_the_same_codes():
    """One code vector for all, by hand: at all masks the student's law is the mean of what is taught, code by code."""
    torch.manual_seed(1)
    method = scramble(made(divergence="forward"), std=0.5)
    method.calibrate(torch.zeros((4, L), dtype=torch.int64))
    method.set_stage("round 1")
    x_BL, c_BS = torch.zeros((4000, L), dtype=torch.int64), torch.tensor([[0, 2]]).expand(4000, -1)
    method.encode = lambda x_BL, generator: (c_BS[: len(x_BL)], None)
    blank_BL, t_B = torch.full_like(x_BL, V), torch.ones(len(x_BL), dtype=torch.float64)
    log_p = method.taught(method.denoiser_of(method.teacher, c_BS), blank_BL, blank_BL == V, t_B, generator_of(3))
    mean_LV = log_p.view(-1, L, V).exp().mean(0)
    own_LV = method.decoder(blank_BL[:1], c_BS[:1], method.mixture, blank_BL[:1] == V).whole().softmax(-1)
    assert (own_LV - mean_LV).abs().max() > 0.03, "or there would be nothing to learn"
    optimizer = torch.optim.Adam(method.decoder.parameters(), lr=0.01)
    for step in range(120):
        optimizer.zero_grad()
        method.loss(x_BL[:400], generator_of(step)).total.backward()
        optimizer.step()
    learnt_LV = method.decoder(blank_BL[:1], c_BS[:1], method.mixture, blank_BL[:1] == V).whole().softmax(-1)
    assert (learnt_LV - mean_LV).abs().max() < 0.02


def test_the_chosen_round_is_the_one_whose_samples_are_like_text():
    """By hand: one round writes the last symbol everywhere, the others the mixture; text decides which of them draws."""
    method = made(rounds=2, first=4)
    for number in (0, 2):
        torch.nn.init.zeros_(method.network_of(number).head.weight)
    decoder = method.network_of(1)
    decoder.register_forward_hook(lambda module, inputs, out: out.then(lambda l_RV: l_RV + torch.tensor([0, 0, 30.0])))
    chosen, rounds = sampler_of(method, ChosenCodes), [sampler_of(method, DistilledCodes, round=r) for r in range(3)]
    assert chosen.fills and chosen.networks().keys() == {"latent", "round 0", "round 1", "round 2"}

    def drawn(sampler):
        return sampler.draw(100, 2, generator_of(0)).x_NL

    assert torch.equal(drawn(chosen), drawn(rounds[2])), "before there is text to choose on the last student draws"
    method.settle(np.full((200, L), 2))
    assert (drawn(chosen) == 2).all() and chosen._round == 1
    method.settle(np.random.default_rng(1).integers(V, size=(200, L)))
    fresh = sampler_of(method, ChosenCodes)
    assert torch.equal(drawn(fresh), drawn(rounds[fresh._round])) and fresh._round != 1
    x_NL = torch.randint(V, (50, L), generator=generator_of(1))
    filled = fresh.fill(x_NL, torch.tensor([[False, True, True, False]]).expand(50, -1), 2, generator_of(2)).x_NL
    assert torch.equal(filled[:, [0, 3]], x_NL[:, [0, 3]])


def test_the_teachers_calls_are_counted():
    method = SEQDistilled(tiny_problem(V, 32, width=64), SEQDistilledOptions(slots=4, codes=3, rounds=1, first=2))
    tokens, _, first = stage_flops(
        method, TrainConfig(), torch.zeros((16, 32), dtype=torch.int64), [(0, k) for k in range(8)]
    )
    assert 1.5 < first / tokens < 1.9, "a student's step is three calls, and the teacher's are two"
    assert sum(p.numel() for p in method.parameters()) == sum(
        p.numel() for net in (method.decoder, method.prior) for p in net.parameters()
    )
