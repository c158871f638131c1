"""One trial: what it trains and what it finds, what ends it early, and that its figures are those of the study."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.config.load import load
from harness.errors import UserError
from harness.jobs.locks import waiting_for
from harness.search.load import load_tune
from harness.search.loaded import LoadedTune
from harness.search.publish import curve_points
from harness.search.trial import Pruned, TrialResult, TrialRunner, data_values
from harness.store import read_json, read_jsonl
from harness.study.cells import make_cells
from harness.study.session import Session
from harness.training import loop
from tests.kit.study_kit import invoke, use_threads
from tests.kit.tune_toys import arguments, write_files

TUNED = "methods.tunable.samplers.tuned"
HEAT, SPREAD = f"{TUNED}.heat", "methods.tunable.spread"


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("configs"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class _Runner:
    """Runs trials by their values."""

    def __init__(self, loaded: LoadedTune) -> None:
        self.loaded, self.runner = loaded, TrialRunner(loaded.context)

    def run(self, params: dict, report, progress) -> TrialResult:
        return self.runner.run(self.loaded.job(params), report, progress)


def _runner(configs: Path, *more: str, tune: str = "heat") -> _Runner:
    return _Runner(_load(configs, *more, tune=tune))


def _load(configs: Path, *more: str, tune: str = "heat") -> LoadedTune:
    return load_tune([*arguments(Path()), f"tune={tune}", *more], [configs], check=False)


def _quiet(text: str, done: int, total: int) -> None:
    """Nobody watches."""


def _no_training(*_: object) -> None:
    raise AssertionError("a training step")


def test_sampling_only_trials_train_once(configs, monkeypatch):
    runner = _runner(configs)
    first = runner.run({HEAT: 1.0, "study.temperatures": 1.0}, None, _quiet)
    assert (
        first.trained and len(read_jsonl(next(Path("runs").rglob("curves.jsonl")))) == 3 and first.seconds["train"] > 0
    )
    monkeypatch.setattr(loop, "_step", _no_training)
    results = [runner.run({HEAT: h, "study.temperatures": t}, None, _quiet) for h in (0.5, 2.0) for t in (0.5, 1.5)]
    assert not any(r.trained for r in results)
    assert len({r.values[0] for r in (first, *results)}) == 5
    assert len(list(Path("runs").rglob("model.safetensors"))) == 1
    cold, hot = (runner.run({HEAT: h, "study.temperatures": 0.5}, None, _quiet).values[0] for h in (0.5, 2.0))
    assert cold < hot, "likelier letters have a lower perplexity"


def test_weights_of_the_study_are_used_and_its_figures_found_again(configs, monkeypatch):
    use_threads(monkeypatch)
    base = ["--config-dir", str(configs), *arguments(Path())]
    assert invoke([*base, "only=[tunable]"]).code == 0
    monkeypatch.setattr(loop, "_step", _no_training)
    found = _runner(configs).run({}, None, _quiet)
    assert not found.trained
    rows = pd.read_parquet("runs/tunable/results.parquet").set_index(["method", "sampler", "nfe"])
    assert found.values == [rows.loc[("tunable", "tuned", 2), "gen_ppl"]], "the same samples, the same judge"
    assert found.scores["repeats@2"] == rows.loc[("tunable", "tuned", 2), "repeats"]


def test_weights_of_any_method_are_found(configs, monkeypatch):
    use_threads(monkeypatch)
    base = ["--config-dir", str(configs), *arguments(Path())]
    assert invoke([*base, "only=[positions]"]).code == 0
    assert list(Path("runs/tunable/weights").glob("positions-*/model.safetensors"))
    monkeypatch.setattr(loop, "_step", _no_training)
    runner = _runner(configs, "tune.method=positions", "~tune.space.heat")
    assert not runner.run({"study.temperatures": 0.7}, None, _quiet).trained


def test_a_trial_that_is_run_again_finds_what_it_did(configs, monkeypatch):
    params = {
        SPREAD: 2.0,
        f"{TUNED}.path": "bent",
        f"{TUNED}.corners": "[0.5,0.25]",
    }
    runner = _runner(configs, tune="toy")
    first = runner.run(params, None, _quiet)
    assert first.trained and len(first.constraints) == 1
    bound = [p["step"] for p in curve_points(runner.loaded, params) if p["name"] == "valid/bound_nats_per_token"]
    assert bound == [10, 20, 30] and curve_points(runner.loaded, {SPREAD: 5.0}) == [], "of its own weights, if any"
    for name in ("_step", "_held_out"):
        monkeypatch.setattr(loop, name, _no_training)
    monkeypatch.setattr("harness.study.drawing.draw_samples", _no_training)
    again = _runner(configs, tune="toy").run(params, None, _quiet)
    assert not again.trained and (again.values, again.constraints, again.scores) == (
        first.values, first.constraints, first.scores
    )  # fmt: skip


def test_what_trials_share_is_made_once(configs, monkeypatch):
    calls = {"data": 0, "judge": 0}

    def counted(name: str, function):
        def call(*a, **k):
            calls[name] += 1
            return function(*a, **k)

        return call

    monkeypatch.setattr("tests.kit.study_plugins.Alternating.load", counted("data", _class("Alternating").load))
    monkeypatch.setattr("tests.kit.study_plugins.LetterJudge.prepare", counted("judge", _class("LetterJudge").prepare))
    runner = _runner(configs)
    for heat in (0.5, 1.0, 2.0):
        runner.run({HEAT: heat}, None, _quiet)
    assert calls == {"data": 1, "judge": 1}


def _class(name: str) -> type:
    from tests.kit import study_plugins

    return getattr(study_plugins, name)


def test_data_that_are_searched_are_not_mixed_up(configs):
    _space(configs, "noise", "data.noise: {low: 0.1, high: 0.9}")
    runner = _runner(configs, tune="noise")
    few, many = (runner.run({"data.noise": n}, None, _quiet).values[0] for n in (0.1, 0.9))
    assert runner.run({"data.noise": 0.1}, None, _quiet).values[0] == few != many
    assert few == _runner(configs, "tune.seed=0", tune="noise").run({"data.noise": 0.1}, None, _quiet).values[0]


def _space(configs: Path, name: str, line: str) -> None:
    text = f"# One dimension\nmethod: tunable\nspace:\n  {line}\nobjectives: {{quality: {{nfe: 2}}}}\nsamples: 16\n"
    (configs / "tune" / f"{name}.yaml").write_text(text, encoding="utf-8")


# ---- the data's own values --------------------------------------------------------------------------------------------
def test_the_datas_own_values_are_scored_once(configs, monkeypatch):
    loaded = _load(configs, tune="toy")
    values = data_values(loaded.context)
    assert read_json(loaded.folder / f"data-{loaded.identity}-{loaded.context.code}.json") == values
    session = Session(loaded.trial_tree([], "x"), loaded.context.weights)
    x_NL = session.held_out.x_NL
    assert values["repeats"] == pytest.approx((x_NL[:, 3:] == x_NL[:, :-3]).mean())
    result = _Runner(loaded).run({SPREAD: 1.0}, None, _quiet)
    margin = abs(result.scores["repeats@4"] - values["repeats"]) - 0.9 * values["repeats"]
    assert result.constraints == [pytest.approx(margin)]
    monkeypatch.setattr("harness.study.steps.score_cell", _no_training)
    assert data_values(_load(configs, tune="toy").context) == values


def test_limits_that_nothing_meets_are_refused_before_a_trial(configs):
    runner = _runner(configs, "tune.constraints.repeats.min=0.999", "tune.constraints.repeats.within=0.1", tune="toy")
    with pytest.raises(UserError, match="nothing is within 0.1 of the data's repeats"):
        runner.runner.prepare(_quiet)
    assert not list(Path("runs").rglob("model.safetensors"))


# ---- what ends a trial ------------------------------------------------------------------------------------------------
PRUNE = ("tune.pruner.kind=median", "tune.pruner.warmup=0.5")


@pytest.mark.parametrize("signal", ["bound", "score"])
def test_a_trial_is_ended_when_it_is_told_to(configs, signal):
    runner = _runner(configs, *PRUNE, f"tune.pruner.signal={signal}", "tune.pruner.samples=8", tune="toy")
    told: list[tuple[int, float]] = []

    def bad(step: int, value: float) -> bool:
        told.append((step, value))
        return step >= 20

    with pytest.raises(Pruned, match=f"step 20 of 30, with {signal}"):
        runner.run({SPREAD: 3.0}, bad, _quiet)
    assert [step for step, _ in told] == [10, 20]
    assert not list(Path("runs").rglob("*.safetensors"))
    curves = next(Path("runs").rglob("curves.jsonl"))
    if signal == "bound":
        assert [v for _, v in told] == [line["values"]["valid/bound_nats_per_token"] for line in read_jsonl(curves)]
    before = list(told)
    told.clear()
    result = runner.run({SPREAD: 3.0}, lambda step, value: told.append((step, value)), _quiet)
    assert told[:2] == before and told[2][0] == 30 and result.trained, "asked again it says the same"


def test_trials_that_are_not_pruned_report_nothing(configs):
    told: list[int] = []
    _runner(configs, tune="toy").run({SPREAD: 3.0}, lambda step, value: told.append(step), _quiet)
    assert told == []


def test_a_trial_whose_loss_is_no_number_fails_and_says_so_again(configs, monkeypatch):
    runner = _runner(configs, "methods.tunable.poison_from=3", tune="toy")
    with pytest.raises(loop.Diverged, match="loss is nan at step 4"):
        runner.run({}, None, _quiet)
    monkeypatch.setattr(loop, "train", _no_training)
    with pytest.raises(loop.Diverged, match="loss is nan at step 4"):
        _runner(configs, "methods.tunable.poison_from=3", tune="toy").run({}, None, _quiet)


def test_values_that_do_not_go_together_fail_alone(configs):
    runner = _runner(configs)
    with pytest.raises(UserError, match="heat=500"):
        runner.run({HEAT: 500.0}, None, _quiet)
    assert runner.run({HEAT: 1.0}, None, _quiet).values


def test_facts_are_measured_where_they_are_asked_for(configs):
    assert "params@2" not in _runner(configs).run({}, None, _quiet).scores
    assert not list(Path("runs").rglob("facts*"))
    size = "tune.objectives.size={column: params, nfe: 2}"
    assert _runner(configs, size, "tune.name=other").run({}, None, _quiet).values[1] == 60, "12 positions, 5 symbols"
    assert len(list(Path("runs").rglob("facts*"))) == 1


# ---- sharing weights --------------------------------------------------------------------------------------------------
def _hold(path: str, held, release) -> None:
    with waiting_for(Path(path)):
        held.set()
        release.wait(20)


def test_who_finds_weights_being_trained_waits_for_them(configs):
    loaded = _load(configs)
    home = make_cells(Session(loaded.trial_tree([], "trials/x"), loaded.context.weights))[0].weights.folder
    assert home.parent == Path("runs/tunable/weights").resolve()
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    lock = home / ".lock"
    process = context.Process(target=_hold, args=(str(lock), held, release), daemon=True)
    process.start()
    assert held.wait(20)
    said: list[str] = []

    def progress(text: str, done: int, total: int) -> None:
        said.append(text)
        if text.startswith("waiting"):
            release.set()

    assert _Runner(loaded).run({}, None, progress).trained
    process.join(20)
    assert process.exitcode == 0 and any(home.name in text for text in said)


def test_a_session_adopts_only_what_is_the_same(configs):
    base = arguments(Path())
    one = Session(load(base, [configs]).tree)
    _ = one.reference, one.judge, one.metrics, one.numerics
    same = Session(load([*base, "scale.lr=0.2"], [configs]).tree)
    same.adopt(one)
    assert same.data is one.data and same.reference is one.reference and same.judge is one.judge
    other = Session(load([*base, "study.samples=20", "data.noise=0.4", "judge.smoothing=2"], [configs]).tree)
    other.adopt(one)
    assert other.data is not one.data and len(other.reference.x_NL) == 20 and other.judge is not one.judge
    assert other.metrics is one.metrics
