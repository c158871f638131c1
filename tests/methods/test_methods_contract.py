"""What every method under `studies/method/` owes the harness; a new YAML is tested here without a new line.

Tiny problem: V = 7 symbols, L = 8 tokens, one block of width 16; its law is known, for methods that need it.
"""

import dataclasses

import numpy as np
import pytest
import torch

from harness.config.registry import build_options, find_entries, studies_folder
from harness.interface import Method
from harness.training.checkpoint import load_model, load_tensors, save_tensors
from tests.kit.toys import generator_of, one_thread, scramble, token_data  # noqa: F401
from tests.kit.toys_exact import exact_problem

ENTRIES = find_entries([studies_folder()])["method"]
PROBLEM = exact_problem()
V, L = PROBLEM.vocab_size, PROBLEM.length
X = torch.from_numpy(token_data(PROBLEM).splits["train"][:16].astype(np.int64))


def build(name: str, seed: int = 0, **more) -> Method:
    """The method as its YAML has it, but for the options `more`; with weights that say something, ready to sample."""
    cls, options = build_options(ENTRIES[name].content | more)
    torch.manual_seed(seed)
    method = scramble(cls(PROBLEM, options), seed, std=0.1)
    method.fit(token_data(PROBLEM).splits["train"])
    if method.stages():
        method.calibrate(X)
    return method.eval()


@pytest.fixture(params=sorted(ENTRIES))
def method(request) -> Method:
    return build(request.param)


def test_the_shipped_methods_are_found():
    assert {"unigram", "bigram", "trigram", "ar", "mdlm", "fuji", "seq"} <= set(ENTRIES)
    assert all(entry.about for entry in ENTRIES.values()), "the first comment of a YAML says what it is"


def test_it_names_itself_and_its_role(method):
    assert method.title
    assert method.role in ("method", "reference", "floor")
    assert dataclasses.is_dataclass(type(method).Options)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_its_yaml_has_a_sampler(name):
    assert ENTRIES[name].content["samplers"]


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


def test_it_trains_on_the_smallest_part_that_it_names(method):
    for stage in method.stages():
        method.train().set_stage(stage.name)
        loss = method.loss(X[: method.smallest_part], generator_of(1)).total
        loss.backward()
        assert torch.isfinite(loss)


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
def test_instruments_are_finite_numbers(method):
    values = method.diagnose(X, generator_of(7))
    assert all(np.isfinite(v) for v in values.values())


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_weights_come_back_from_a_checkpoint_with_the_same_bound(name, tmp_path):
    method, path = build(name, seed=0), tmp_path / "model.safetensors"
    if not method.stages():
        pytest.skip("counted again from the data, nothing is stored")
    save_tensors(path, dict(method.state_dict()), {"note": "kept"})
    other = build(name, seed=1)
    tensors, meta = load_tensors(path)
    load_model(other, tensors, path)
    assert meta == {"note": "kept"}
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in method.state_dict().items())
    bounds = [m.bound(X, generator_of(8)) for m in (method, other)]
    assert bounds[0] is None or torch.equal(bounds[0].total_B, bounds[1].total_B)


# ---- configurations beside the shipped ones -------------------------------------------------------------------------
SWITCHES = [
    ("mdlm", {"time_conditioning": True, "loss": "nelbo"}),
    ("mdlm", {"schedule": "cosine", "width_factor": 1.5}),
    ("fuji", {"loss": "nelbo", "prediction": "x0", "time": "adaln"}),
    ("fuji", {"schedule": "cosine", "lead": 0.5, "latent_shift": 3.0, "input_mask": 0.5}),
    ("seq", {"stages": 2, "loss": "nelbo", "prediction": "x0", "time": "adaln"}),
    ("seq", {"self_conditioning": 0.0, "slots": 2, "dims": 1}),
    ("seq", {"slots": 2 * L, "schedule": "quadratic"}),
    ("seq_discrete", {"slots": 2, "codes": 64, "schedule": "cosine"}),
    ("seq_discrete", {"slots": 4, "codes": 16, "loss": "nelbo", "full_mask": 0.0}),
    ("seq_discrete", {"slots": L, "codes": 5}),
]


@pytest.mark.parametrize(("name", "options"), SWITCHES)
def test_switches_keep_the_contract(name, options):
    """Configurations beside the shipped ones: the same checks of training and bound."""
    method = build(name, **options)
    test_shares_of_the_stages_sum_to_1_and_names_differ(method)
    test_bound_is_none_or_one_finite_value_for_each_sequence(method)
    test_loss_is_finite_and_reaches_exactly_the_parameters_of_its_stage(method)
