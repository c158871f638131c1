"""Methods that train as long as their FLOPs allow, and what is fitted before the first step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.ngram import NGram
from harness.config.load import load
from harness.errors import UserError
from harness.search.load import load_tune
from harness.search.loaded import LoadedTune
from harness.search.trial import TrialRunner
from harness.store import read_json, read_jsonl
from harness.study import match, plan
from harness.study import steps as work
from harness.study.cells import Cell, make_cells
from harness.study.session import Session
from harness.training import checkpoint
from harness.training.batches import batch_rows
from tests.kit.match_kit import BATCH, EVENTS, FITTED, LENGTH, STEPS, write_files
from tests.kit.toys import one_thread  # noqa: F401
from tests.training.test_training_resume import Killed, killed_at


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("configs"))


@pytest.fixture
def start(configs, tmp_path):
    """Sessions with their cells by method, in folders of the test's own; nothing has happened yet."""
    EVENTS.clear()
    FITTED.clear()

    def start(*more: str, runs: str = "runs") -> tuple[Session, dict[str, Cell]]:
        places = [f"runs_dir={tmp_path / runs}", f"cache_dir={tmp_path / 'cache'}"]
        session = Session(load(["study=match", *places, *more], [configs]).tree)
        return session, {cell.method: cell for cell in make_cells(session)}

    return start


def quiet(text: str, done: int, total: int) -> None:
    """Nobody watches."""


def plan_of(cell: Cell) -> dict:
    """What was settled; how long the fit took is no part of it."""
    return {k: v for k, v in read_json(cell.weights.plan).items() if k != "fit_seconds"}


# ---- as many steps as the budget allows --------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_methods_of_different_cost_train_for_the_same_flops(start, optimizer):
    only = "only=[mdlm,wide,staged,fitted]"
    session, cells = start("scale.match=flops", f"train.optimizer={optimizer}", only)
    facts, steps = {}, {}
    for name, cell in cells.items():
        work.train_cell(session, cell, quiet)
        facts[name], known = read_json(cell.weights.cost), plan_of(cell)
        steps[name] = known["steps"]
        assert known["budget_flops"] == plan_of(cells["mdlm"])["budget_flops"]
        assert abs(facts[name]["train_flops"] - known["budget_flops"]) <= max(
            0.02 * known["budget_flops"], known["step_flops"]
        )
        assert facts[name]["train_tokens"] == steps[name] * BATCH * LENGTH
        assert read_jsonl(cell.weights.curves)[-1]["step"] == steps[name], "training itself took them"
    assert steps["mdlm"] == STEPS and facts["mdlm"]["train_flops"] == plan_of(cells["mdlm"])["budget_flops"]
    assert 1 < steps["wide"] < steps["staged"] < steps["fitted"] < STEPS
    assert plan_of(cells["fitted"])["fit_flops"] == 12 * 2 * 64**3
    # A quarter of the steps are those of both networks.
    both, other = plan_of(cells["staged"])["stage_flops"]
    assert plan_of(cells["staged"])["step_flops"] == 0.25 * both + 0.75 * other and both != other


def test_the_budget_is_that_of_the_study_and_not_of_a_seed(start):
    session, cells = start("scale.match=flops", "only=[wide]")
    one, two = (match.settle(session, "wide", session.build("wide", seed)) for seed in (0, 7))
    assert one == two == match.settle(session, "wide", session.build("wide"))
    assert not (cells["wide"].weights.plan).exists()


def test_without_matching_every_method_trains_the_steps_of_the_study(start):
    session, cells = start("only=[mdlm,wide]", "scale.steps=10")
    for cell in cells.values():
        work.train_cell(session, cell, quiet)
        assert plan_of(cell)["steps"] == 10 and plan_of(cell)["fit_flops"] == 0
        facts = read_json(cell.weights.cost)
        assert facts["train_tokens"] == 10 * BATCH * LENGTH


def test_what_is_planned_is_what_is_trained(start):
    session, cells = start("scale.match=flops", "only=[mdlm,wide]")
    steps = match.settle(session, "wide", session.build("wide")).steps
    text, _, total = plan.estimate(session)
    assert f"| wide/ancestral/seed0 | {sum(p.numel() for p in session.build('wide').parameters())} | {steps} |" in text
    assert total == STEPS + steps and f"as {STEPS} of the plain masked denoiser" in text


class _Second:
    """The second of two processes, where the first one says 17."""

    leads = False

    def add(self, value) -> None:
        value += 17


def test_all_processes_train_as_long_as_the_first_says(start):
    session, cells = start("scale.match=flops", "only=[fitted]")
    method = session.build("fitted")
    assert match.begin(session, cells["fitted"].weights, method, quiet, _Second()).steps == 17
    assert EVENTS[0] == "fit" and method.count_V.sum() > 0, "each process fits"
    assert not (cells["fitted"].weights.plan).exists(), "and the first one writes"


# ---- fit -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("steps", "rows"), [(5, 40), (STEPS, 200)])
def test_a_fit_comes_once_before_the_first_step_and_costs_what_it_costs(start, steps, rows):
    session, cells = start("only=[fitted]", f"scale.steps={steps}")
    cell = cells["fitted"]
    work.train_cell(session, cell, quiet)
    assert (
        EVENTS[0] == "fit" and EVENTS.count("fit") == 1 and EVENTS.count("loss") == steps + 1
    )  # the last one is counted
    train_NL = session.data.splits["train"]
    assert len(train_NL) == 200 and FITTED[0].shape == (rows, LENGTH)
    if rows == len(train_NL):
        np.testing.assert_array_equal(FITTED[0], train_NL)
    else:
        seen = np.sort(np.concatenate([batch_rows(200, BATCH, step, 0) for step in range(steps)]))
        np.testing.assert_array_equal(FITTED[0], train_NL[seen])
    _, plain = start("only=[mdlm]", f"scale.steps={steps}")
    work.train_cell(session, plain["mdlm"], quiet)
    costs = [read_json(c.weights.cost)["train_flops"] for c in (cell, plain["mdlm"])]
    assert costs[0] - costs[1] == 12 * 2 * 64**3
    loaded = work.load_method(session, cell.weights)
    assert loaded.count_V.sum() == rows * LENGTH and EVENTS.count("fit") == 1, "a model that is loaded has it"


@pytest.mark.parametrize(("every", "fits"), [(0.0, 1), (1e9, 2)])
def test_a_killed_run_ends_with_the_same_weights(start, every, fits):
    """Every 1e9 seconds: no checkpoint was written, and what was fitted is fitted again."""
    more = ("scale.match=flops", "only=[fitted]", f"train.checkpoint_seconds={every}", "train.checkpoint_share=1")
    session, cells = start(*more, runs="whole")
    work.train_weights(session, cells["fitted"].weights, quiet)
    EVENTS.clear()
    cut, others = start(*more, runs="killed")
    with pytest.raises(Killed):
        work.train_weights(cut, others["fitted"].weights, killed_at(20))
    first = plan_of(others["fitted"])
    assert (others["fitted"].weights.checkpoint).exists() == (every == 0)
    work.train_weights(cut, others["fitted"].weights, quiet)
    assert EVENTS.count("fit") == fits
    assert first == plan_of(others["fitted"]) == plan_of(cells["fitted"])
    (whole, _), (resumed, _) = (checkpoint.load_tensors(c["fitted"].weights.model) for c in (cells, others))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)


# ---- identities and bad values -----------------------------------------------------------------------------------------
def test_a_stem_is_part_of_every_shape(start):
    session, _ = start("scale.stem=5", "only=[mdlm]")
    assert session.problem.shape.stem == 5


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("scale.match=flop", "scale.match=flop: is unknown; did you mean 'flops'?"),
        ("scale.stem=4", "scale.stem=4: must be 0 .* the nearest is 5"),
        ("scale.stem=1", "scale.stem=1: must be 3 or more, or 0"),
        ("scale.stem=-3", "scale.stem=-3: must be 3 or more, or 0"),
    ],
)
def test_bad_values_are_refused_in_one_line(start, word, message):
    with pytest.raises(UserError, match=message) as caught:
        start(word)
    assert "\n" not in str(caught.value)


def test_a_fit_beyond_the_budget_is_refused_before_a_step(start):
    session, cells = start("scale.match=flops", "only=[fitted]", "methods.fitted.products=100")
    with pytest.raises(
        UserError, match=r"the fit of fitted alone takes 5.24e\+07 FLOPs.*use scale.match=tokens"
    ) as caught:
        work.train_weights(session, cells["fitted"].weights, quiet)
    assert "\n" not in str(caught.value) and [p.name for p in cells["fitted"].weights.folder.iterdir()] == [".lock"]


def test_a_step_without_flops_is_refused(start):
    session, cells = start("scale.match=flops", "only=[positions]")
    with pytest.raises(UserError, match="a step of positions has no FLOPs to count; use scale.match=tokens"):
        work.train_weights(session, cells["positions"].weights, quiet)


# ---- searches ------------------------------------------------------------------------------------------------------------
def test_trials_report_shares_of_the_budget(configs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def search(*more: str) -> LoadedTune:
        return load_tune(["study=match", "tune=width", "tune.pruner.kind=median", *more], [configs])

    told: list[int] = []
    plain, matched = search(), search("scale.match=flops")
    job = matched.job({"methods.mdlm.width_factor": 3.0})
    TrialRunner(matched.context).run(job, lambda step, value: told.append(step) or False, quiet)
    curves = read_jsonl(next(matched.context.weights.parent.rglob("curves.jsonl")))
    assert [line["step"] for line in curves][-1] < STEPS
    assert told[-1] == STEPS and len(told) == len(curves)
    assert plain.identity != matched.identity


def test_a_counted_method_is_counted_once_in_a_session(start, monkeypatch):
    session, cells = start("+method@methods.unigram=unigram", "only=[unigram]")
    counts = []
    fit = NGram.fit
    monkeypatch.setattr(NGram, "fit", lambda self, train_NL: (counts.append(len(train_NL)), fit(self, train_NL)))
    weights = cells["unigram"].weights
    assert work.load_method(session, weights) is work.load_method(session, weights)
    assert counts == [len(session.data.splits["train"])]
