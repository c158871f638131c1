"""Jobs of SLURM: what is asked for, what is refused, and that a job that is stopped goes on."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")

from harness.config.load import load
from harness.slurm.jobs import Job, lacking
from harness.store import read_json, read_jsonl
from harness.study import steps
from harness.study.cells import make_cells
from harness.study.outcome import Outcome
from harness.study.session import Session
from tests.kit.slurm_kit import call, fake_slurm, interrupt, run_here, write_toy
from tests.kit.study_kit import invoke, snapshot
from tests.kit.toys import one_thread  # noqa: F401


@pytest.fixture
def toy(tmp_path) -> list[str]:
    return [*write_toy(tmp_path / "configs"), f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]


def of(toy: list[str], action: str, *more: str, model: str = "") -> Job:
    return Job(action, action, (*toy[2:], *more), (toy[1],), model=model, command="the command")


def outcome(job: Job) -> Outcome:
    return Outcome(**json.loads(job()))


def _curve(path: Path) -> list[dict[str, float]]:
    """Values of all lines but the speed, which no two runs share."""
    return [{k: v for k, v in line["values"].items() if not k.endswith("_per_second")} for line in read_jsonl(path)]


# ---- a job that is stopped --------------------------------------------------------------------------------------------
def test_a_job_goes_on_after_preemption_and_timeout_and_ends_with_the_same_numbers(toy, tmp_path):
    """Both come with the same signal, here while it trains; each time the job is put back and goes on from a checkpoint."""
    slow = [
        "+method@methods.slow=slow",
        "only=[slow]",
        "scale.steps=200",
        "train.checkpoint_seconds=0.3",
        "train.checkpoint_share=1",
    ]
    session = Session(load([*toy[2:], *slow, f"runs_dir={tmp_path / 'other'}"], [tmp_path / "configs"]).tree)
    whole = make_cells(session)[0].weights
    steps.train_weights(session, whole, lambda *_: None)

    slow.append("methods.slow.pause=0.03")
    handle = run_here(of(toy, "tasks", *slow, model="slow/seed0"), tmp_path / "jobs")
    stopped = interrupt("toy/weights/slow*/train.safetensors", tmp_path / "runs", times=2)
    assert len(stopped) == 2, "it ended before it was stopped twice"
    assert json.loads(handle.result())["failures"] == {}
    logs = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*_0_log.*"))
    assert logs.count("Requeued job") == 2
    (home,) = (tmp_path / "runs").glob("toy/weights/slow*/")
    one, other = load_file(whole.model), load_file(home / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert _curve(home / "curves.jsonl") == _curve(whole.curves)


# ---- what a job does, in this process ---------------------------------------------------------------------------------
@pytest.mark.usefixtures("threads")
def test_jobs_of_a_study_are_published_when_all_is_there(toy, tmp_path):
    reason = "its job ended early; the same command submits what is missing"
    missing = {"positions/independent/seed0": reason, "data": reason}
    assert outcome(of(toy, "publish")).failures == missing
    assert not (tmp_path / "runs" / "toy" / "results.parquet").exists()
    assert outcome(of(toy, "tasks")).failures == {}
    del missing["data"]
    assert outcome(of(toy, "publish")).failures == missing
    assert outcome(of(toy, "tasks", model="positions/seed0")).failures == {}
    assert lacking(Session(of(toy, "publish").loaded().tree)) == []
    published = outcome(of(toy, "publish"))
    assert published.failures == {}
    assert ["Positions", "4"] in [line.split()[:2] for line in published.table.splitlines()]
    assert "the command" in (tmp_path / "runs" / "toy" / "report.md").read_text()


@pytest.mark.usefixtures("threads")
def test_jobs_and_the_runner_leave_the_same_files(toy, tmp_path):
    assert outcome(of(toy, "tasks")).failures == outcome(of(toy, "tasks", model="positions/seed0")).failures == {}
    folder = tmp_path / "runs" / "toy"
    files = {name: digest for name, digest in snapshot(folder).items() if name.endswith(("safetensors", "json"))}
    said = invoke([*toy, "study.question=another"])
    assert said.code == 0 and "another configuration" not in said.err, "the question is no part of what is measured"
    after = snapshot(folder)
    assert {name: after[name] for name in files} == files, "nothing is done again"


@pytest.mark.usefixtures("threads")
def test_a_job_of_another_configuration_puts_results_aside_as_the_runner_does(toy, tmp_path):
    assert invoke(toy).code == 0
    folder = tmp_path / "runs" / "toy"
    key, before = read_json(folder / "state.json")["key"], snapshot(folder / "samples")
    assert outcome(of(toy, "tasks", "study.samples=24", model="positions/seed0")).failures == {}
    assert snapshot(folder / "earlier" / key / "samples") == before
    assert read_json(folder / "state.json")["key"] != key


@pytest.mark.usefixtures("threads")
def test_a_job_that_fails_says_why_and_nothing_is_published(toy, tmp_path):
    liar = "methods.positions.samplers.liar={}"
    assert outcome(of(toy, "tasks", liar)).failures == {}
    failures = outcome(of(toy, "tasks", liar, model="positions/seed0")).failures
    assert list(failures) == ["positions/liar/seed0"]
    assert failures["positions/liar/seed0"].endswith("SamplerError: Liar reports 2 calls at NFE 2; its networks saw 3")
    assert list(outcome(of(toy, "publish", liar)).failures) == ["positions/liar/seed0"]
    assert not (tmp_path / "runs" / "toy" / "report.md").exists()
    errors = tmp_path / "runs" / "toy" / "errors" / "sample-positions-liar-seed0.txt"
    assert "SamplerError" in errors.read_text()


@pytest.mark.usefixtures("threads")
def test_a_loss_that_is_not_a_number_is_reported_as_the_runner_does(toy):
    bad = ["+method@methods.poisoned=positions", "methods.poisoned.poison_from=12", "only=[poisoned]"]
    outcome(of(toy, "tasks", *bad))
    failures = outcome(of(toy, "tasks", *bad, model="poisoned/seed0")).failures
    assert "the loss is nan at step 13" in failures["poisoned/seed0"]
    assert outcome(of(toy, "publish", *bad)).failures == failures


def test_bad_input_in_a_job_is_one_line(toy):
    failures = outcome(of(toy, "tasks", "study.nfe=[0]")).failures
    assert failures["tasks"].startswith("study.nfe=0: must be 1 or more")


# ---- SLURM ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def box(tmp_path, monkeypatch) -> Path:
    return fake_slurm(tmp_path, monkeypatch)


def test_what_slurm_is_asked_for(toy, tmp_path, box):
    asked = [
        "slurm.partition=gpu", "slurm.timeout_min=240", "slurm.account=me", "slurm.mem_gb=12.5", "slurm.setup=[module load x]",
        "slurm.more.reservation=night", "slurm.at_a_time=3", "study.seeds=[0,1]", "compute.device=cuda", "wait=false",
    ]  # fmt: skip
    said = call(["run", *toy, *asked, "train.accumulate=2", "compute.processes=2"])
    assert said.code == 0, said.err
    cells, last = (box / name for name in ("100.sh", "101.sh"))
    lines = cells.read_text().splitlines()
    wanted = {
        "partition=gpu", "time=240", "account=me", "mem=12800MB", "reservation=night", "requeue", "signal=USR2@90",
        "gpus-per-node=2", "cpus-per-task=2", "array=0-2%3", "job-name=toy", "open-mode=append",
    }  # fmt: skip
    assert {f"#SBATCH --{word}" for word in wanted} <= set(lines)
    assert "module load x" in lines and not any("dependency" in line for line in lines)
    assert "#SBATCH --dependency=afterany:100" in last.read_text().splitlines()
    assert "job 100_0" in said.err and "101 publishes when they have ended" in said.out
    known = read_json(tmp_path / "runs" / "toy" / "jobs" / "jobs.json")
    assert set(known) == {"judge", "positions/seed0", "positions/seed1", "publish"}

    # The command again: what waits in the queue is kept, but for the one that publishes.
    (tmp_path / "states").write_text("".join(f"100_{i}|PENDING|\n" for i in range(3)) + "101|PENDING|\n")
    again = call(["run", *toy, *asked, "train.accumulate=2", "compute.processes=2"])
    assert again.code == 0 and sorted(path.name for path in box.iterdir()) == ["100.sh", "101.sh", "102.sh"]
    assert "#SBATCH --dependency=afterany:100" in (box / "102.sh").read_text().splitlines()
    assert (tmp_path / "cancelled").read_text() == "101\n"


def test_a_study_goes_through_slurm_to_its_report(toy, tmp_path, monkeypatch):
    """The scheduler is a stand-in; the scripts, the jobs and the waiting are real."""
    box = fake_slurm(tmp_path, monkeypatch, runs=True)
    said = call(["run", *toy, "methods.positions.samplers.liar={}"])
    logs = "".join(path.read_text() for path in box.glob("*.log"))
    assert said.code == 1, said.err + logs
    wrong = "SamplerError: Liar reports 2 calls at NFE 2; its networks saw 3"
    (line,) = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: positions/liar/seed0: ") and line.endswith(wrong)
    assert f"{wrong} (" in said.err
    assert not (tmp_path / "runs" / "toy" / "report.md").exists()

    said = call(["run", *toy])
    assert said.code == 0, said.err
    assert "Positions" in said.out and f"report   {tmp_path / 'runs' / 'toy' / 'report.html'}" in said.out
    assert "python -m harness.submit run" in (tmp_path / "runs" / "toy" / "report.md").read_text()


class Recorder(pickle.Unpickler):
    """Reads what submitit wrote for a job and keeps the names of all that it would import."""

    def find_class(self, module: str, name: str):
        self.names.add(f"{module}.{name}")
        return super().find_class(module, name)


def test_a_job_is_strings_and_nothing_else(toy, tmp_path, box):
    assert call(["run", *toy, "wait=false", "slurm.partition=gpu"]).code == 0
    names: set[str] = set()
    jobs = []
    for path in (tmp_path / "runs" / "toy" / "jobs").glob("*_submitted.pkl"):
        with open(path, "rb") as file:
            recorder = Recorder(file)
            recorder.names = names
            jobs.append(recorder.load().function)
    assert names == {"submitit.core.utils.DelayedSubmission", "harness.slurm.jobs.Job"}
    assert {job.action for job in jobs} == {"tasks", "publish"}
    for job in jobs:
        flat = [word for value in vars(job).values() for word in (value if isinstance(value, tuple) else (value,))]
        assert all(type(word) is str for word in flat)
        assert type(job.checkpoint()).__name__ == "DelayedSubmission" and job.checkpoint().function is job


def test_a_login_of_the_storage_is_in_no_file(toy, tmp_path, box, monkeypatch):
    monkeypatch.setenv("HARNESS_PRIVATE_ARGUMENTS", "[]")
    url = "postgresql://me:geheim@db/x"
    arguments = [
        "study=exact",
        "only_tasks=[templates]",
        "tune=latent",
        *toy[3:],
        f"tune.storage={url}",
    ]
    said = call(["tune", *arguments, "slurm.jobs=3", "slurm.gpus=2", "wait=false"])
    assert said.code == 0, said.err
    assert os.environ["HARNESS_PRIVATE_ARGUMENTS"] == f'["tune.storage={url}"]'
    script = (box / "100.sh").read_text()
    assert "#SBATCH --array=0-2%3" in script and "#SBATCH --gpus-per-node=2" in script
    for path in (*box.iterdir(), *(p for p in (tmp_path / "runs").rglob("*") if p.is_file())):
        assert b"geheim" not in path.read_bytes(), path
    assert "geheim" not in said.out + said.err
    (folder,) = (tmp_path / "runs").rglob("jobs")
    with open(next(folder.glob("*_submitted.pkl")), "rb") as file:
        job = pickle.load(file).function
    assert "tune.workers=2" in job.arguments and not any("tune.storage" in word for word in job.arguments)
    assert job.all_arguments() == [*job.arguments, f"tune.storage={url}"]
