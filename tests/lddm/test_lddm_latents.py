"""Parts around SEQ's latent: the kernel distance, the bank, the instruments, the one-call sampler and given latents."""

import math

import pytest
import torch

from harness.config.schema import TrainConfig
from harness.errors import BudgetError, UserError
from harness.study.budget import stage_flops
from lddm import instruments
from lddm.bank import LatentBank
from lddm.kernel_score import distance
from lddm.one_call import OneCallNetwork, one_call_loss
from lddm.samplers.diffusion import Diffusion
from lddm.samplers.encoder import Encoder
from lddm.samplers.one_call import OneCall
from lddm.seq import SEQ, SEQOptions
from tests.kit.toys import generator_of, sampler_of, scramble, tiny_problem

SMALL = {"slots": 2, "dims": 3, "encoder_depth": 1, "prior_depth": 1, "bank": 64, "latent_batch": 32}
X = torch.randint(7, (48, 8), generator=generator_of(1))


def _seq(**options) -> SEQ:
    torch.manual_seed(0)
    method = scramble(SEQ(tiny_problem(), SEQOptions(**(SMALL | options))))
    method.eval().calibrate(X)
    return method


def test_distance_is_the_sum_over_pairs():
    x, y = torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([[[0.0]], [[2.0]]])
    value = {d: 0.5 * math.log(d * d + 0.25) for d in (0, 1, 2)}
    between = (value[0] + value[2] + value[1] + value[1]) / 4
    assert distance(x, y, 0.5).item() == pytest.approx(2 * between - value[1] - value[2], rel=1e-5)


def test_distance_and_its_gradient_are_those_of_the_sums_over_blocks_of_any_size():
    def recorded(x, y, scale):
        x, y = x.double().flatten(1), y.double().flatten(1)

        def rho(a, b):
            return 0.5 * torch.log((a[:, None] - b[None]).square().sum(-1) + scale**2)

        def within(a):
            return (rho(a, a).sum() - rho(a, a).diagonal().sum()) / (len(a) * (len(a) - 1))

        return 2 * rho(x, y).mean() - within(x) - within(y)

    g = generator_of(8)
    x, y = torch.randn(300, 3, 2, generator=g), torch.randn(270, 3, 2, generator=g) + 0.3
    (expected,) = torch.autograd.grad(recorded(x.requires_grad_(), y, 0.5), x)
    assert distance(x, y, 0.5).item() == pytest.approx(recorded(x, y, 0.5).item(), abs=1e-5)
    (found,) = torch.autograd.grad(3.0 * distance(x, y, 0.5), x)
    torch.testing.assert_close(found, 3.0 * expected, rtol=1e-3, atol=1e-6)


def test_distance_has_mean_zero_for_equal_laws_and_sees_a_shift_and_a_shape():
    g = generator_of(2)
    draws = [distance(torch.randn(64, 2, 2, generator=g), torch.randn(64, 2, 2, generator=g), 0.5) for _ in range(200)]
    null = torch.stack(draws)
    assert abs(null.mean()) < 4 * null.std() / math.sqrt(200)
    assert abs(null.mean()) < 0.01
    normal = torch.randn(2000, 2, 2, generator=g)
    assert distance(normal + 0.5, torch.randn(2000, 2, 2, generator=g), 0.5) > 0.02
    # The same mean and variance, another shape: two points in the place of a normal law.
    assert distance(torch.randn(2000, 2, 2, generator=g).sign(), torch.randn(2000, 2, 2, generator=g), 0.5) > 0.02


def test_one_call_learns_a_law_with_a_gap():
    """Two islands at +-1: with signs the map may tear, and the trained outputs have both islands and nothing between."""
    from harness.nn.transformer import TrunkShape

    torch.manual_seed(0)
    net, g = OneCallNetwork(TrunkShape(16, 1, 2), 1, 1, 8, noise=2, signs=True), generator_of(3)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        island = torch.randint(2, (128, 1, 1), generator=g) * 2.0 - 1.0
        loss = one_call_loss(net, island + 0.05 * torch.randn(128, 1, 1, generator=g), 0.05, 2, g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = net.draw(1000, 0.05, g).flatten()
    assert (z.abs() - 1.0).abs().median() < 0.15
    assert (z.abs() < 0.5).float().mean() < 0.05
    assert 0.4 < (z > 0).float().mean() < 0.6


def test_bank_is_a_ring_and_part_of_the_state():
    bank = LatentBank(5, 1, 1)
    for value in range(4):
        bank.put(torch.full((2, 1, 1), float(value)))
    # 0 0 1 1 2 | 2 3 3 overwrote the first three.
    assert bank.mean_MSD.flatten().tolist() == [2.0, 3.0, 3.0, 1.0, 2.0]
    assert int(bank.count) == 5 and int(bank.cursor) == 3
    other = LatentBank(5, 1, 1)
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.draw(9, 0.1, generator_of(4)), bank.draw(9, 0.1, generator_of(4)))
    drawn = bank.draw(20_000, 0.5, generator_of(5)).flatten()
    assert drawn.mean().item() == pytest.approx(2.2, abs=4 * math.sqrt(0.56 + 0.25) / math.sqrt(20_000))
    bank.clear()
    bank.put(torch.ones(2, 1, 1))
    assert set(bank.draw(50, 0.0, generator_of(6)).flatten().tolist()) == {1.0}


def test_information_of_a_gaussian_channel_and_of_islands():
    g = generator_of(7)
    mu = torch.randn(4000, 1, 1, generator=g)
    nats, ceiling = instruments.information(mu, 0.5, g).values()
    assert nats == pytest.approx(0.5 * math.log(1 + 1 / 0.25), abs=0.05) and ceiling == math.log(4000)
    islands = torch.arange(4.0).repeat(250).view(-1, 1, 1) * 100
    assert instruments.information(islands, 0.1, g)["latent_information_nats"] == pytest.approx(math.log(4), abs=0.01)
    apart = torch.arange(256.0).view(-1, 1, 1) * 100  # log 256 nats or more: they cannot be told from more
    assert len(set(instruments.information(apart, 0.1, g).values())) == 1


def test_effective_dims():
    g = generator_of(8)
    line = torch.randn(3000, 1, 1, generator=g).expand(3000, 2, 2)
    assert instruments.effective_dims(line) == pytest.approx(1.0, abs=1e-6)
    assert instruments.effective_dims(torch.randn(5000, 2, 2, generator=g)) == pytest.approx(4.0, abs=0.05)


def test_usage_counts_what_a_slot_is_worth():
    z = torch.randn(64, 3, 2, generator=generator_of(9))
    found = instruments.usage(z, lambda u: float((u[:, 1] - z[:, 1]).square().sum(-1).mean()), generator_of(10))
    assert found["usage_slot00"] == 0.0 and found["usage_slot02"] == 0.0
    assert found["usage_slot01"] == pytest.approx(found["usage_dim00"] + found["usage_dim01"], rel=1e-5)
    assert set(found) == {"usage_slot00", "usage_slot01", "usage_slot02", "usage_dim00", "usage_dim01"}


def test_shares_of_the_loss_sum_to_one():
    found = instruments.by_time(lambda t: 2.0 * t, "loss", (0.5, 1.0))
    assert found == {"loss_t0.5": 1.0, "loss_t1": 2.0, "loss_share_t0.5": pytest.approx(1 / 3),
                     "loss_share_t1": pytest.approx(2 / 3)}  # fmt: skip


@pytest.mark.parametrize(("cls", "split"), [(OneCall, (1, 3)), (Encoder, (0, 4)), (Diffusion, (2, 2))])
def test_where_latents_come_from_changes_the_split_and_the_name_alone(cls, split):
    method = _seq(one_call_share=0.3)
    sampler = sampler_of(method, cls)
    draw = sampler.draw(6, 4, generator_of(11))
    assert (draw.nfe_latent, draw.nfe_token) == split
    assert (sampler.bound(X, generator_of(12)) is None) == (cls is not Diffusion)
    assert sampler.role == ("probe" if cls is Encoder else "")


def test_one_call_refuses_a_single_call_and_options_that_leave_it_untrained():
    with pytest.raises(BudgetError, match="use 2 or more"):
        sampler_of(_seq(one_call_share=0.3), OneCall).check_budget(1)
    sampler_of(_seq(), Encoder).check_budget(1)
    for cls, options in (
        (OneCall, {}),
        (Diffusion, {"prior_share": 0.0}),
        (None, {"one_call_share": 0.8, "prior_share": 0.3}),
    ):
        with pytest.raises(UserError) as caught:
            sampler_of(SEQ(tiny_problem(), SEQOptions(**(SMALL | options))), cls)
        assert "choose" in str(caught.value) and "\n" not in str(caught.value)


def test_stages_train_what_they_name_and_nothing_else():
    method = _seq(one_call_share=0.3).train()
    assert [s.name for s in method.stages()] == ["tokens", "prior", "one_call"]
    trained = {}
    for stage in method.stages():
        method.set_stage(stage.name)
        method.zero_grad(set_to_none=True)
        method.loss(X, generator_of(13)).total.backward()
        trained[stage.name] = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
    assert trained == {"tokens": {"encoder", "decoder"}, "prior": {"prior"}, "one_call": {"generator"}}


def test_matching_pulls_the_latents_towards_the_normal_law():
    method = _seq(match=1.0).train()
    method.set_stage("tokens")
    parts = method.loss(X, generator_of(14)).parts
    assert "match" in parts and math.isfinite(parts["match"])
    assert "match" not in _seq().train().loss(X, generator_of(14)).parts


# ---- the latent that says nothing -----------------------------------------------------------------------------------
def test_a_blank_latent_is_the_same_for_every_text_at_the_same_size_and_cost():
    """What it scores is what SEQ's parameters, calls and noise are worth without a word about the text."""
    blank, plain = _seq(blank=True), _seq()
    assert (blank.encoder.mean(X) == 0).all() and (plain.encoder.mean(X) != 0).any()
    assert sum(p.numel() for p in blank.parameters()) == sum(p.numel() for p in plain.parameters())
    assert stage_flops(blank, TrainConfig(), X, [(0,)]) == stage_flops(plain, TrainConfig(), X, [(0,)])
    latents = blank.encoded(4000, generator_of(1))
    assert latents.std().item() == pytest.approx(blank.encoder.noise, rel=0.02), "the encoder's noise is all there is"
    assert blank.diagnose(X, generator_of(2))["latent_information_nats"] == pytest.approx(0.0, abs=1e-5)
