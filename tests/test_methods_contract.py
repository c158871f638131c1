"""What every method under `studies/method/` owes the harness; a new YAML is tested here without a new line.

Tiny problem: V = 7 symbols, L = 8 tokens, one block of width 16; its law is known, for methods that need it.
"""

import dataclasses
import re

import numpy as np
import pytest
import torch

from harness.config.registry import build_options, find_entries, studies_folder
from harness.errors import BudgetError
from harness.interface import Method
from harness.study.cells import Part
from harness.study.sampling import checked_sample
from harness.training.checkpoint import load_model, load_tensors, save_tensors
from tests.toys import generator_of, one_thread, scramble, token_data  # noqa: F401
from tests.toys_exact import exact_problem

ENTRIES = find_entries([studies_folder()])["method"]
PROBLEM = exact_problem()
V, L = PROBLEM.vocab_size, PROBLEM.length
WANTED = (1, 2, 3, 4, 7, L, 2 * L)
X = torch.from_numpy(token_data(PROBLEM).splits["train"][:16].astype(np.int64))


def build(name: str, seed: int = 0) -> Method:
    """The method as its YAML has it, with weights that say something, ready to sample."""
    cls, options = build_options({"_target_": ENTRIES[name].content["_target_"], **ENTRIES[name].content})
    torch.manual_seed(seed)
    method = scramble(cls(PROBLEM, options), seed, std=0.1)
    method.fit(token_data(PROBLEM).splits["train"])
    if method.stages():
        method.calibrate(X)
    return method.eval()


@pytest.fixture(params=sorted(ENTRIES))
def method(request) -> Method:
    return build(request.param)


def runnable(method: Method) -> list[int]:
    """Every wanted budget that the method says it can meet."""
    good = []
    for nfe in method.budgets(WANTED):
        try:
            method.check_budget(nfe)
        except BudgetError:
            continue
        good.append(nfe)
    return good


def draw(method: Method, nfe: int, seed: int = 0, n: int = 12, temperature: float = 1.0):
    with torch.inference_mode():
        return checked_sample(method, n, Part(nfe, temperature), generator_of(seed))


def test_the_shipped_methods_are_found():
    assert {"unigram", "bigram", "trigram", "ar", "mdlm", "fuji", "seq"} <= set(ENTRIES)
    assert all(entry.about for entry in ENTRIES.values()), "the first comment of a YAML says what it is"


def test_it_names_itself_its_sampler_and_its_role(method):
    assert method.title and method.sampler
    assert method.role in ("method", "reference", "floor", "probe")
    assert dataclasses.is_dataclass(type(method).Options)


# ---- training -------------------------------------------------------------------------------------------------------
def test_shares_of_the_stages_sum_to_1_and_names_differ(method):
    stages = method.stages()
    if stages:
        assert sum(stage.share for stage in stages) == pytest.approx(1.0)
        assert all(stage.share > 0 for stage in stages)
        assert len({stage.name for stage in stages}) == len(stages)
    else:
        assert not list(method.parameters())
        with pytest.raises(NotImplementedError):
            method.loss(X, generator_of(0))


def test_loss_is_finite_and_reaches_exactly_the_parameters_of_its_stage(method):
    trained = set()
    for stage in method.stages():
        method.train()
        method.set_stage(stage.name)
        method.zero_grad(set_to_none=True)
        loss = method.loss(X, generator_of(1))
        assert loss.total.shape == () and torch.isfinite(loss.total)
        assert loss.total.dtype == torch.float32
        assert loss.parts and all(torch.isfinite(v) and not v.requires_grad for v in loss.parts.values())
        loss.total.backward()
        for name, p in method.named_parameters():
            if name.endswith("body.out.bias"):
                trained.add(name)
                continue  # standardisation takes it off again: its gradient is rounding, on some processors exactly 0
            reached = p.grad is not None and bool(p.grad.abs().max() > 0)
            assert reached == p.requires_grad, f"{name} in stage {stage.name}"
            assert p.grad is None or torch.isfinite(p.grad).all()
            if reached:
                trained.add(name)
    missed = {n for n, _ in method.named_parameters()} - trained
    assert all("latent_out" in name for name in missed), f"never trained: {missed}"


def test_loss_depends_on_its_generator_only(method):
    for stage in method.stages():
        method.eval().set_stage(stage.name)
        # A method may keep statistics of what it has seen, as long as they are in its state.
        state = {name: value.clone() for name, value in method.state_dict().items()}
        torch.manual_seed(0)
        first = method.loss(X, generator_of(2)).total
        torch.manual_seed(1)
        method.load_state_dict(state)
        assert torch.equal(first, method.loss(X, generator_of(2)).total)
        method.load_state_dict(state)
        assert not torch.equal(first, method.loss(X, generator_of(3)).total) or method.role == "reference"


def test_stages_can_be_set_again_in_any_order(method):
    """A resumed run sets the stage it is in, and validation sets it again."""
    stages = [stage.name for stage in method.stages()]
    for first in stages:
        for second in stages:
            method.set_stage(first)
            expected = [p.requires_grad for p in method.parameters()]
            method.set_stage(second)
            method.set_stage(first)
            assert [p.requires_grad for p in method.parameters()] == expected


# ---- likelihood -----------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_bound_is_none_or_one_finite_value_for_each_sequence(method):
    bound = method.bound(X, generator_of(4))
    if bound is None:
        return
    assert bound.total_B.shape == (len(X),) and torch.isfinite(bound.total_B).all()
    assert bound.total_B.dtype == torch.float64, "figures that are averaged over a test set are kept in float64"
    assert bound.estimator
    assert torch.equal(bound.total_B, method.bound(X, generator_of(4)).total_B)
    if bound.parts_B:
        assert torch.allclose(sum(bound.parts_B.values()).double(), bound.total_B)
    if bound.exact:
        assert torch.equal(bound.total_B, method.bound(X, generator_of(5)).total_B)


@torch.no_grad()
def test_bound_of_one_sequence_and_of_the_whole_vocabulary(method):
    """A batch of one is the last chunk of some test sets; every id of the vocabulary must be scored."""
    for x_BL in (X[:1], torch.arange(V).repeat(L)[: 7 * L].view(7, L)):
        bound = method.bound(x_BL, generator_of(6))
        assert bound is None or torch.isfinite(bound.total_B).all()


@torch.no_grad()
def test_paths_are_none_or_one_finite_value_for_each_sequence(method):
    for nfe in runnable(method):
        nll_B = method.path_nll(X, nfe, generator_of(9)) if nfe else None
        if nll_B is not None:
            assert nll_B.shape == (len(X),) and nll_B.dtype == torch.float64
            assert torch.isfinite(nll_B).all() and bool((nll_B > 0).all())
            assert torch.equal(nll_B, method.path_nll(X, nfe, generator_of(9)))
            assert nfe == 1 or not torch.equal(nll_B, method.path_nll(X, nfe, generator_of(10)))


@torch.no_grad()
def test_instruments_are_finite_numbers(method):
    values = method.diagnose(X, generator_of(7))
    assert all(np.isfinite(v) for v in values.values())


# ---- sampling -------------------------------------------------------------------------------------------------------
def test_every_budget_is_met_exactly_with_whole_clean_sequences(method):
    """`checked_sample` counts calls by hooks and refuses masks, wrong shapes and draws that are not float64."""
    budgets = runnable(method)
    assert budgets, f"{method.title} can run at none of {WANTED}"
    for nfe in budgets:
        drawn = draw(method, nfe)
        assert drawn.nfe == nfe and min(drawn.nfe_latent, drawn.nfe_token) >= 0
        assert drawn.x_NL.dtype == torch.int64 and drawn.x_NL.shape == (12, L)
        assert int(drawn.x_NL.min()) >= 0 and int(drawn.x_NL.max()) < V
        assert drawn.draw_dtype == "float64"


def test_refused_budgets_name_one_that_works_in_one_line(method):
    refused = [nfe for nfe in (-1, 0, 1, 2, 3, L, 1000) if not accepts(method, nfe)]
    assert refused, "no method runs at a negative number of calls"
    for nfe in refused:
        with pytest.raises(BudgetError) as caught:
            method.check_budget(nfe)
        text = str(caught.value)
        assert "\n" not in text and f"nfe={nfe}" in text and method.title in text
        advised = int(re.search(r"use (\d+)", text)[1])
        method.check_budget(advised)
        assert draw(method, advised, n=2).nfe == advised
        with pytest.raises(BudgetError):
            method.sample(2, nfe, generator_of(0))


def accepts(method: Method, nfe: int) -> bool:
    try:
        method.check_budget(nfe)
    except BudgetError:
        return False
    return True


def test_samples_are_a_function_of_the_generator(method):
    nfe = runnable(method)[-1]
    torch.manual_seed(0)
    first = draw(method, nfe, seed=1).x_NL
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what must not matter
    assert torch.equal(first, draw(method, nfe, seed=1).x_NL)
    assert not torch.equal(first, draw(method, nfe, seed=2).x_NL)


def test_sequences_of_a_draw_differ(method):
    for nfe in runnable(method):
        assert len(draw(method, nfe, n=12).x_NL.unique(dim=0)) > 6


def test_one_sequence_and_other_temperatures(method):
    for nfe in runnable(method):
        assert draw(method, nfe, n=1).x_NL.shape == (1, L)
        if method.role == "method":
            cold = draw(method, nfe, n=200, temperature=0.05).x_NL
            warm = draw(method, nfe, n=200, temperature=1.0).x_NL
            assert len(cold.unique(dim=0)) <= len(warm.unique(dim=0))


def test_sampling_leaves_the_weights_as_they_are(method):
    before = {k: v.clone() for k, v in method.state_dict().items()}
    draw(method, runnable(method)[-1])
    assert all(torch.equal(before[k], v) for k, v in method.state_dict().items())


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_weights_come_back_from_a_checkpoint_with_the_same_samples(name, tmp_path):
    method, path = build(name, seed=0), tmp_path / "model.safetensors"
    if not method.stages():
        pytest.skip("counted again from the data, nothing is stored")
    save_tensors(path, dict(method.state_dict()), {"note": "kept"})
    other = build(name, seed=1)
    nfe = runnable(method)[-1]
    assert not torch.equal(draw(method, nfe, n=40).x_NL, draw(other, nfe, n=40).x_NL)
    tensors, meta = load_tensors(path)
    load_model(other, tensors, path)
    assert meta == {"note": "kept"}
    assert torch.equal(draw(method, nfe, n=40).x_NL, draw(other, nfe, n=40).x_NL)
    bounds = [m.bound(X, generator_of(8)) for m in (method, other)]
    assert bounds[0] is None or torch.equal(bounds[0].total_B, bounds[1].total_B)


# ---- configurations beside the shipped ones -------------------------------------------------------------------------
SWITCHES = [
    ("mdlm", {"time_conditioning": True, "loss": "nelbo"}),
    ("mdlm", {"schedule": "cosine", "width_factor": 1.5}),
    ("fuji", {"loss": "nelbo", "prediction": "x0", "time": "adaln", "eta": 0.0}),
    ("fuji", {"schedule": "cosine", "lead": 0.5, "latent_shift": 3.0, "input_mask": 0.5}),
    ("seq", {"stages": 2, "loss": "nelbo", "prediction": "x0", "time": "adaln"}),
    ("seq", {"self_conditioning": 0.0, "latent_share": 0.25, "eta": 0.0, "slots": 2, "dims": 1}),
    ("seq", {"slots": 2 * L, "schedule": "quadratic"}),
    ("seq_discrete", {"slots": 2, "codes": 64, "schedule": "cosine"}),
    ("seq_discrete", {"slots": 4, "codes": 16, "loss": "nelbo", "full_mask": 0.0}),
    ("seq_discrete", {"slots": L, "codes": 5, "latent_share": 1.0}),
]


@pytest.mark.parametrize(("name", "options"), SWITCHES)
def test_switches_keep_the_contract(name, options, monkeypatch):
    """Configurations beside the shipped ones: the same checks of training, bound and budgets."""
    content = {"_target_": ENTRIES[name].content["_target_"], **options}
    monkeypatch.setitem(ENTRIES, name, dataclasses.replace(ENTRIES[name], content=content))
    method = build(name)
    test_shares_of_the_stages_sum_to_1_and_names_differ(method)
    test_bound_is_none_or_one_finite_value_for_each_sequence(method)
    test_every_budget_is_met_exactly_with_whole_clean_sequences(method)
    test_samples_are_a_function_of_the_generator(method)
    test_loss_is_finite_and_reaches_exactly_the_parameters_of_its_stage(method)
