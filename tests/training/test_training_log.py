"""What training shows: its lines every few steps, which a kill does not change, and the words beside its progress."""

import math

import pytest
import torch

from harness.progress import counted
from harness.store import append_jsonl, read_jsonl
from harness.training.log import TrainingLog
from harness.training.loop import Diverged, train, validation_steps
from lddm.fuji import FUJI
from tests.kit.toys import job_of, one_thread  # noqa: F401
from tests.training.test_training import PROBLEM, SMALL, FUJIOptions, MeanOfTokens
from tests.training.test_training_resume import BUILDERS, Killed, build, curves, killed_at

ALWAYS = {"train/loss", "train/gradient_norm", "train/lr", "train/tokens_per_second"}


def test_lines_come_every_few_steps_and_once_where_a_validation_falls_on_one(tmp_path):
    train(job_of(build("mdlm"), tmp_path, log_every=4, validations=4))
    lines = {line["step"]: line["values"] for line in read_jsonl(tmp_path / "curves.jsonl")}
    steps = [line["step"] for line in read_jsonl(tmp_path / "curves.jsonl")]
    assert steps == [4, 8, 10, 12, 16, 20, 24, 28, 30, 32, 36, 40]
    assert all(lines[step].keys() >= ALWAYS | {"train/nelbo_nats_per_token"} for step in steps)
    assert [step for step in steps if "valid/bound_nats_per_token" in lines[step]] == [10, 20, 30, 40]
    assert all(math.isfinite(value) for values in lines.values() for value in values.values())


def test_the_last_step_has_a_line_whatever_the_interval(tmp_path):
    train(job_of(MeanOfTokens(), tmp_path, steps=5, log_every=50, validations=1))
    assert [line["step"] for line in read_jsonl(tmp_path / "curves.jsonl")] == [5]


def test_values_are_means_over_the_steps_since_the_line_before(tmp_path):
    seen: list[float] = []

    class Watched(MeanOfTokens):
        def loss(self, x_BL, generator):
            made = super().loss(x_BL, generator)
            seen.append(float(made.total.detach()))
            return made

    train(job_of(Watched(), tmp_path, steps=9, log_every=3, validations=1))
    found = [values["train/loss"] for _, values in curves(tmp_path)]
    assert found == pytest.approx([sum(seen[i : i + 3]) / 3 for i in (0, 3, 6)], rel=1e-6)


@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize("every", [-1.0, 1e9])
def test_a_killed_run_writes_the_same_lines_once(name, every, tmp_path):
    """Kills fall inside an interval: the sums of its first steps are in the checkpoint, where there is one."""
    train(job_of(build(name), tmp_path / "whole", log_every=7))
    folder = tmp_path / "killed"
    for kill in (10, 30):
        with pytest.raises(Killed):
            train(job_of(build(name), folder, progress=killed_at(kill), checkpoint_seconds=every, log_every=7))
    train(job_of(build(name), folder, checkpoint_seconds=every, log_every=7))
    assert curves(folder) == curves(tmp_path / "whole")
    assert [step for step, _ in curves(folder)] == [7, 10, 14, 20, 21, 28, 30, 35, 40]


def test_a_validation_that_falls_on_an_older_line_is_added_to_it(tmp_path):
    """The number of validations may change between two attempts: it is no part of what was trained."""
    trained = {"train/loss": 9.0, "train/tokens_per_second": 5.0}
    append_jsonl(tmp_path / "curves.jsonl", {"step": 10, "time_ms": 1, "values": trained})
    told: list[dict[str, float]] = []
    job = job_of(build("mdlm"), tmp_path)
    object.__setattr__(job, "on_validation", lambda step, values: told.append(dict(values)))
    train(job)
    lines = [line["values"] for line in read_jsonl(tmp_path / "curves.jsonl") if line["step"] == 10]
    assert lines[0] == trained and {name.split("/")[0] for name in lines[1]} == {"valid"}
    assert told[0] == lines[0] | lines[1] and len(told) == 4


# ---- instruments ------------------------------------------------------------------------------------------------------
def test_instruments_are_read_half_way_and_at_the_end_and_change_nothing(tmp_path):
    asked: list[int] = []

    class Watched(FUJI):
        steps = 0

        def loss(self, x_BL, generator):
            self.steps += 1
            return super().loss(x_BL, generator)

        def diagnose(self, x_BL, generator):
            asked.append(self.steps)
            before = {key: value.clone() for key, value in self.state_dict().items()}
            found = super().diagnose(x_BL, generator)
            assert all(torch.equal(before[key], value) for key, value in self.state_dict().items())
            return found

    torch.manual_seed(0)
    method = Watched(PROBLEM, FUJIOptions(**SMALL))
    train(job_of(method, tmp_path, validations=10))
    assert asked == [20, 40]
    lines = curves(tmp_path)
    assert [step for step, values in lines if "valid/latent_std" in values] == asked
    assert all("valid/bound_nats_per_token" in values for _, values in lines) and len(lines) == 10

    class Blind(FUJI):
        def diagnose(self, x_BL, generator):
            return {}

    torch.manual_seed(0)
    blind = Blind(PROBLEM, FUJIOptions(**SMALL))
    train(job_of(blind, tmp_path / "blind", validations=10))
    assert all(torch.equal(value, blind.state_dict()[key]) for key, value in method.state_dict().items())
    bound = "valid/bound_nats_per_token"
    assert [v[bound] for _, v in lines] == [v[bound] for _, v in curves(tmp_path / "blind")]


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [(40, 4, [10, 20, 30, 40]), (7, 3, [2, 4, 6, 7]), (3, 10, [1, 2, 3]), (1, 1, [1]), (10, 1, [10])],
)
def test_validations_are_even_and_the_last_is_at_the_end(steps, count, expected):
    assert validation_steps(steps, count) == expected


# ---- weights that are not finite --------------------------------------------------------------------------------------
def test_weights_that_are_not_finite_after_the_last_step_are_refused(tmp_path):
    """The loss of the last step is a number; its gradient is not, and no later step would notice."""

    class Bad(MeanOfTokens):
        def loss(self, x_BL, generator):
            made = super().loss(x_BL, generator)
            if self.calls == 3:
                self.w.register_hook(lambda gradient: gradient * math.nan)
            return made

    with pytest.raises(Diverged, match=r"^w is not finite after step 3; a smaller scale\.lr \(now 0\.003\) may help$"):
        train(job_of(Bad(), tmp_path, steps=3))


# ---- words ------------------------------------------------------------------------------------------------------------
def test_progress_says_loss_speed_and_time_to_go(tmp_path):
    said: list[str] = []

    def progress(text: str, done: int, total: int) -> None:
        said.append(counted(text, done, total))

    train(job_of(build("mdlm"), tmp_path, log_every=20, validations=1, progress=progress))
    assert said[0].startswith("train all 10/40, ETA 0:0") and "loss" not in said[0]
    loss = curves(tmp_path)[0][1]["train/loss"]
    assert said[1].startswith(f"train all 20/40, loss {loss:.3g}, ") and "k tokens/s, ETA 0:0" in said[1]
    assert said[3].endswith("ETA 0:00")


def test_what_is_not_counted_is_said_as_it_is():
    assert counted("waiting, as before", 0, 0) == "waiting, as before"
    assert counted("sample NFE 4", 3, 8) == "sample NFE 4 3/8"


def test_a_log_goes_on_where_another_with_other_names_ended(tmp_path):
    """Values of a stage are not averaged with those of the stage before."""
    log = TrainingLog(tmp_path / "curves.jsonl", steps=4, tokens=1)
    log.add({"loss": torch.tensor(8.0), "first": torch.tensor(1.0)}, 0.1)
    log.add({"loss": torch.tensor(2.0)}, 0.2)
    log.add({"loss": torch.tensor(4.0)}, 0.3)
    values = log.write(3)
    assert values["train/loss"] == 3.0 and values["train/lr"] == 0.3 and "train/first" not in values
