"""Networks: selected logits, precision, rotary positions, causality, cached decoding, and how the two streams meet."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from harness.nn.networks import TokenNetwork
from harness.nn.transformer import (
    Block,
    Stem,
    Trunk,
    TrunkShape,
    attend,
    recompute_blocks,
    rms_norm,
    rotary_table,
    rotate,
    squared_relu,
    time_features,
)
from lddm.networks import JointNetwork, LatentNetwork, SlotEncoder, slot_positions
from tests.kit.toys import generator_of, one_thread, scramble  # noqa: F401

SHAPE, V, L, S, D = TrunkShape(width=16, depth=2, heads=2, mlp_ratio=2.0), 7, 6, 3, 4
X = torch.randint(V + 1, (5, L), generator=generator_of(0))
Z = torch.randn(5, S, D, generator=generator_of(1))
T_X, T_Z = torch.linspace(0.1, 0.9, 5), torch.linspace(0.8, 0.2, 5)
SELECT = torch.rand(5, L, generator=generator_of(2)) < 0.4


def joint(time: str = "add") -> JointNetwork:
    return scramble(JointNetwork(SHAPE, V, S, D, time), seed=3)


def called(network, x_BL, *others):
    """Logits of all positions (B, L, V) and the latent output."""
    logits, latent = network(x_BL, *others)
    return logits.whole().view(*x_BL.shape, -1), latent


# ---- heads and precision --------------------------------------------------------------------------------------------
def test_selected_logits_are_those_of_the_full_pass():
    token = scramble(TokenNetwork(SHAPE, V))
    full_BLV = token(X).whole().view(*X.shape, V)
    assert torch.allclose(token(X, SELECT).whole(), full_BLV[SELECT], atol=1e-6)
    assert token(X, SELECT).shape == (int(SELECT.sum()), V)
    both = joint()
    full, latent = called(both, X, Z, T_X, T_Z)
    some, latent_again = both(X, Z, T_X, T_Z, SELECT)
    assert torch.allclose(some.whole(), full[SELECT], atol=1e-6)
    assert torch.allclose(latent, latent_again, atol=1e-6)
    assert (full.shape, latent.shape) == ((5, L, V), (5, S, D))


def test_selecting_nothing_gives_no_rows():
    assert TokenNetwork(SHAPE, V)(X, torch.zeros_like(SELECT)).shape == (0, V)
    assert joint()(X, Z, T_X, T_Z, torch.zeros_like(SELECT))[0].shape == (0, V)


@pytest.mark.parametrize("time", ["add", "adaln"])
def test_outputs_are_float32_under_bfloat16_autocast_and_close_to_it(time):
    both, prior = joint(time), scramble(LatentNetwork(SHAPE, S, D, L), std=0.1)
    encoder, token = scramble(SlotEncoder(SHAPE, V, S, D), std=0.1), scramble(TokenNetwork(SHAPE, V), std=0.1)
    calls = [
        lambda: token(X).whole(), lambda: both(X, Z, T_X, T_Z)[0].whole(), lambda: both(X, Z, T_X, T_Z)[1],
        lambda: prior(Z, T_Z), lambda: encoder(X),
    ]  # fmt: skip
    for call in calls:
        exact = call()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = call()
        assert rough.dtype == torch.float32
        assert not torch.equal(rough, exact), "autocast did nothing"
        # Correlation rather than distance: bfloat16 has 8 bits, and an error in the arithmetic would be of order 1.
        assert torch.corrcoef(torch.stack((rough.flatten(), exact.flatten())))[0, 1] > 0.99


def test_logits_start_at_the_uniform_law_and_the_latent_output_at_zero():
    assert torch.equal(TokenNetwork(SHAPE, V)(X).whole(), torch.zeros(5 * L, V))
    logits, latent = called(JointNetwork(SHAPE, V, S, D), X, Z, T_X, T_Z)
    assert torch.equal(logits, torch.zeros(5, L, V)) and torch.equal(latent, torch.zeros(5, S, D))
    assert torch.equal(LatentNetwork(SHAPE, S, D, L)(Z, T_Z), torch.zeros(5, S, D))


# ---- parts of the trunk ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [5, 520])
def test_attention_written_out_is_the_library_function(causal, length):
    q, k, v = torch.randn(3, 2, 2, length, 8, generator=generator_of(4))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert torch.allclose(attend(q, k, v, causal), expected, atol=1e-5)


def test_norm_and_activation_are_their_definitions():
    u, gain = torch.randn(4, 9, generator=generator_of(5)), torch.rand(9, generator=generator_of(6))
    assert torch.allclose(rms_norm(u, gain), F.rms_norm(u, (9,), gain, eps=1e-6), atol=1e-6)
    assert torch.equal(squared_relu(torch.tensor([-2.0, 0.0, 3.0])), torch.tensor([0.0, 0.0, 9.0]))
    assert rms_norm(u.bfloat16(), gain).dtype == torch.bfloat16


def test_rotary_dot_products_depend_on_the_difference_of_positions_only():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator_of(7))

    def dot(position_q: float, position_k: float) -> float:
        q_at = rotate(q, *rotary_table(torch.tensor([position_q]), 8))
        k_at = rotate(k, *rotary_table(torch.tensor([position_k]), 8))
        return float((q_at * k_at).sum())

    assert dot(3.0, 1.0) == pytest.approx(dot(40.0, 38.0), abs=1e-4)
    assert dot(2.5, 0.0) == pytest.approx(dot(12.5, 10.0), abs=1e-4)
    assert abs(dot(3.0, 1.0) - dot(1.0, 3.0)) > 1e-3, "a rotation that does nothing passes the lines above"


def test_rotation_keeps_lengths_and_position_0():
    u = torch.randn(1, 1, 6, 8, generator=generator_of(8))
    turned = rotate(u, *rotary_table(torch.arange(6), 8))
    assert torch.allclose(turned.norm(dim=-1), u.norm(dim=-1), atol=1e-5)
    assert torch.allclose(turned[:, :, 0], u[:, :, 0])
    assert not torch.allclose(turned[:, :, 1], u[:, :, 1])


def test_trunk_sees_relative_positions_and_not_absolute_ones():
    trunk, h = scramble(Trunk(SHAPE)), torch.randn(2, L, 16, generator=generator_of(9))
    here, _ = trunk(h, torch.arange(L))
    shifted, _ = trunk(h, torch.arange(L) + 20)
    stretched, _ = trunk(h, torch.arange(L) * 2)
    assert torch.allclose(here, shifted, atol=1e-4)
    assert not torch.allclose(here, stretched, atol=1e-2)


def test_adaln_starts_as_if_unconditioned_and_then_conditions():
    block = Block(SHAPE, causal=False, cond=True)
    h, cond = torch.randn(2, L, 16, generator=generator_of(10)), torch.randn(2, 1, 16, generator=generator_of(11))
    rotary = rotary_table(torch.arange(L), 8)
    u = rms_norm(h, block.norm_a)
    a, _ = block.attention(u, rotary)
    plain = h + 2 * 0 + a
    plain = plain + block.down(squared_relu(block.up(rms_norm(plain, block.norm_m))))
    assert torch.allclose(block(h, rotary, cond)[0], plain, atol=1e-6)
    scramble(block)
    assert not torch.allclose(block(h, rotary, cond)[0], block(h, rotary, cond + 1)[0], atol=1e-3)


def test_time_features_tell_nearby_times_apart():
    t = torch.linspace(0, 1, 1001)
    features = time_features(t, 64)
    assert features.shape == (1001, 64) and features.abs().max() <= 1.0
    assert torch.allclose(features[0], torch.cat((torch.ones(32), torch.zeros(32))))
    assert (features.diff(dim=0).norm(dim=1) > 1e-2).all()


@pytest.mark.parametrize("arguments", [{"width": 18, "heads": 4}, {"width": 0}, {"depth": 0}, {"heads": 0}])
def test_impossible_shapes_are_refused(arguments):
    with pytest.raises((ValueError, ZeroDivisionError)):
        TrunkShape(**arguments)


# ---- causality ------------------------------------------------------------------------------------------------------
def test_a_causal_network_does_not_look_ahead_and_a_plain_one_does():
    for causal in (True, False):
        network = scramble(TokenNetwork(SHAPE, V, causal=causal))
        changed = X.clone()
        changed[:, 3] = (changed[:, 3] + 1) % V
        before, after = network(X).whole(), network(changed).whole()
        same = torch.isclose(before, after, atol=1e-5).all(-1).view(X.shape).all(0)
        assert same.tolist() == ([True] * 3 + [False] * 3 if causal else [False] * L)


def test_decoding_with_a_cache_is_the_full_pass():
    network = scramble(TokenNetwork(SHAPE, V, causal=True))
    full, caches = network(X).whole().view(5, L, V), None
    for i in range(L):
        logits, caches = network.decode_next(X[:, i], i, caches)
        assert torch.allclose(logits, full[:, i], atol=1e-5)
    assert caches[0][0].shape == (5, 2, L, 8)


# ---- two streams ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("time", ["add", "adaln"])
def test_each_stream_reaches_every_place_of_the_other(time):
    network = joint(time)
    logits, latent = called(network, X, Z, T_X, T_Z)
    for slot in range(S):
        moved = Z.clone()
        moved[:, slot] += 1.0
        changed = (called(network, moved_x := X, moved, T_X, T_Z)[0] - logits).abs().amax(-1)
        assert moved_x is X and (changed > 1e-5).all()
    for position in range(L):
        moved = X.clone()
        moved[:, position] = (moved[:, position] + 1) % (V + 1)
        assert ((network(moved, Z, T_X, T_Z)[1] - latent).abs().amax(-1) > 1e-5).all()


@pytest.mark.parametrize("time", ["add", "adaln"])
def test_both_times_matter_and_belong_to_their_sequence(time):
    network = joint(time)
    before = called(network, X, Z, T_X, T_Z)
    for changed in (called(network, X, Z, T_X.flip(0), T_Z), called(network, X, Z, T_X, T_Z.flip(0))):
        for now, then in zip(changed, before, strict=True):
            moved = (now - then).abs().flatten(1).amax(1) > 1e-5
            assert moved.tolist() == [True, True, False, True, True], "the third time stays where it is"


def test_rows_of_a_batch_do_not_touch():
    network, encoder = joint(), scramble(SlotEncoder(SHAPE, V, S, D))
    logits, latent = called(network, X, Z, T_X, T_Z)
    one_logits, one_latent = called(network, X[1:2], Z[1:2], T_X[1:2], T_Z[1:2])
    assert torch.allclose(logits[1:2], one_logits, atol=1e-5) and torch.allclose(latent[1:2], one_latent, atol=1e-5)
    assert torch.allclose(encoder(X)[1:2], encoder(X[1:2]), atol=1e-5)


def test_slots_differ_and_the_encoder_reads_order():
    encoder = scramble(SlotEncoder(SHAPE, V, S, D))
    out = encoder(X)
    assert out.shape == (5, S, D)
    assert (out[:, 0] - out[:, 1]).abs().min() > 1e-6
    assert not torch.allclose(out, encoder(X.flip(1)), atol=1e-3)


def test_self_conditioning_estimate_is_read_and_absence_is_zeros():
    prior = scramble(LatentNetwork(SHAPE, S, D, L))
    assert torch.equal(prior(Z, T_Z), prior(Z, T_Z, torch.zeros_like(Z)))
    assert not torch.allclose(prior(Z, T_Z), prior(Z, T_Z, Z), atol=1e-3)


def test_slots_stand_at_the_middle_of_their_segments():
    assert slot_positions(4, 8, torch.device("cpu")).tolist() == [0.5, 2.5, 4.5, 6.5]
    assert slot_positions(1, 9, torch.device("cpu")).tolist() == [4.0]
    assert slot_positions(8, 8, torch.device("cpu")).tolist() == list(range(8))


# ---- the stem -------------------------------------------------------------------------------------------------------
def test_a_stem_of_no_width_is_no_part_of_a_network():
    """Checkpoints and draws of weights are those of networks that never had one."""
    assert not [name for name, _ in TokenNetwork(SHAPE, V).named_parameters() if "stem" in name]
    assert torch.equal(Stem(4, 0)(torch.ones(1, 3, 4)), torch.ones(1, 3, 4))


def test_a_stem_sees_its_neighbours_and_no_further_on_both_sides():
    stem, h_BLE = Stem(4, 5), torch.randn(1, 11, 4, generator=torch.Generator().manual_seed(0))
    moved_BLE = h_BLE.clone()
    moved_BLE[:, 5] += 1.0
    change_L = (stem(moved_BLE) - stem(h_BLE)).abs().amax((0, 2))
    assert (change_L > 0).nonzero().flatten().tolist() == [3, 4, 5, 6, 7]


def test_bidirectional_networks_have_the_stem_and_causal_ones_do_not():
    shape = replace(SHAPE, stem=3)
    for network in (TokenNetwork(shape, V), JointNetwork(shape, V, S, D), SlotEncoder(shape, V, S, D)):
        assert network.stem.mix is not None and network.stem.mix.kernel_size == (3,)
    assert TokenNetwork(shape, V, causal=True).stem.mix is None


# ---- blocks that are computed again ---------------------------------------------------------------------------------
def kept_and_gradients(network: TokenNetwork, again: bool) -> tuple[int, list[torch.Tensor]]:
    """Bytes that a forward pass keeps besides the weights, and the gradients."""
    recompute_blocks(network, again)
    network.zero_grad(set_to_none=True)
    own, kept = {p.data_ptr() for p in network.parameters()}, dict[int, int]()

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in own:
            kept[value.data_ptr()] = value.numel() * value.element_size()
        return value

    x_BL, t_B = torch.arange(24).view(2, 12) % V, torch.tensor([0.2, 0.7])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        total = network(x_BL, None, t_B).whole().square().sum()
    total.backward()
    return sum(kept.values()), [p.grad for p in network.parameters()]


def test_blocks_that_are_computed_again_keep_less_and_have_the_same_gradients():
    network = scramble(TokenNetwork(replace(SHAPE, depth=6), V, time=True))
    (much, plain), (little, again) = (kept_and_gradients(network, wanted) for wanted in (False, True))
    assert all(map(torch.equal, plain, again))
    assert little < much / 4
