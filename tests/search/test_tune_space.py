"""What a sampler is asked for, what its answers become, and how rows become objectives and constraints."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from harness.errors import UserError
from harness.metrics.base import Column
from harness.search.loaded import Context
from harness.search.schema import (
    ConstraintConfig,
    DimensionConfig,
    ObjectiveConfig,
    TuneConfig,
    literal,
    overrides_of,
    suggest,
)
from harness.search.trial import data_values, evaluate, limits
from harness.store import write_json

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

SPACE = {
    "a.float": DimensionConfig("float", -1.0, 2.0),
    "a.log": DimensionConfig("float", 1e-4, 1.0, log=True),
    "a.grid": DimensionConfig("float", 0.0, 1.0, step=0.25),
    "a.int": DimensionConfig("int", 1, 9, step=2),
    "a.log_int": DimensionConfig("int", 1, 16, log=True),
    "a.word": DimensionConfig("categorical", choices=["plain", "two words", None, True, 3]),
    "a.list": DimensionConfig("categorical", choices=[[], [0.5, 0.25]], when={"a.word": ["plain", None]}),
    "a.deep": DimensionConfig("int", 1, 3, when={"a.list": [[0.5, 0.25]]}),
    "a.heat": DimensionConfig("float", 0.5, 1.5, as_list=True),
}


def _asked(space: dict, count: int = 60, tpe: bool = True) -> list[dict]:
    learns = optuna.samplers.TPESampler(seed=0, multivariate=True, group=True)
    study = optuna.create_study(sampler=learns if tpe else optuna.samplers.RandomSampler(seed=0))
    cfg, found = TuneConfig(space=space), []
    for _ in range(count):
        trial = study.ask()
        found.append(suggest(trial, cfg))
        assert found[-1] == trial.params
        study.tell(trial, found[-1].get("a.float", 0.0))
    return found


def test_every_kind_stays_in_its_range():
    found = _asked(SPACE, tpe=False) + _asked(SPACE)
    assert all(-1 <= p["a.float"] <= 2 and 1e-4 <= p["a.log"] <= 1 for p in found)
    assert {p["a.grid"] for p in found} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert {p["a.int"] for p in found} <= {1, 3, 5, 7, 9} and all(type(p["a.int"]) is int for p in found)
    assert all(1 <= p["a.log_int"] <= 16 for p in found)
    assert {str(p["a.word"]) for p in found} == {"plain", "two words", "None", "True", "3"}
    assert all((p["a.word"] is True) == (str(p["a.word"]) == "True") for p in found)


def test_log_is_uniform_in_the_logarithm():
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    cfg = TuneConfig(space={"x": DimensionConfig("float", 1e-4, 1.0, log=True)})
    logs = np.log10([suggest(study.ask(), cfg)["x"] for _ in range(400)])
    counts, _ = np.histogram(logs, bins=4, range=(-4, 0))
    assert counts.sum() == 400 and counts.min() > 70, "a quarter of the draws in each decade"


def test_a_dimension_is_there_only_where_its_condition_holds():
    found = _asked(SPACE, 120)
    for p in found:
        assert ("a.list" in p) == (p["a.word"] in ("plain", None))
        assert ("a.deep" in p) == (p.get("a.list") == "[0.5,0.25]")
    assert {"a.deep" in p for p in found} == {True, False}


def test_parameters_become_arguments_in_the_order_of_the_space():
    cfg = TuneConfig(space=SPACE)
    params = {"a.heat": 0.75, "a.list": "[0.5,0.25]", "a.word": None, "a.int": 3, "a.float": 1e-05}
    assert overrides_of(params, cfg) == [
        "a.float=1e-05",
        "a.int=3",
        "a.word=null",
        "a.list=[0.5,0.25]",
        "a.heat=[0.75]",
    ]
    assert overrides_of({"a.word": "two words"}, cfg) == ["a.word='two words'"]
    assert overrides_of({"a.word": True}, cfg) == ["a.word=true"]


def test_a_key_is_of_the_searched_method_and_its_searched_sampler_or_not():
    cfg = TuneConfig(method="m/s")
    assert cfg.in_full("{method}.a") == "methods.m.a" and cfg.in_full("{sampler}.b=1") == "methods.m.samplers.s.b=1"
    assert cfg.is_own("methods.m.a") and cfg.is_own("methods.m.samplers.s.b")
    assert not any(map(cfg.is_own, ("methods.mm.a", "methods.m.samplers.other.b", "methods.n.samplers.s.b")))


_plain = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(min_codepoint=32))
)


@given(_plain | st.lists(st.integers() | st.text("ab '\\,=[]{}:$", max_size=6), max_size=3))
def test_a_literal_is_read_back_as_it_was(value):
    parsed = OverridesParser.create().parse_override(f"key={literal(value)}").value()
    assert parsed == value and type(parsed) is type(value)


# ---- objectives and constraints ---------------------------------------------------------------------------------------
class _Context:
    """What `evaluate` looks at."""

    def __init__(self, objectives: dict, constraints: dict | None = None, of_data: dict | None = None) -> None:
        self.cfg = TuneConfig(method="m/s", objectives=objectives, constraints=constraints or {})
        columns = [Column("gen_ppl", "", "", "lower"), Column("entropy", "", "", "data")]
        self.session = type("Session", (), {"columns": columns})()
        self.of_data = of_data or {}


def _row(nfe: int, **values) -> dict:
    return {"method": "m", "sampler": "s", "nfe": nfe, "temperature": 1.0, "n": 8, "seconds_per_seq": 0.1} | values


ROWS = [
    {"method": "data", "sampler": "", "nfe": None, "temperature": 1.0, "gen_ppl": 5.0},
    _row(2, gen_ppl=1.0) | {"sampler": "another"},
    _row(2, gen_ppl=30.0, gen_ppl_se=1.0, entropy=3.0),
    _row(4, gen_ppl=20.0, entropy=2.0),
]


def test_values_are_those_of_their_budget():
    quality, near = ObjectiveConfig("gen_ppl", 4, "minimize"), ObjectiveConfig("entropy", 4, "data")
    limit = {"e": ConstraintConfig("entropy", 4, within=0.25), "p": ConstraintConfig("gen_ppl", 2, max=25.0, min=1.0)}
    context = _Context({"a": quality, "c": near}, limit, {"entropy": 4.0})
    values, constraints, scores = evaluate(context, ROWS)
    assert values == [20.0, 2.0]
    assert constraints == [pytest.approx(1.0), pytest.approx(5.0)], (
        "3 to 5 is allowed and 2 found; 25 allowed, 30 found"
    )
    assert scores["gen_ppl@2"] == 30.0 and scores["gen_ppl_se@2"] == 1.0 and scores["gen_ppl@4"] == 20.0
    assert scores["seconds_per_seq@4"] == 0.1 and "n@4" not in scores


@pytest.mark.parametrize(
    ("found", "broken_by"), [(3.0, -1.0), (4.0, -1.0), (5.0, 0.0), (5.5, 0.5), (1.0, 1.0), (math.nan, math.inf)]
)
def test_a_constraint_says_by_how_much_it_is_broken(found, broken_by):
    limit = ConstraintConfig("entropy", 4, min=2.0, max=5.0)
    context = _Context({"a": ObjectiveConfig("gen_ppl", 4, "minimize")}, {"e": limit})
    assert evaluate(context, [_row(4, gen_ppl=1.0, entropy=found)])[1] == [broken_by]


def test_limits_are_what_all_of_them_leave():
    assert limits(ConstraintConfig("x", min=1.0, within=0.5), 4.0) == (2.0, 6.0)
    assert limits(ConstraintConfig("x", max=5.0, within=0.5), -4.0) == (-6.0, -2.0)
    assert limits(ConstraintConfig("x", max=5.0), math.nan) == (-math.inf, 5.0)


def test_an_objective_without_a_value_names_one_that_has():
    context = _Context({"quality": ObjectiveConfig("excess_nats", 4, "minimize")})
    rows = [_row(4, excess_nats=math.inf, excess_nats_se=math.nan, excess_valid_nats=2.0)]
    with pytest.raises(UserError, match="tune.objectives.quality.column=excess_valid_nats has a value"):
        evaluate(context, rows)
    with pytest.raises(UserError, match="no row at NFE 4 to read gen_ppl"):
        evaluate(_Context({"a": ObjectiveConfig("gen_ppl", 4, "minimize")}), ROWS[:2])


def test_limits_that_the_data_leave_nothing_of_are_refused(tmp_path):
    cfg = TuneConfig(constraints={"e": ConstraintConfig("entropy", min=5.0, within=0.1)})
    write_json(tmp_path / "data-abc-.json", {"entropy": 4.0})
    with pytest.raises(UserError, match="tune.constraints.e: nothing is within 0.1 of the data's entropy, 4, and also"):
        data_values(Context(cfg, {}, tmp_path, tmp_path, "abc", ""))


def test_configuration_survives_its_plain_form():
    cfg = TuneConfig(space=SPACE, objectives={"a": ObjectiveConfig()})
    plain = OmegaConf.to_container(OmegaConf.structured(cfg))
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TuneConfig), plain)) == cfg
