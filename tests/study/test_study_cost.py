"""What calls and FLOPs are counted as: against the matrix products of the network written out, and by hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines.autoregressive import Autoregressive
from baselines.mdlm import MDLM, MDLMOptions
from harness.config.fields import NoOptions
from harness.config.schema import TrainConfig
from harness.errors import BudgetError
from harness.interface import Problem
from harness.nn.slices import unshared
from harness.nn.transformer import TrunkShape
from harness.store import ResultsTable, read_json
from harness.study.budget import count_flops, counted_calls, full_call_flops, parse_budgets, stage_flops
from harness.study.cells import Part
from harness.study.sampling import SamplerError, checked_draw, draw_samples
from harness.training.precision import Numerics
from harness.training.seeds import step_generator
from lddm.mixture import ProductMixture
from lddm.seq import SEQ, SEQOptions
from tests.kit.study_plugins import Independent, IndependentOptions, Liar, Positions, PositionsOptions
from tests.kit.toys import sampler_of

PROBLEM = Problem(vocab_size=11, length=12, shape=TrunkShape(width=16, depth=3, heads=2, mlp_ratio=2.0))


def _products(length: int, shape: TrunkShape) -> int:
    """Two operations for each multiply-add of a trunk on `length` positions: projections, attention, MLP."""
    E, L = shape.width, length
    hidden = int(E * shape.mlp_ratio)
    block = L * E * 3 * E + L * E * E  # queries, keys, values; output
    block += 2 * L * L * E  # scores, and their mean of the values
    block += 2 * L * E * hidden
    return 2 * shape.depth * block


def test_full_call_is_the_sum_of_its_matrix_products():
    head = 2 * PROBLEM.length * PROBLEM.shape.width * PROBLEM.vocab_size
    assert full_call_flops(PROBLEM) == _products(PROBLEM.length, PROBLEM.shape) + head


def test_sampling_flops_are_calls_of_the_trunk_and_heads_where_a_token_is_drawn():
    """Every position is drawn once in a whole sample, so the head costs one full pass however many calls there are."""
    method = MDLM(PROBLEM, MDLMOptions()).eval()
    head = 2 * PROBLEM.length * PROBLEM.shape.width * PROBLEM.vocab_size
    for nfe in (1, 3, 8):
        one = _products(PROBLEM.length, PROBLEM.shape)
        with torch.no_grad(), unshared():
            flops = count_flops(lambda nfe=nfe: sampler_of(method).draw(5, nfe, step_generator("cpu", 1)))
        assert flops == 5 * (nfe * one + head)
        with torch.no_grad():
            flops = count_flops(lambda nfe=nfe: sampler_of(method).draw(5, nfe, step_generator("cpu", 1)))
        assert flops == (1 + 5 * (nfe - 1)) * one + 5 * head, "the first call, of masks alone, is made once"


def test_draw_samples_counts_for_each_sequence_and_meets_the_budget():
    method = MDLM(PROBLEM, MDLMOptions())
    drawn = draw_samples(
        sampler_of(method), Part(4, 1.0), 10, 4, (1, 0), Numerics("cpu", "float32"), lambda done, total: None
    )
    head = 2 * PROBLEM.length * PROBLEM.shape.width * PROBLEM.vocab_size
    assert drawn.flops_per_seq == 4 * _products(PROBLEM.length, PROBLEM.shape) + head
    assert drawn.x_NL.shape == (10, PROBLEM.length) and (drawn.nfe_latent, drawn.nfe_token) == (0, 4)
    assert drawn.seconds_per_seq > 0 and drawn.draw_dtype == "float64"


def test_samples_do_not_depend_on_how_many_are_asked_for():
    """Chunks have generators of their own, so that the first sequences of a longer run are those of a shorter one."""
    method = MDLM(PROBLEM, MDLMOptions())
    numerics = Numerics("cpu", "float32")
    short = draw_samples(sampler_of(method), Part(4, 1.0), 6, 4, (1, 0), numerics, lambda done, total: None).x_NL
    long = draw_samples(sampler_of(method), Part(4, 1.0), 10, 4, (1, 0), numerics, lambda done, total: None).x_NL
    other = draw_samples(sampler_of(method), Part(4, 1.0), 6, 4, (2, 0), numerics, lambda done, total: None).x_NL
    np.testing.assert_array_equal(short, long[:6])
    assert (short != other).any()


def test_latent_calls_are_counted_in_full_and_cost_what_they_cost():
    options = SEQOptions(slots=4, dims=3, prior_depth=2, encoder_depth=1)
    method = SEQ(PROBLEM, options).eval()
    with counted_calls(sampler_of(method)) as calls, torch.no_grad():
        flops = count_flops(lambda: sampler_of(method).draw(3, 6, step_generator("cpu", 1)))
    assert dict(calls) == {"latent": 3, "token": 3}
    assert flops / 3 < 6 * full_call_flops(PROBLEM)


def test_calls_are_counted_by_hooks_and_not_by_what_a_sampler_says():
    method = Positions(PROBLEM, PositionsOptions())
    with pytest.raises(SamplerError, match="reports 3 calls at NFE 3; its networks saw 4"):
        checked_draw(Liar(method, IndependentOptions()), 2, Part(3, 1.0), step_generator("cpu", 0))
    honest = Independent(method, IndependentOptions())
    assert checked_draw(honest, 2, Part(3, 1.0), step_generator("cpu", 0)).nfe == 3
    assert not method.table._forward_pre_hooks


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"x_NL": torch.full((2, 12), 11)}, "outside its vocabulary"), ({"draw_dtype": "float32"}, "asks for float64")],
)
def test_a_mask_left_over_or_a_draw_in_single_precision_is_refused(wrong, message, monkeypatch):
    import dataclasses

    class Wrong(Independent):
        def draw(self, n, nfe, generator, temperature=1.0):
            return dataclasses.replace(super().draw(n, nfe, generator, temperature), **wrong)

    with pytest.raises(SamplerError, match=message):
        method = Positions(PROBLEM, PositionsOptions())
        checked_draw(Wrong(method, IndependentOptions()), 2, Part(1, 1.0), step_generator("cpu", 0))


def test_budgets_are_those_that_a_sampler_can_meet():
    assert parse_budgets(sampler_of(MDLM(PROBLEM, MDLMOptions())), [1, 5]) == (1, 5)
    seq = sampler_of(SEQ(PROBLEM, SEQOptions(slots=4, dims=3, encoder_depth=1)))
    assert parse_budgets(seq, [2, 3]) == (2, 3)
    with pytest.raises(BudgetError, match="nfe=1 cannot be met by SEQ.*use 2"):
        parse_budgets(seq, [1, 2])


def _iterations(rows: int, columns: int) -> int:
    """Three Newton-Schulz iterations, a m x n matrix with m <= n: X X', its square, and the product with X."""
    m, n = sorted((rows, columns))
    return 3 * 2 * (m * m * n + m**3 + m * m * n)


@pytest.mark.parametrize("seq", [False, True])
def test_training_flops_hold_the_iterations_of_muon_for_what_a_stage_trains(seq):
    E, hidden = 16, 32
    block = _iterations(3 * E, E) + _iterations(E, E) + 2 * _iterations(hidden, E)
    method, expected = MDLM(PROBLEM, MDLMOptions()), [3 * block]
    if seq:
        method = SEQ(PROBLEM, SEQOptions(slots=4, dims=3, prior_depth=2, encoder_depth=1))
        # Encoder and decoder first; then the prior, whose blocks have a map of the time besides.
        expected = [(1 + 3) * block, 2 * (block + _iterations(6 * E, E))]
    x_BL = torch.zeros((4, PROBLEM.length), dtype=torch.int64)
    before = {name: value.clone() for name, value in method.named_parameters()}
    plain, muon = (stage_flops(method, TrainConfig(optimizer=o), x_BL, [(0,), (1,)]) for o in ("adamw", "muon"))
    assert [m - p for m, p in zip(muon, plain, strict=True)] == expected
    assert all(torch.equal(value, before[name]) for name, value in method.named_parameters())


def test_a_step_is_counted_on_one_part_and_costs_as_many_as_it_has():
    """An autoregressive step has no draw in it: a batch costs what its parts do, and the optimizer's products once."""
    seen = []

    class Watched(Autoregressive):
        def loss(self, x_BL, generator):
            seen.append(len(x_BL))
            return super().loss(x_BL, generator)

    x_BL = torch.zeros((8, PROBLEM.length), dtype=torch.int64)
    for optimizer in ("adamw", "muon"):
        whole, parts = (
            stage_flops(Watched(PROBLEM, NoOptions()), TrainConfig(optimizer=optimizer, accumulate=n), x, [(0,)])
            for n, x in ((1, x_BL), (4, x_BL[:2]))
        )
        assert whole == parts
    assert seen == [8, 2, 8, 2]


def test_training_cost_is_three_passes_for_each_token(finished):
    """A trunk's backward pass costs twice its forward pass; MDLM's head runs at the masked half of the positions."""
    frame = ResultsTable.read(finished.folder / "results.parquet").set_index("method")
    steps, batch, length = 60, 16, 32
    assert set(frame.loc["mdlm", "train_tokens"]) == {steps * batch * length}
    cost = frame.loc["mdlm", "train_flops"].iloc[0]
    problem = Problem(96, length, TrunkShape(32, 2, 2, stem=5))
    whole = 3 * steps * batch * full_call_flops(problem)
    without_head = 3 * steps * batch * _products(length, problem.shape)
    # The recipe's optimiser costs products of its own, less than a tenth of a step at this size.
    assert without_head <= cost <= 1.1 * whole
    assert np.isnan(frame.loc["unigram", "train_flops"])
    assert read_json(next(finished.folder.glob("weights/mdlm-*/cost.json")))["train_seconds"] > 0
    facts = read_json(next(finished.folder.glob("cells/mdlm-*/facts-*")))
    assert "24 test sequences" in facts["bound_estimator"]


def test_flops_of_a_fit_are_those_of_its_products():
    """EM: two products of (rows, components, entries) a step, the marginal law and the total log p(x)."""
    mixture, x_NC = ProductMixture(16, 4, 9), np.random.default_rng(0).integers(9, size=(500, 4))
    rows, entries = len(np.unique(x_NC, axis=0)), 4 * 9
    counted = count_flops(lambda: mixture.fit(x_NC, 3, 1.0))
    assert counted == 3 * (2 * 2 * rows * 16 * entries + 2 * rows) + 2 * rows * entries


def test_no_product_goes_uncounted():
    """In place or not, of matrices or of vectors: as many FLOPs as the plain product has."""
    a, b, v = torch.ones(3, 4), torch.ones(4, 5), torch.ones(4)
    c, d, e = torch.zeros(3, 5), torch.zeros(2, 3, 5), torch.zeros(3)
    for run, expected in (
        (lambda: c.addmm_(a, b), 120),
        (lambda: torch.addmm(c, a, b), 120),
        (lambda: d.baddbmm_(a.expand(2, 3, 4), b.expand(2, 4, 5)), 240),
        (lambda: a @ v, 24),
        (lambda: e.addmv_(a, v), 24),
        (lambda: torch.addmv(e, a, v), 24),
        (lambda: v @ v, 8),
        (lambda: torch.einsum("ij,jk->ik", a, b), 120),
        (lambda: torch.zeros(3, 4).addr_(torch.ones(3), v), 24),
    ):
        assert count_flops(run) == expected
