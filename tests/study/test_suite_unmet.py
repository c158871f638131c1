"""Budgets that a method cannot meet: refused, or left out for that method alone, which is said wherever results are."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import yaml

from harness.config.rows import budgets_of
from harness.errors import BudgetError
from harness.store import ResultsTable
from harness.study.budget import parse_budgets, unmet_budgets
from harness.study.cells import left_out
from tests.kit.study_kit import invoke
from tests.kit.study_plugins import IndependentOptions, Positions, PositionsOptions
from tests.kit.suite_kit import Choosy, suite_arguments
from tests.kit.toys import tiny_problem

pytestmark = pytest.mark.usefixtures("threads")
CHOOSY = "+method@methods.choosy=choosy"
WHY = "nfe=2 cannot be met by Choosy: use 3 or more"
LINE = f"choosy/choosy is left out at NFE 2 (study.unmet=skip): {WHY}"


def test_budgets_that_are_left():
    method = Choosy(Positions(tiny_problem(3, 4), PositionsOptions()), IndependentOptions())
    assert parse_budgets(method, [2, 3, 4], skip=True) == (3, 4) == parse_budgets(method, [3, 4])
    assert list(unmet_budgets(method, [1, 2, 3])) == [1, 2]
    for wanted, skip in (([2, 3], False), ([1, 2], True)):
        with pytest.raises(BudgetError, match=f"nfe={wanted[0]} cannot be met by Choosy"):
            parse_budgets(method, wanted, skip)


def _alone(root, *more: str) -> list[str]:
    return [a if a != "study=toys" else "study=toy" for a in suite_arguments(root, CHOOSY, *more)]


def test_it_is_refused_unless_asked(tmp_path):
    said = invoke(_alone(tmp_path))
    assert said.code == 2 and said.error == f"error: {WHY}" and not (tmp_path / "runs").exists()
    said = invoke(_alone(tmp_path, "study.unmet=skip", "study.nfe=[2]"))
    assert said.code == 2 and said.error == f"error: {WHY}", "nothing would be left of it"


def test_skipped_for_that_method_alone_and_said_once_in_each_place(tmp_path):
    said = invoke(_alone(tmp_path, "study.unmet=skip"))
    assert said.code == 0, said.err
    assert said.err.splitlines().count(LINE) == 1
    assert (tmp_path / "runs" / "toy" / "report.md").read_text().splitlines().count(f"- {LINE}") == 1
    frame = ResultsTable.read(tmp_path / "runs" / "toy" / "results.parquet")
    budgets = frame.groupby("method")["nfe"].apply(lambda nfe: list(nfe.dropna()))
    assert budgets["choosy"] == [4] and budgets["positions"] == [2, 4]


def test_tasks_say_it_in_plan_and_report_and_refuse_it_at_the_start(tmp_path):
    said = invoke(suite_arguments(tmp_path, CHOOSY))
    assert said.code == 2 and said.error == f"error: task short: {WHY}" and not (tmp_path / "runs").exists()
    said = invoke(suite_arguments(tmp_path, CHOOSY, "study.unmet=skip", "plan=true"))
    assert said.code == 0 and said.out.splitlines().count(LINE) == 2
    assert re.search(r"4 of them trained \(100 steps\), 6 sets of samples, about \d+:\d\d in all\.", said.out)
    more = ["study.unmet=skip", "only_tasks=[noisy]"]
    assert invoke(suite_arguments(tmp_path, CHOOSY, *more)).code == 0
    assert f"- noisy: {LINE}" in (tmp_path / "runs" / "toys" / "report.md").read_text()


def test_a_method_may_have_budgets_of_its_own(tmp_path):
    said = invoke(_alone(tmp_path, "+study.nfe_of.choosy=[3]"))
    assert said.code == 0, said.err
    frame = ResultsTable.read(tmp_path / "runs" / "toy" / "results.parquet")
    budgets = frame.groupby("method")["nfe"].apply(lambda nfe: list(nfe.dropna()))
    assert budgets["choosy"] == [3] and budgets["positions"] == [2, 4]


def test_what_the_data_lost_is_said_in_the_same_places():
    session = SimpleNamespace(data=SimpleNamespace(notes=("a line",)), rows={}, cfg=SimpleNamespace(study=None))
    assert left_out(session) == ["a line"]


CUT = "left out, as study.nfe=[2, 3] was typed; type study.nfe_of"


@pytest.mark.parametrize(
    ("own", "more", "budgets", "line"),
    [
        (
            "{positions: {own: [2, 4, 8]}}",
            [],
            {"independent": [2, 3], "own": [2]},
            f"positions.own: 4, 8 {CUT}.positions.own",
        ),
        (
            "{positions: {own: [4]}}",
            [],
            {"independent": [2, 3], "own": [2, 3]},
            f"positions.own: 4 {CUT}.positions.own",
        ),
        ("{positions: [1, 4]}", [], {"independent": [1], "own": [1]}, f"positions: 4 {CUT}.positions="),
        ("{positions: [1, 3]}", [], {"independent": [1, 3], "own": [1, 3]}, ""),
        ("{positions: [4]}", ["study.nfe_of.positions=[4,8]"], {"independent": [4, 8], "own": [4, 8]}, ""),
    ],
)
def test_budgets_that_were_typed_win_over_those_of_rows_in_files(tmp_path, own, more, budgets, line):
    arguments = _alone(tmp_path, "methods.positions.samplers.own={sampler: independent}", "study.nfe=[2,3]", *more)
    path = tmp_path / "configs" / "study" / "toy.yaml"
    path.write_text(path.read_text().replace("nfe: [2, 4]", f"nfe: [2, 4], nfe_of: {own}"))
    said = invoke([a for a in arguments if "choosy" not in a] + ["--cfg", "job"])
    assert said.code == 0, said.err
    study = yaml.safe_load(said.out)["study"]
    found = {label: budgets_of(study["nfe_of"], study["nfe"], "positions", label) for label in budgets}
    assert found == budgets
    assert (line in said.err and said.err.count("\n") == 1) if line else not said.err


def test_without_typed_budgets_those_of_files_stand(tmp_path):
    arguments = [a for a in _alone(tmp_path, "study.samples=24") if "choosy" not in a]
    path = tmp_path / "configs" / "study" / "toy.yaml"
    path.write_text(path.read_text().replace("nfe: [2, 4]", "nfe: [2, 4], nfe_of: {positions: [8]}"))
    said = invoke([*arguments, "--cfg", "job"])
    assert yaml.safe_load(said.out)["study"]["nfe_of"] == {"positions": [8]} and not said.err


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ("+study.nfe_of.chosy=[3]", "error: study.nfe_of.chosy: is no method of this study; did you mean 'choosy'?"),
        ("+study.nfe_of.choosy=[]", "error: study.nfe_of.choosy=[]: must have one value at least"),
        ("+study.nfe_of.choosy=[2]", f"error: {WHY}"),
    ],
)
def test_wrong_budgets_of_a_method_are_one_line(tmp_path, more, error):
    said = invoke(_alone(tmp_path, more))
    assert (said.code, said.error) == (2, error) and not (tmp_path / "runs").exists()
