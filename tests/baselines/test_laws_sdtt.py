"""SDTT: what a student is taught by enumeration, what it learns from it, and that teacher and rounds are counted."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from baselines.samplers.chosen_round import ChosenRound
from baselines.samplers.distilled import Distilled
from baselines.sdtt import SDTT, SDTTOptions
from harness.config.schema import TrainConfig
from harness.diffusion.rounds import frozen
from harness.errors import UserError
from harness.nn.slices import Logits
from harness.study.budget import stage_flops
from harness.training import loop
from tests.kit.toys import (
    TableNetwork,
    all_sequences,
    chi_square_p,
    counts_of,
    exact_table,
    generator_of,
    index_of,
    job_of,
    one_thread,  # noqa: F401
    random_joint,
    random_table,
    sampler_law,
    sampler_of,
    tiny_problem,
)

V, L = 3, 2


class Sliced(nn.Module):
    """A table with the call of a token network."""

    def __init__(self, table: TableNetwork, trained: bool = False) -> None:
        super().__init__()
        logits = table.logits_PLV.clone()
        self.logits_PLV = nn.Parameter(logits) if trained else logits

    def forward(self, x_BL, select_BL, t_B):
        return Logits.of(self.logits_PLV[index_of(x_BL, V + 1)][select_BL])


def in_round(teacher: TableNetwork, student: nn.Module | None = None, **options) -> SDTT:
    """A first round of two steps into one, with tables in the place of networks."""
    method = SDTT(tiny_problem(V, L), SDTTOptions(rounds=1, first=2, **options))
    method.set_stage("round 1")
    method.kept[0] = Sliced(teacher)
    method.network = student or method.network
    return method


def targets(table: TableNetwork, rows: int = 60_000) -> torch.Tensor:
    """What is taught at a sequence of masks, (rows, L, V)."""
    xt_BL = torch.full((rows, L), V)
    t_B = torch.ones(rows, dtype=torch.float64)
    method = in_round(table)
    return method.taught(method.teacher, xt_BL, xt_BL == V, t_B, generator_of(1)).view(rows, L, V)


def enumerated(table: TableNetwork) -> tuple[np.ndarray, np.ndarray]:
    """Means of the taught probabilities and of their logarithms over the first step, each (L, V)."""
    first = table.probabilities((V, V))
    mean, mean_log = np.zeros((L, V)), np.zeros((L, V))
    for flips in itertools.product((False, True), repeat=L):
        for tokens in itertools.product(range(V), repeat=L):
            seen = tuple(x if flip else V for x, flip in zip(tokens, flips, strict=True))
            chance = 0.5**L * np.prod([first[i, tokens[i]] if flips[i] else 1 / V for i in range(L)])
            second = table.probabilities(seen)
            for i in range(L):
                p = first[i] if flips[i] else second[i]
                mean[i] += chance * p
                mean_log[i] += chance * np.log(p)
    return mean, mean_log


def test_what_is_taught_is_the_prediction_of_the_step_that_reveals():
    table = random_table(V, L, seed=1)
    mean, mean_log = enumerated(table)
    found = targets(table)
    assert found.exp().mean(0).numpy() == pytest.approx(mean, abs=0.01)
    assert found.mean(0).numpy() == pytest.approx(mean_log, abs=0.02)


def learnt(table: TableNetwork, divergence: str) -> np.ndarray:
    """The student's law (L, V) at a sequence of masks after its round."""
    student = Sliced(random_table(V, L, seed=9), trained=True)
    method = in_round(table, student, divergence=divergence)
    optimizer, x_BL = torch.optim.Adam(student.parameters(), lr=0.03), torch.zeros((2000, L), dtype=torch.int64)
    for step in range(400):
        optimizer.zero_grad()
        method.loss(x_BL, generator_of(step)).total.backward()
        optimizer.step()
    return student.logits_PLV[index_of(torch.tensor([[V, V]]), V + 1)][0].softmax(-1).detach().numpy()


def test_forward_the_student_is_the_mean_of_its_targets_and_reverse_their_geometric_mean():
    table = TableNetwork(2.5 * random_table(V, L, seed=2).logits_PLV)
    mean, mean_log = enumerated(table)
    sharp = np.exp(mean_log) / np.exp(mean_log).sum(-1, keepdims=True)
    assert np.abs(mean - sharp).max() > 0.05, "or the test could not tell them apart"
    assert learnt(table, "forward") == pytest.approx(mean, abs=0.02)
    assert learnt(table, "reverse") == pytest.approx(sharp, abs=0.02)


def test_an_exact_teacher_has_nothing_to_teach_forward():
    """Its predictions are a martingale: what comes later is in the mean what it says now."""
    table = exact_table(random_joint(V, L, seed=3), V, L)
    assert enumerated(table)[0] == pytest.approx(table.probabilities((V, V)), abs=1e-6)
    assert targets(table).exp().mean(0).numpy() == pytest.approx(table.probabilities((V, V)), abs=0.01)


def test_the_last_step_of_a_grid_is_taught_from_data_that_are_hardly_masked():
    """Times are those of the round's grid: 1 alone, where two steps lead from noise to data."""
    seen, method = [], in_round(random_table(V, L, seed=4), Sliced(random_table(V, L, seed=5), trained=True))
    method.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    method.loss(torch.zeros((50, L), dtype=torch.int64), generator_of(0))
    assert (seen[0][0] == V).all() and (seen[0][2] == 1).all()
    wide = SDTT(tiny_problem(V, L), SDTTOptions(rounds=2, first=16))
    wide.set_stage("round 2")
    wide.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    wide.loss(torch.zeros((64, L), dtype=torch.int64), generator_of(0))
    assert sorted(set(seen[1][2].tolist())) == [0.25, 0.5, 0.75, 1.0]


# ---- rounds ---------------------------------------------------------------------------------------------------------
def test_each_round_begins_with_what_the_last_one_left(tmp_path):
    """The averaged weights at the end of a stage are the next teacher, and the sampler of a round draws with them."""
    method, left = SDTT(tiny_problem(), SDTTOptions(rounds=2, first=4)), []
    plain = method.calibrate

    def calibrate(x_NL):
        plain(x_NL)
        left.append({k: v.clone() for k, v in method.network.state_dict().items()})

    method.calibrate = calibrate
    loop.train(job_of(method, tmp_path, steps=30))
    assert len(left) == 4, "three stages, and the averaged weights"
    for number, weights in enumerate(left[:3]):
        found = method.network_of(number).state_dict()
        assert all(torch.equal(found[name], value) for name, value in weights.items()) and len(found) == len(weights)
    assert any(not torch.equal(left[0][name], left[2][name]) for name in left[0])
    draws = [sampler_of(method, Distilled, round=r).draw(50, 2, generator_of(0)).x_NL for r in range(3)]
    assert torch.equal(draws[2], sampler_of(method).draw(50, 2, generator_of(0)).x_NL)
    assert not torch.equal(draws[0], draws[2])


def test_a_round_draws_the_law_of_its_weights():
    table, method = random_table(V, L, seed=6), SDTT(tiny_problem(V, L), SDTTOptions(rounds=1, first=2))
    method.kept[0] = Sliced(table)
    drawn = sampler_of(method, Distilled, round=0).draw(60_000, 2, generator_of(6))
    assert chi_square_p(counts_of(drawn.x_NL, V), sampler_law(table, [0.0, 0.5, 1.0], V, L)) > 1e-3


def test_the_chosen_round_is_the_one_whose_samples_are_like_text():
    """Data are equal pairs. One round knows what follows a shown token and nothing before; one draws a pair at once."""
    joint = (np.eye(V).flatten() + 1e-4) / (V + 9e-4)
    exact = exact_table(joint, V, L)
    aware = exact.logits_PLV.clone()
    aware[-1] = torch.tensor([-3.0, 3.0, -3.0])  # all in one call: always the pair of one token
    blind = torch.zeros_like(aware)
    method = SDTT(tiny_problem(V, L), SDTTOptions(rounds=2, first=4))
    for number, logits in enumerate((blind, aware, exact.logits_PLV)):
        table = Sliced(TableNetwork(logits))
        if number < 2:
            method.kept[number] = table
        else:
            method.network = table
    method.settle(all_sequences(V, L).numpy()[joint > 0.1].repeat(200, axis=0))
    sampler = sampler_of(method, ChosenRound)
    found = sampler.distances(2, 1.0, torch.device("cpu"))
    assert found.index(min(found)) == 2, "two calls: of exact conditionals the most pairs, and all of them"
    method.settle(np.full((200, L), 1))
    assert (sampler_of(method, ChosenRound).draw(200, 1, generator_of(0)).x_NL == 1).double().mean() > 0.95


def test_before_there_is_text_to_choose_on_the_last_student_draws():
    """What plans a study counts the cost of a draw with a method that nothing has been told yet."""
    method = SDTT(tiny_problem(V, L), SDTTOptions())
    last = sampler_of(method, Distilled, round=method.options.rounds).draw(8, 2, generator_of(0)).x_NL
    assert torch.equal(sampler_of(method, ChosenRound).draw(8, 2, generator_of(0)).x_NL, last)


def test_the_teacher_is_counted_and_is_no_parameter():
    """A round is a student's step and two calls of the teacher; sizes are those of MDLM."""
    problem = tiny_problem(length=32, width=64)
    method = SDTT(problem, SDTTOptions(rounds=2, first=8))
    x_BL = torch.zeros((16, 32), dtype=torch.int64)
    teacher, *rounds = stage_flops(method, TrainConfig(), x_BL, [(0, k) for k in range(8)])
    for flops in rounds:
        assert flops / teacher == pytest.approx(5 / 3, rel=0.05), (
            "forward and backward are three; the teacher's are two"
        )
    assert sum(p.numel() for p in method.parameters()) == sum(p.numel() for p in method.network.parameters())
    assert not list(frozen(method.network).parameters())


def test_steps_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="first=12 steps cannot be halved in 3 rounds; use 16"):
        SDTT(tiny_problem(), SDTTOptions(rounds=3, first=12))
    with pytest.raises(UserError, match="round=4: there are 3 rounds; use 3"):
        sampler_of(SDTT(tiny_problem(), SDTTOptions()), Distilled, round=4)
