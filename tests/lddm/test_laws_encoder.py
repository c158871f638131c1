"""The latent encoder: what is standardised, what is frozen, and that no latent loss reaches it."""

import math

import pytest
import torch

from harness.training import statistics
from lddm import gaussian
from lddm.fuji import FUJI, FUJIOptions
from lddm.gaussian import LatentSchedule
from lddm.latent import Standardise, latent_mse, predicted_z0
from lddm.seq import SEQ, SEQOptions
from tests.kit.toys import generator_of, one_thread, scramble, tiny_problem  # noqa: F401


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_no_gradient_of_the_latent_loss_reaches_the_encoder(prediction):
    x_BL = torch.randint(7, (16, 8), generator=generator_of(11))
    grads = []
    for weight in (0.0, 100.0):
        options = SEQOptions(
            slots=2, dims=3, encoder_depth=1, prior_depth=1, latent_weight=weight, prediction=prediction
        )
        torch.manual_seed(0)
        method = scramble(SEQ(tiny_problem(), options)).train()
        method.set_stage("all")
        method.loss(x_BL, generator_of(12)).total.backward()
        grads.append([p.grad.clone() for p in method.encoder.parameters()])
        assert any(p.grad.abs().max() > 0 for p in method.prior.parameters()) == (weight > 0)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert any(g.abs().max() > 0 for g in grads[0]), "the token loss must reach it"


def test_calibration_standardises_every_coordinate_of_every_slot():
    options = FUJIOptions(slots=2, dims=3, encoder_depth=1)
    encoder = scramble(FUJI(tiny_problem(), options).encoder, seed=1, std=0.5).eval()
    x_NL = torch.randint(7, (600, 8), generator=generator_of(13))
    encoder.calibrate(x_NL)
    with torch.no_grad():
        mu_NSD = encoder.mean(x_NL).double()
        z0_NSD = encoder.sample(x_NL, generator_of(14)).double()
    assert torch.allclose(mu_NSD.mean(0), torch.zeros(2, 3, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(mu_NSD.std(0), torch.ones(2, 3, dtype=torch.float64), atol=1e-2)
    noise = z0_NSD - mu_NSD
    assert noise.std().item() == pytest.approx(options.encoder_noise, rel=4 / math.sqrt(2 * noise.numel()))


def test_one_sequence_is_standardised_by_what_was_seen_before_it():
    """In one process, and as the processes of a group add their parts up."""
    layer = Standardise(3).train()
    mean, var = torch.zeros(3), torch.ones(3)
    shown, scale = [], torch.tensor([0.1, 1.0, 10.0])
    for number, feature_C in enumerate(torch.randn(2000, 3, generator=generator_of(20)) * scale + 5.0):
        expected = (feature_C - mean) / (var + layer.eps).sqrt()
        mean, var = mean + 0.05 * (feature_C - mean), var + 0.05 * ((feature_C - mean).square() - var)
        found = layer(feature_C[None])[0]
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4), number
        shown.append(found)
    late = torch.stack(shown[1000:])
    assert late.mean(0).abs().max() < 0.1 and (late.std(0) - 1.0).abs().max() < 0.15
    kept = layer.eval()(torch.full((1, 3), 5.0))
    assert torch.allclose(kept, (5.0 - mean) / (var + layer.eps).sqrt(), atol=1e-3), "what later stages use"


def test_statistics_of_parts_of_one_sequence_are_numbers(monkeypatch):
    layer = Standardise(2).train()
    monkeypatch.setattr(statistics.distributed, "all_reduce", lambda value: None)  # a group of one
    watch = statistics.RunningStatistics(layer)
    for feature in (3.0, 5.0):
        watch.begin()
        layer(torch.full((1, 2), feature))
    watch.end(0, 1)
    watch.close()
    assert layer.running_mean.tolist() == pytest.approx([0.95 * 0.15 + 0.25] * 2)
    assert layer.running_var.tolist() == pytest.approx([0.95 * (0.95 + 0.05 * 9) + 0.05 * 25] * 2)


@pytest.mark.parametrize("cls, options", [(FUJI, FUJIOptions), (SEQ, SEQOptions)])
def test_only_a_distance_between_latents_needs_two_sequences(cls, options):
    small = {"slots": 2, "dims": 3, "encoder_depth": 1}
    assert cls(tiny_problem(), options(**small, match=0.1)).smallest_part == 2
    method = scramble(cls(tiny_problem(), options(**small))).train()
    method.set_stage(method.stages()[0].name)
    assert method.smallest_part == 1
    total = method.loss(torch.zeros((1, 8), dtype=torch.int64), generator_of(0)).total
    total.backward()
    assert torch.isfinite(total) and method.encoder.body.embed.weight.grad.abs().max() > 0


def test_a_frozen_encoder_keeps_weights_and_statistics():
    encoder = scramble(FUJI(tiny_problem(), FUJIOptions(slots=2, dims=3, encoder_depth=1)).encoder).train()
    x_BL = torch.randint(7, (32, 8), generator=generator_of(15))
    encoder.freeze(True)
    before = encoder.standardise.running_mean.clone()
    encoder.mean(x_BL)
    assert torch.equal(before, encoder.standardise.running_mean)
    assert not any(p.requires_grad for p in encoder.parameters())
    encoder.freeze(False)
    encoder.mean(x_BL)
    assert not torch.equal(before, encoder.standardise.running_mean)
    assert all(p.requires_grad for p in encoder.parameters())


def test_hidden_input_is_hidden_in_training_only():
    encoder = FUJI(tiny_problem(), FUJIOptions(slots=2, dims=3, encoder_depth=1, input_mask=0.7)).encoder
    seen = []
    encoder.body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x_BL = torch.randint(7, (200, 8), generator=generator_of(16))
    encoder.train().mean(x_BL, generator_of(17))
    encoder.eval().mean(x_BL, generator_of(17))
    assert float((seen[0] == 7).float().mean()) == pytest.approx(0.7, abs=4 * math.sqrt(0.21 / 1600))
    assert torch.equal(seen[1], x_BL)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_latent_mse_is_zero_for_the_true_answer(prediction):
    schedule, t_B = LatentSchedule(), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    z0 = torch.randn(3, 2, 2, generator=generator_of(18))
    eps = torch.randn(3, 2, 2, generator=generator_of(19))
    zt = gaussian.diffuse(z0, t_B, schedule, eps)
    a, sigma = schedule.a(t_B).view(-1, 1, 1).float(), schedule.sigma(t_B).view(-1, 1, 1).float()
    out = z0 if prediction == "x0" else a * eps - sigma * z0
    assert latent_mse(out, z0, zt, t_B, schedule, prediction).tolist() == pytest.approx([0.0] * 3, abs=1e-9)
    assert torch.allclose(predicted_z0(out, zt, t_B, schedule, prediction), z0, atol=1e-5)
    off = latent_mse(out + 2.0, z0, zt, t_B, schedule, prediction)
    assert off.tolist() == pytest.approx([4.0] * 3, rel=1e-4)
