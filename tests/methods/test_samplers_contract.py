"""What every sampler under `studies/sampler/` owes the harness; a new YAML is tested here without a new line.

Each is put on every method under `studies/method/` that it can draw from, with the tiny problem of the methods' contract.
"""

import dataclasses
import re

import numpy as np
import pytest
import torch

import tests.methods.test_methods_contract as methods
from harness.config.registry import build_options, find_entries, locate, studies_folder
from harness.errors import BudgetError, UserError
from harness.interface import Sampler
from harness.study.cells import Part
from harness.study.sampling import checked_draw
from tests.kit.toys import generator_of, one_thread  # noqa: F401

ENTRIES = find_entries([studies_folder()])["sampler"]
V, L, X = methods.V, methods.L, methods.X
WANTED = (1, 2, 3, 4, 7, L, 2 * L)
#: What a method needs so that a sampler can draw from it.
READY = {"one_call": {"one_call_share": 0.3}}


def pairs() -> list[tuple[str, str]]:
    """(method, sampler) of all that go together; of methods of one class the first by name."""
    found = {}
    for name in sorted(ENTRIES):
        cls = locate(ENTRIES[name].content["_target_"])
        for method, entry in sorted(methods.ENTRIES.items(), reverse=True):
            target = locate(entry.content["_target_"])
            # FUJI trained along a path can be sampled on that path alone.
            apart = name == "encoder" and target.__name__ == "FUJI" and method == "fuji"
            if issubclass(target, cls.methods) and not apart:
                found[target, name] = (method, name)
    return sorted(found.values())


def build(method: str, name: str, seed: int = 0, **options) -> Sampler:
    """The sampler as its YAML has it, on a method whose weights say something."""
    built = methods.build(method, seed, **READY.get(name, {}))
    cls, own = build_options(ENTRIES[name].content | options)
    return cls(built, own)


@pytest.fixture(params=pairs(), ids="/".join)
def sampler(request) -> Sampler:
    return build(*request.param)


def runnable(sampler: Sampler) -> list[int]:
    """Every wanted budget that the sampler says it can meet."""
    return [nfe for nfe in sampler.budgets(WANTED) if accepts(sampler, nfe)]


def accepts(sampler: Sampler, nfe: int) -> bool:
    try:
        sampler.check_budget(nfe)
    except BudgetError:
        return False
    return True


def draw(sampler: Sampler, nfe: int, seed: int = 0, n: int = 12, temperature: float = 1.0):
    with torch.inference_mode():
        return checked_draw(sampler, n, Part(nfe, temperature), generator_of(seed))


def test_each_yaml_has_a_method_and_says_what_it_is():
    assert {name for _, name in pairs()} == set(ENTRIES)
    assert all(entry.about for entry in ENTRIES.values()), "the first comment of a YAML says what it is"


def test_it_has_a_title_and_a_role(sampler):
    assert sampler.title.startswith(sampler.method.title.split(",")[0])
    assert sampler.role in ("", "probe") and dataclasses.is_dataclass(type(sampler).Options)
    assert not isinstance(sampler, torch.nn.Module), "a sampler has no weights"


def test_a_method_that_it_cannot_draw_from_is_refused_in_one_line(sampler):
    other = next(m for m in map(methods.build, ("ar", "unigram")) if not isinstance(m, type(sampler).methods))
    with pytest.raises(UserError, match="draws from") as caught:
        type(sampler)(other, sampler.options)
    assert "\n" not in str(caught.value)


def test_every_budget_is_met_exactly_with_whole_clean_sequences(sampler):
    """`checked_draw` counts calls by hooks and refuses masks, wrong shapes and draws that are not float64."""
    budgets = runnable(sampler)
    assert budgets, f"{sampler.title} can run at none of {WANTED}"
    for nfe in budgets:
        drawn = draw(sampler, nfe)
        assert drawn.nfe == nfe and min(drawn.nfe_latent, drawn.nfe_token) >= 0
        assert drawn.x_NL.dtype == torch.int64 and drawn.x_NL.shape == (12, L)
        assert int(drawn.x_NL.min()) >= 0 and int(drawn.x_NL.max()) < V
        assert drawn.draw_dtype == "float64"


def test_refused_budgets_name_one_that_works_in_one_line(sampler):
    refused = [nfe for nfe in (-1, 0, 1, 2, 3, L, 1000) if not accepts(sampler, nfe)]
    assert refused, "nothing runs at a negative number of calls"
    for nfe in refused:
        with pytest.raises(BudgetError) as caught:
            sampler.check_budget(nfe)
        text = str(caught.value)
        assert "\n" not in text and f"nfe={nfe}" in text and sampler.title in text
        advised = int(re.search(r"use (\d+)", text)[1])
        sampler.check_budget(advised)
        assert draw(sampler, advised, n=2).nfe == advised
        with pytest.raises(BudgetError):
            sampler.draw(2, nfe, generator_of(0))


def test_draws_are_a_function_of_the_generator(sampler):
    nfe = runnable(sampler)[-1]
    torch.manual_seed(0)
    first = draw(sampler, nfe, seed=1).x_NL
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    assert torch.equal(first, draw(sampler, nfe, seed=1).x_NL)
    assert not torch.equal(first, draw(sampler, nfe, seed=2).x_NL)


def test_sequences_of_a_draw_differ(sampler):
    for nfe in runnable(sampler):
        assert len(draw(sampler, nfe, n=12).x_NL.unique(dim=0)) > 6


def test_one_sequence_and_other_temperatures(sampler):
    for nfe in runnable(sampler):
        assert draw(sampler, nfe, n=1).x_NL.shape == (1, L)
        if sampler.method.role == "method":
            cold = draw(sampler, nfe, n=200, temperature=0.05).x_NL
            warm = draw(sampler, nfe, n=200, temperature=1.0).x_NL
            assert len(cold.unique(dim=0)) <= len(warm.unique(dim=0))


def test_drawing_leaves_the_weights_as_they_are(sampler):
    before = {k: v.clone() for k, v in sampler.method.state_dict().items()}
    draw(sampler, runnable(sampler)[-1])
    assert all(torch.equal(before[k], v) for k, v in sampler.method.state_dict().items())


@torch.no_grad()
def test_bound_is_none_or_one_finite_value_for_each_sequence(sampler):
    bound = sampler.bound(X, generator_of(4))
    assert (bound is None) == (not sampler.bounded)
    assert bound is None or (bound.total_B.shape == (len(X),) and torch.isfinite(bound.total_B).all())


@torch.no_grad()
def test_paths_are_none_or_one_finite_value_for_each_sequence(sampler):
    for nfe in runnable(sampler):
        nll_B = sampler.path_nll(X, nfe, generator_of(9)) if nfe else None
        if nll_B is not None:
            assert nll_B.shape == (len(X),) and nll_B.dtype == torch.float64
            assert torch.isfinite(nll_B).all() and bool((nll_B > 0).all())
            assert torch.equal(nll_B, sampler.path_nll(X, nfe, generator_of(9)))
            assert nfe == 1 or not torch.equal(nll_B, sampler.path_nll(X, nfe, generator_of(10)))


@pytest.mark.parametrize(("method", "name"), pairs(), ids="/".join)
def test_the_same_weights_give_the_same_draws(method, name):
    first, other = build(method, name, seed=0), build(method, name, seed=1)
    nfe = runnable(first)[-1]
    if first.method.stages():
        assert not torch.equal(draw(first, nfe, n=40).x_NL, draw(other, nfe, n=40).x_NL)
        other.method.load_state_dict(first.method.state_dict())
    assert torch.equal(draw(first, nfe, n=40).x_NL, draw(other, nfe, n=40).x_NL)


SWITCHES = [
    ("seq", "diffusion", {"latent_share": 0.25, "eta": 0.0}),
    ("seq_discrete", "codes", {"latent_share": 1.0}),
    ("fuji_independent", "path", {"path": "offset", "offset": 0.5}),
    ("fuji_independent", "path", {"path": "through", "corners": [0.5, 0.0], "eta": 0.0}),
    ("mdlm", "top_p", {"p": 0.3}),
    ("mdlm", "confidence", {"noise": 0.0}),
]


@pytest.mark.parametrize(("method", "name", "options"), SWITCHES)
def test_switches_keep_the_contract(method, name, options):
    """Options beside the shipped ones: the same checks."""
    sampler = build(method, name, **options)
    test_every_budget_is_met_exactly_with_whole_clean_sequences(sampler)
    test_refused_budgets_name_one_that_works_in_one_line(sampler)
    test_draws_are_a_function_of_the_generator(sampler)
