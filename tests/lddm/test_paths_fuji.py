"""FUJI on general time paths: bounds and samplers in worlds whose law is known, what is trained, and what is refused."""

import math

import numpy as np
import pytest
import torch

from harness.config.fields import check_fields
from harness.config.registry import find_entries, studies_folder
from harness.contracts import method as of_methods
from harness.contracts import sampler as of_samplers
from harness.contracts.world import build_method, build_sampler
from harness.errors import BudgetError, UserError
from lddm.fuji import FUJI, FUJIOptions
from lddm.kernel_score import distance
from lddm.latent import gaussian_noise, normal_gap
from lddm.samplers.encoder import Encoder
from lddm.samplers.path import AlongPath, AlongPathOptions
from tests.kit.toys import bound_by_x, counts_of, generator_of, index_of, one_thread, sampler_of, scramble, tiny_problem  # noqa: F401
from tests.kit.toys_latent import LatentWorld, WorldEncoder
from tests.lddm.test_laws_latent import END_GAP, NOISE, L, V, entropy_of, fuji_in, mean_over_law, world  # noqa: F401

CORNERS = [0.9, 0.4, 0.6, 0.4, 0.2, 0.0]
PATHS = [
    {"path": "lead", "lead": 3.0},
    {"path": "offset", "offset": 0.4},
    {"path": "latent_first"},
    {"path": "through", "corners": CORNERS},
    {"path": "through", "corners": [0.3, 1.0, 0.0, 0.5]},
]
ids = pytest.mark.parametrize("options", PATHS, ids=lambda o: o["path"])


def along(world, blind: bool = False, **options) -> AlongPath:  # noqa: F811
    """A sampler along a path, on a network that knows the world at all pairs of times; the method's options come along."""
    trained = {k: options.pop(k) for k in ("schedule", "latent_shift") if k in options}
    return sampler_of(fuji_in(world, blind, times="independent", **trained), **options)


# ---- bounds ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options", [*PATHS, {"path": "offset", "schedule": "cosine", "latent_shift": 3.0}], ids=lambda o: o["path"]
)
def test_on_every_path_a_perfect_network_makes_the_bound_the_log_likelihood(world, options):  # noqa: F811
    mean_X, se_X = bound_by_x(along(world, **options), world.x_XL, copies=300, repeats=40)
    excess_X = mean_X + world.joint_X.log().numpy()
    # For one x the price of the end can have either sign (a narrow true posterior of z0, a wide stated one).
    assert (np.abs(excess_X) < 4 * se_X + 0.02).all()
    total, se = mean_over_law(world, mean_X, se_X)
    assert entropy_of(world) - 4 * se <= total <= entropy_of(world) + END_GAP + 4 * se
    assert se < 0.06, "too noisy to tell"


@ids
def test_on_every_path_the_gap_is_the_kl_of_the_encoder(world, options):  # noqa: F811
    """The network knows a law in which z0 given x has other means: the bound pays KL(q || posterior), in closed form."""
    sampler = along(world, **options)
    means_X = world.mean_X.numpy() + np.linspace(-0.6, 0.7, V**L)
    elsewhere = LatentWorld(world.joint_X.numpy(), means_X, NOISE, V, L)
    sampler.method.encoder = WorldEncoder(elsewhere)
    mean_X, se_X = bound_by_x(sampler, world.x_XL, copies=300, repeats=40)
    kl_X = 0.5 * ((means_X - world.mean_X.numpy()) / NOISE) ** 2
    exact_X = -world.joint_X.log().numpy() + kl_X
    assert (mean_X > -world.joint_X.log().numpy() - 4 * se_X - 0.02).all()
    assert (np.abs(mean_X - exact_X) < 4 * se_X + 0.02).all()
    assert kl_X.max() > 1 and np.median(se_X) < 0.15, "too noisy to tell"


@pytest.mark.parametrize("options", PATHS[:-1], ids=lambda o: o["path"])
def test_a_bound_sees_a_token_half_that_ignores_the_latent(world, options):  # noqa: F811
    mean_X, se_X = bound_by_x(along(world, True, **options), world.x_XL, copies=200, repeats=20)
    total, se = mean_over_law(world, mean_X, se_X)
    assert total > entropy_of(world) + 0.05 + 4 * se


# ---- samplers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", PATHS[1:], ids=lambda o: o["path"])
def test_on_every_path_many_perfect_steps_draw_the_law(world, options):  # noqa: F811
    """Total variation below 0.03: what is left is the discretisation and the noise of 10,000 draws (0.01)."""
    draw = along(world, **options).draw(10_000, 128, generator_of(7))
    frequencies = counts_of(draw.x_NL, V) / 10_000
    assert 0.5 * np.abs(frequencies - world.joint_X.numpy()).sum() < 0.03
    assert draw.nfe == 128


@ids
def test_the_network_is_called_on_the_path_only(world, options):  # noqa: F811
    sampler = along(world, **options)
    method, path = sampler.method, sampler.path
    sampler.bound(world.x_XL, generator_of(3))
    (t_x, t_z), (u_x, u_z) = method.network.seen
    assert torch.allclose(t_z.double(), path.latent_time(t_x.double()), atol=1e-6)
    assert torch.allclose(u_x.double(), path.token_time(u_z.double()), atol=1e-6)
    method.network.seen.clear()
    sampler.draw(5, 6, generator_of(4))
    called = [(float(x[0]), float(z[0])) for x, z in method.network.seen]
    expected = [(step.t_x, step.t_z) for step in path.steps(6, "")]
    assert np.array(called) == pytest.approx(np.array(expected), abs=1e-6)


def test_latent_first_draws_no_token_before_the_latent_is_clean(world):  # noqa: F811
    sampler, shown = along(world, path="latent_first", latent_share=0.75), []
    sampler.method.network.register_forward_pre_hook(lambda module, inputs: shown.append((inputs[0] < V).any().item()))
    draw = sampler.draw(50, 8, generator_of(5))
    assert (draw.nfe_latent, draw.nfe_token) == (6, 2)
    assert shown == [False] * 7 + [True]
    with pytest.raises(BudgetError, match="use 2 or more"):
        sampler.check_budget(1)


# ---- given latents --------------------------------------------------------------------------------------------------
def test_encoder_latents_give_tokens_of_the_bank_in_one_call(world):  # noqa: F811
    """One token call given z0 of one training sequence: the product of p(x_i | z0), whatever is in the rest of the bank."""
    method = fuji_in(world, times="independent")
    sampler = sampler_of(method, Encoder)
    assert sampler.role == "probe" and sampler.bound(world.x_XL, generator_of(0)) is None
    method.bank.put(torch.full((1, 1, 1), 1.2))
    draw = sampler.draw(20_000, 1, generator_of(9))
    assert (draw.nfe_latent, draw.nfe_token) == (0, 1)
    z_B = 1.2 + NOISE * torch.randn(20_000, generator=generator_of(10), dtype=torch.float64)
    hidden_BL, one_B = torch.full((20_000, L), V), torch.ones(20_000, dtype=torch.float64)
    p_BLV = world.token_logits(world.posterior(hidden_BL, z_B, one_B, 0 * one_B)).double().exp()
    law_X = torch.einsum("bv,bw->vw", p_BLV[:, 0], p_BLV[:, 1]).flatten() / 20_000
    assert 0.5 * np.abs(counts_of(draw.x_NL, V) / 20_000 - law_X.numpy()).sum() < 0.02
    assert all(float(t_z.max()) == 0.0 for _, t_z in method.network.seen)


def test_the_bank_is_filled_by_calibration_and_kept_with_the_weights():
    options = FUJIOptions(slots=2, dims=3, times="independent")
    method = scramble(FUJI(tiny_problem(), options)).eval()
    x_NL = torch.randint(7, (300, 8), generator=generator_of(11))
    method.calibrate(x_NL)
    assert int(method.bank.count) == 300
    assert torch.allclose(method.bank.mean_MSD[:300], method.encoder.mean(x_NL), atol=1e-5)
    other = FUJI(tiny_problem(), options)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.bank.mean_MSD, method.bank.mean_MSD)


# ---- training -------------------------------------------------------------------------------------------------------
def times_of(batches: int = 400, batch: int = 32, **options) -> tuple[torch.Tensor, torch.Tensor]:
    method = FUJI(tiny_problem(), FUJIOptions(slots=1, dims=1, **options))
    pairs = [method._times(batch, generator_of(k)) for k in range(batches)]
    return torch.stack([t_x for t_x, _ in pairs]), torch.stack([t_z for _, t_z in pairs])


def test_independent_times_are_uniform_and_apart_within_a_batch():
    t_x, t_z = times_of(times="independent", full_mask=0.0, latent_dropout=0.0)
    for t in (t_x, t_z):
        assert float(t.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(t.var()) == pytest.approx(1 / 12, rel=0.05)
        assert float(t.mean(1).var()) < 0.2 / 12 / 32, "stratified: a batch's mean varies less than that of free draws"
    centred_x, centred_z = t_x - t_x.mean(1, keepdim=True), t_z - t_z.mean(1, keepdim=True)
    within = (centred_x * centred_z).sum(1) / (centred_x.norm(dim=1) * centred_z.norm(dim=1))
    assert float(within.mean()) == pytest.approx(0.0, abs=4 / math.sqrt(32 * 400))
    assert float(within.abs().max()) < 0.8, "in no batch do the two times move together"


def test_shares_of_full_masks_and_dropped_latents():
    t_x, t_z = times_of(times="independent", full_mask=0.25, latent_dropout=0.1)
    n = t_x.numel()
    assert float((t_x == 1).double().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.19 / n))
    assert float((t_z == 1).double().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / n))
    t_x, t_z = times_of(times="path", full_mask=0.25, latent_dropout=0.1, lead=3.0)
    assert float((t_x == 1).double().mean()) < 0.01, "with times on the path a full mask is the path's end"
    kept = t_z < 1
    assert torch.equal(t_z[kept], (t_x**3.0)[kept])


def test_matching_pulls_the_latents_towards_a_normal_law():
    """It is part of the loss while the encoder learns, with its weight, and of nothing after."""
    x_BL = torch.randint(7, (64, 8), generator=generator_of(12))
    losses = {}
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        method = scramble(FUJI(tiny_problem(), FUJIOptions(slots=2, dims=2, match=weight))).train()
        for stage in ("encoder", "joint"):
            method.set_stage(stage)
            losses[weight, stage] = method.loss(x_BL, generator_of(13))
    gap = losses[2.0, "encoder"].parts["match"]
    assert float((losses[2.0, "encoder"].total - losses[0.0, "encoder"].total).detach()) == pytest.approx(
        2.0 * float(gap), abs=1e-5
    )
    assert "match" not in losses[2.0, "joint"].parts
    assert torch.equal(losses[2.0, "joint"].total, losses[0.0, "joint"].total)


def test_the_gap_to_a_normal_law_is_0_for_it_and_above_0_for_another():
    good = math.sqrt(1.25) * gaussian_noise((2000, 2, 2), generator_of(14))
    two_points = good.sign() * math.sqrt(1.25)
    assert abs(float(normal_gap(good, 0.5, generator_of(15)))) < 0.01
    assert float(normal_gap(two_points, 0.5, generator_of(15))) > 0.05
    assert float(distance(good, good + 3.0, 0.5)) > 1.0


# ---- contract, names, refusals --------------------------------------------------------------------------------------
SWITCHES = [
    *(("path", options, {}) for options in PATHS),
    ("encoder", {}, {"bank": 4}),
    ("path", {"eta": 0.0}, {"schedule": "cosine", "loss": "nelbo", "match": 1.0}),
]


@pytest.mark.parametrize(("name", "options", "trained"), SWITCHES, ids=lambda o: str(o)[:30])
def test_paths_keep_the_contract(name, options, trained):
    entries = find_entries([studies_folder()])
    content = entries["method"]["fuji_independent"].content | {"slots": 2, "dims": 3} | trained
    for check in (of_methods.bound_of_all, of_methods.instruments, of_methods.gradients):
        check(lambda seed: build_method(content, seed))
    drawing = entries["sampler"][name].content | options
    for check in (of_samplers.bound, of_samplers.budgets, of_samplers.refusals, of_samplers.repeatable):
        check(lambda seed: build_sampler(drawing, content, seed))


def test_instruments_name_what_they_measured():
    x_BL = torch.randint(7, (40, 8), generator=generator_of(16))
    for times, key in (("path", "latent_nats_saved_on_path"), ("independent", "latent_nats_saved")):
        method = scramble(FUJI(tiny_problem(), FUJIOptions(slots=2, dims=3, times=times))).eval()
        method.calibrate(x_BL)
        found = method.diagnose(x_BL, generator_of(17))
        assert [k for k in found if k.startswith("latent_nats_saved")] == [key]
        assert {"usage_slot00", "usage_slot01", "usage_dim02", "token_loss_t0.5", "latent_loss_t1"} <= set(found)
        assert 0 <= found["latent_information_nats"] <= found["latent_information_ceiling_nats"] + 1e-6
        assert found["latent_information_ceiling_nats"] == math.log(40)
        assert found["latent_effective_dims"] <= 6


def test_instruments_see_what_the_latent_is_worth(world):  # noqa: F811
    """A token half that ignores the latent saves nothing, exactly: the same masks and noise are drawn with and without."""
    saved = {}
    for blind in (False, True):
        method = fuji_in(world, blind, times="independent")
        method.encoder.mean = lambda x_BL: world.mean_X[index_of(x_BL, V)].view(-1, 1, 1)
        found = method.diagnose(world.x_XL.repeat(40, 1), generator_of(18))
        saved[blind] = found["latent_nats_saved"]
    assert saved[True] == pytest.approx(0.0, abs=1e-9) and saved[False] > 0.1


def test_titles_name_the_path():
    method = FUJI(tiny_problem(), FUJIOptions(slots=1, dims=1, times="independent"))

    def title(cls=None, **options) -> str:
        return sampler_of(method, cls, **options).title

    assert title() == "FUJI" and sampler_of(method).path.name == "joint, lead 2"
    assert title(path="offset") == "FUJI, offset"
    assert title(path="latent_first") == "FUJI, latent-first"
    assert title(path="through", corners=[0.5, 0]) == "FUJI, polyline"
    assert title(Encoder) == "FUJI, encoder latents"


REFUSALS = [
    ({}, {"path": "offset"}, "choose times=independent"),
    ({}, {"path": "latent_first"}, "choose times=independent"),
    ({}, {"lead": 3.0}, "choose times=independent"),
    ({"lead": 3.0}, {"lead": 2.0}, "choose times=independent"),
]


@pytest.mark.parametrize(("trained", "options", "words"), REFUSALS)
def test_options_that_do_not_go_together_are_refused_in_one_line(trained, options, words):
    with pytest.raises(UserError, match=words) as caught:
        sampler_of(FUJI(tiny_problem(), FUJIOptions(**trained)), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (FUJIOptions(times="independant"), "times=independant: is unknown; did you mean 'independent'"),
        (AlongPathOptions(path="latentfirst"), "path=latentfirst: is unknown; did you mean 'latent_first'"),
        (AlongPathOptions(offset=1.0), "offset=1.0: must be"),
        (AlongPathOptions(lead=-1.0), "lead=-1.0: must be"),
        (FUJIOptions(lead=-1.0), "lead=-1.0: must be"),
        (FUJIOptions(bank=1), "bank=1: must be"),
        (FUJIOptions(encoder_share=1.0), "encoder_share=1.0: must be"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_in_one_line(options, words):
    with pytest.raises(UserError, match=words) as caught:
        check_fields(options, "")
    assert "\n" not in str(caught.value)


def test_clean_latents_are_refused_where_only_the_path_was_trained():
    with pytest.raises(UserError, match="choose times=independent"):
        sampler_of(FUJI(tiny_problem(), FUJIOptions(slots=1, dims=1)), Encoder)
