"""What a search is turned into: the table of trials, the best of them, importances, figures, and the report."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from harness.errors import UserError
from harness.search import figures, results
from harness.search.confirm import Confirmation, compare
from harness.search.publish import SearchLog
from harness.search.results import Findings, best_command, write_best, write_report
from harness.search.trials import candidates, order, trials_frame, write_trials
from tests.kit.tune_kit import TrialState, add, fill, make_config, make_loaded, make_study


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Two dimensions in pairs: of four there are sixteen panels, which take most of the time."""
    monkeypatch.setattr(figures, "_PAIRED", 2)


@pytest.fixture
def blank(monkeypatch):
    """Figures are composed and not drawn, which saves most of the time."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, buffer, **_: buffer.write(b"blank"))


def _bowl(params) -> list[float]:
    return [abs(params["methods.seq.slots"] - 4) + 0.01 * math.log(params["methods.seq.noise"]) ** 2]


# ---- the table --------------------------------------------------------------------------------------------------------
def test_every_trial_is_a_row_whatever_became_of_it(tmp_path):
    loaded, study = make_loaded(tmp_path, make_config(constrained=True)), make_study()
    scores = {"excess@4": 0.5, "entropy@4": 1.2}
    one = {"methods.seq.slots": 3, "methods.seq.path": "split", "methods.seq.split": 0.5}
    add(study, one, [0.5], score=scores, seconds={"train": 3.0}, trained=True, run_id="r0", entropy=-0.2)
    add(study, {"methods.seq.slots": 2, "methods.seq.path": "joint"}, [0.4], entropy=0.3)
    add(study, {"methods.seq.slots": 1}, pruned="at step 3 of 9")
    add(study, {"methods.seq.slots": 5}, state=TrialState.FAIL, failure="the loss is nan")
    add(study, {"methods.seq.slots": 6}, state=TrialState.FAIL, lost="worker a died")
    study.enqueue_trial({"methods.seq.slots": 6}, user_attrs={"retry_of": 4})
    frame = write_trials(loaded, study, {3: "r3"})
    assert list(frame["number"]) == [0, 1, 2, 3, 4, 5]
    assert list(frame["state"]) == ["complete", "complete", "pruned", "failed", "lost", "waiting"]
    assert list(frame["feasible"])[:2] == [True, False] and frame["feasible"][2:].isna().all()
    assert frame["value.excess"][0] == 0.5 and frame["value.excess"][2:].isna().all(), "a pruned trial has no value"
    assert frame["constraint.entropy"][1] == 0.3 and frame["score.entropy@4"][0] == 1.2
    assert frame["param.methods.seq.slots"][4] == 6 and pd.isna(frame["param.methods.seq.split"][1])
    assert frame["seconds"][0] == 7.0 and frame["seconds.train"][0] == 3.0 and frame["trained"][0]
    assert list(frame["reason"])[2:5] == ["at step 3 of 9", "the loss is nan", "worker a died"]
    assert frame["run_id"][0] == "r0" and frame["run_id"][3] == "r3" and frame["retry_of"][5] == 4
    read = pd.read_parquet(loaded.folder / "trials.parquet")
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    text = pd.read_csv(loaded.folder / "trials.csv")
    assert list(text.columns) == list(frame.columns) and len(text) == 6


def test_a_table_of_nothing_and_of_mixed_choices_can_be_written(tmp_path):
    loaded, study = make_loaded(tmp_path), make_study()
    assert write_trials(loaded, study).empty
    add(study, {"methods.seq.path": "joint"}, [1.0])
    frame = trials_frame(study)
    assert list(frame["param.methods.seq.path"]) == ["joint"] and len(frame) == 1


# ---- the best ---------------------------------------------------------------------------------------------------------
def test_the_best_are_feasible_distinct_and_in_order(tmp_path):
    loaded, study = make_loaded(tmp_path, make_config(constrained=True)), make_study()
    for slots, value, broken in ((1, 0.9, -1), (2, 0.1, 0.5), (3, 0.5, 0.0), (3, 0.45, -1), (4, 0.7, -1)):
        add(study, {"methods.seq.slots": slots}, [value], entropy=broken)
    add(study, {"methods.seq.slots": 8})  # pruned
    found = candidates(loaded, study, 3)
    assert [c.trial.number for c in found] == [3, 4, 0], "trial 1 breaks a constraint, trial 2 is trial 3 once more"
    assert found[0].overrides == ("methods.seq.slots=3",) and all(c.feasible for c in found)
    assert len(candidates(loaded, study, 2)) == 2


def test_what_is_maximised_is_ordered_the_other_way_round(tmp_path):
    loaded, study = make_loaded(tmp_path), make_study(("maximize",))
    for slots in (1, 2, 3):
        add(study, {"methods.seq.slots": slots}, [float(slots)])
    assert [c.trial.number for c in candidates(loaded, study, 9)] == [2, 1, 0]


def test_where_nothing_is_feasible_the_closest_is_shown_alone(tmp_path):
    loaded, study = make_loaded(tmp_path, make_config(constrained=True)), make_study()
    for value, broken in ((0.1, 2.0), (0.9, 0.25), (0.5, 1.0)):
        add(study, {"methods.seq.slots": 1}, [value], entropy=broken)
    (found,) = candidates(loaded, study, 3)
    assert found.trial.number == 1 and not found.feasible
    assert candidates(loaded, make_study(), 3) == []


def test_with_several_objectives_the_knee_comes_first_and_the_front_before_the_rest(tmp_path):
    loaded, study = make_loaded(tmp_path, make_config(2)), make_study(("minimize", "minimize"))
    points = [(0.0, 10.0), (1.0, 0.0), (0.2, 1.0), (0.3, 2.0), (2.0, 20.0)]
    for i, values in enumerate(points):
        add(study, {"methods.seq.slots": i + 1}, list(values))
    # On the front: 0, 1 and 2. Scaled to their ranges they are (0, 1), (1, 0) and (0.2, 0.1): the last is the knee.
    assert [c.trial.number for c in candidates(loaded, study, 5)] == [2, 0, 1, 3, 4]
    assert order(np.array([[3.0], [1.0], [2.0]])) == [1, 2, 0]
    assert order(np.array([[1.0, 5.0], [1.0, 4.0]])) == [1, 0], "a column without a spread decides nothing"


def test_the_file_of_the_best_says_what_it_is_and_how_to_run_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded, study = make_loaded(tmp_path, make_config(constrained=True)), make_study()
    loaded.base_args = [
        "study=exact",
        "only_tasks=[binsaw]",
        "methods.seq.slots=9",
        "tracking.uri=postgresql://me:secret@db/x",
    ]
    params = {"methods.seq.slots": 3, "methods.seq.noise": 0.1, "methods.seq.path": "joint"}
    add(study, params, [0.25], entropy=-0.5)
    chosen = candidates(loaded, study, 1)[0]
    path = write_best(loaded, chosen, "because", [{"objective": "excess", "seeds": 3}])
    content = yaml.safe_load(path.read_text())
    assert content["overrides"] == ["methods.seq.slots=3", "methods.seq.noise=0.1", "methods.seq.path=joint"]
    assert content["values"] == {"excess": 0.25} and content["constraints"] == {"entropy": -0.5}
    assert content["study"] == "toy" and content["trial"] == 0 and content["confirmed"][0]["seeds"] == 3
    command = content["command"]
    assert command == best_command(loaded, chosen) and command in path.read_text().splitlines()[1]
    assert command.startswith("python -m harness.run study=exact 'only_tasks=[binsaw]'")
    assert "slots" not in command, "an argument of the search would win over the file"
    assert command.endswith("+best=runs/toy/tune/latent/best.yaml") and "secret" not in path.read_text()


# ---- importances and figures --------------------------------------------------------------------------------------------
def _shares(study, k: int = 0) -> dict[str, float]:
    return figures.importances(study, k, list(make_config().space))


def test_importances_find_the_dimension_that_matters():
    study = make_study()
    fill(study, 60, lambda p: [abs(p["methods.seq.slots"] - 4.0)])
    share = _shares(study)
    assert next(iter(share)) == "methods.seq.slots" and share["methods.seq.slots"] > 0.5
    assert sum(share.values()) == pytest.approx(1.0) and set(share) <= set(study.trials[2].params)
    most = make_study(("maximize",))
    fill(most, 60, lambda p: [-abs(p["methods.seq.slots"] - 4.0)])
    assert _shares(most) == pytest.approx(share), "the sign is turned, not the answer"


def test_all_figures_are_drawn(tmp_path):
    loaded, study = make_loaded(tmp_path), make_study()
    fill(study, 12, _bowl)
    made, missing = figures.draw_all(loaded, study)
    assert [p.stem for p in made] == ["history", "importances", "slice", "contour"] and missing == []
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in made)


def test_several_objectives_have_a_front(tmp_path, blank):
    loaded, study = make_loaded(tmp_path, make_config(2, constrained=True)), make_study(("minimize", "maximize"))
    fill(study, 20, lambda p: [*_bowl(p), float(p["methods.seq.slots"])], constrained=True)
    add(study, {"methods.seq.slots": 3})
    made, missing = figures.draw_all(loaded, study)
    kinds = ("history", "importances", "slice", "contour")
    assert [p.stem for p in made] == [*(f"{k}-{o}" for o in loaded.cfg.objectives for k in kinds), "pareto"]
    assert missing == []


def test_axes_are_called_by_the_ends_of_long_names(tmp_path, monkeypatch):
    seen = []

    def savefig(figure, buffer, **_):
        buffer.write(b"blank")
        seen.append({axes.get_xlabel() for axes in figure.axes})

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    plt.switch_backend("Agg")
    before, study = dict(plt.rcParams), make_study()
    fill(study, 12, _bowl)
    figures.draw_all(make_loaded(tmp_path), study)
    assert any({"slots", "noise", "path", "split"} <= each for each in seen) and not any(
        "methods" in name for each in seen for name in each
    )
    assert dict(plt.rcParams) == before and not plt.get_fignums(), "other figures look as they did"


@pytest.mark.parametrize(
    ("trials", "missing"),
    [
        ([], {"history": "trials: 1 needed, 0 there", "importances": "", "slice": "", "contour": "3 needed"}),
        ([({"methods.seq.slots": 1}, 1.0)], {"importances": "", "slice": "", "contour": ""}),
        ([({"methods.seq.slots": i}, i) for i in (1, 2, 3)], {"importances": "2 needed, 1 there", "contour": "1 there"}),
        ([({"methods.seq.slots": 2, "methods.seq.noise": 0.5}, i) for i in (1.0, 2.0, 3.0)],
         {"importances": "0 there", "slice": "1 needed, 0 there", "contour": "0 there"}),
        ([({"methods.seq.slots": i, "methods.seq.noise": 0.1 * i}, 1.0) for i in (1, 2, 3, 4)],
         {"importances": "the same value"}),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_left_out_with_a_reason(tmp_path, blank, trials, missing):
    """No trial, one, one dimension, none that differs, values that are all the same."""
    loaded, study = make_loaded(tmp_path), make_study()
    old = loaded.folder / "figures" / "contour.png"
    old.parent.mkdir()
    old.write_bytes(b"of an earlier search")
    for params, value in trials:
        add(study, params, [float(value)])
    made, lines = figures.draw_all(loaded, study)
    left = {line.split()[1]: line for line in lines}
    assert set(left) == set(missing) and all(why in left[name] for name, why in missing.items())
    assert {p.stem for p in made} == {"history", "importances", "slice", "contour"} - set(missing)
    assert old.exists() == ("contour" not in missing), "a figure of what was there before does not stay"


# ---- the report and the end -------------------------------------------------------------------------------------------
def test_the_report_says_what_was_searched_and_found(tmp_path):
    loaded, study = make_loaded(tmp_path, make_config(constrained=True)), make_study()
    fill(study, 4, _bowl, constrained=True)
    chosen = candidates(loaded, study, 2)
    text = write_report(
        loaded, study, Findings(chosen, chosen[0], "For a reason.", notes=["figure x is left out: y"])
    ).read_text()
    assert "Best: trial 1 (excess 0.1" in text and "For a reason." in text
    assert "| `methods.seq.noise` | float | 0.01 to 1, log |  |" in text
    assert '| `methods.seq.split` | float | 0 to 1 | methods.seq.path in ["split"] |' in text
    assert "4 finished, 0 pruned, 0 failed" in text and "- figure x is left out: y" in text
    empty = write_report(loaded, make_study(), Findings([])).read_text()
    assert "No trial was finished" in empty


def _no_confirmation(loaded, study, chosen):
    raise AssertionError("nothing is to be re-evaluated")


def test_a_constraint_that_nothing_meets_is_a_warning_and_not_a_failure(tmp_path, blank, monkeypatch, capsys):
    monkeypatch.setattr(results, "confirm", _no_confirmation)
    loaded, study = make_loaded(tmp_path, make_config(constrained=True)), make_study()
    add(study, {"methods.seq.slots": 2}, [0.5], entropy=0.5)
    outcome = results.finish(loaded, study, SearchLog(loaded, study))
    assert outcome.failures == {} and "No trial meets the constraints" in outcome.table
    assert capsys.readouterr().err.startswith("warning: No trial meets the constraints; the closest is trial 0")
    content = yaml.safe_load((loaded.folder / "best.yaml").read_text())
    assert content["feasible"] is False and "No trial meets" in (loaded.folder / "report.md").read_text()


def test_a_search_without_a_finished_trial_ends_too(tmp_path, blank, monkeypatch, capsys):
    monkeypatch.setattr(results, "confirm", _no_confirmation)
    loaded, study = make_loaded(tmp_path), make_study()
    add(study, {"methods.seq.slots": 2})
    outcome = results.finish(loaded, study, SearchLog(loaded, study))
    assert "nothing to choose from" in outcome.table and not (loaded.folder / "best.yaml").exists()
    assert "no trial was finished" in capsys.readouterr().err


def test_the_fresh_seeds_choose_among_the_best(tmp_path, blank, monkeypatch):
    """The search's first loses to its second on the fresh seeds: `best.yaml` is the second."""

    def confirm(loaded, study, chosen):
        assert [c.trial.number for c in chosen] == [1, 2]
        done = Confirmation([], [101, 102, 103], winner=chosen[1].label)
        done.paired = {chosen[1].label: [compare("excess", {101: 1.0}, {101: 2.0}, True)]}
        return done

    monkeypatch.setattr(results, "confirm", confirm)
    loaded, study = make_loaded(tmp_path), make_study()
    for slots, value in ((1, 0.9), (2, 0.1), (3, 0.2)):
        add(study, {"methods.seq.slots": slots}, [value])
    outcome = results.finish(loaded, study, SearchLog(loaded, study))
    content = yaml.safe_load((loaded.folder / "best.yaml").read_text())
    assert content["trial"] == 2 and "mean over the 3 fresh seeds" in content["chosen"]
    assert any(place.startswith("run it") and "+best=" in place for place in outcome.places)


def test_what_fresh_seeds_chose_stays_while_they_are_asked_again(tmp_path, blank, monkeypatch):
    def refused(loaded, study, chosen):
        raise UserError("made by other code")

    monkeypatch.setattr(results, "confirm", refused)
    loaded, study = make_loaded(tmp_path), make_study()
    add(study, {"methods.seq.slots": 1}, [0.9])
    for known in ("", "chosen: by fresh seeds"):
        (loaded.folder / "best.yaml").write_text(known) if known else None
        with pytest.raises(UserError, match="other code"):
            results.finish(loaded, study, SearchLog(loaded, study))
        said = yaml.safe_load((loaded.folder / "best.yaml").read_text())["chosen"]
        assert said == "by fresh seeds" if known else "by the search alone" in said
