"""Jobs of SLURM and of this machine: what is asked for, what is refused, and that a job that is stopped goes on."""

import contextlib
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from harness.cluster.jobs import Job, unfinished
from harness.config.load import load
from harness.store import ResultsTable, read_json, read_jsonl
from harness.study import steps
from harness.study.cells import make_cells
from harness.study.session import Session
from tests.cluster_kit import call, fake_slurm, write_toy
from tests.toys import one_thread  # noqa: F401

pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")


@pytest.fixture
def toy(tmp_path) -> list[str]:
    return [*write_toy(tmp_path / "configs"), f"runs_dir={tmp_path / 'runs'}", f"cache_dir={tmp_path / 'cache'}"]


def _curve(path: Path) -> list[dict[str, float]]:
    """Values of all lines but the speed, which no two runs share."""
    return [{k: v for k, v in line["values"].items() if not k.endswith("_per_second")} for line in read_jsonl(path)]


# ---- a job that is stopped --------------------------------------------------------------------------------------------
def test_a_job_goes_on_after_preemption_and_timeout_and_ends_with_the_same_numbers(toy, tmp_path):
    """The signal comes 28 s into an attempt, 8 s before its end, and training alone takes 30 s: it must come at least once."""
    slow = [*toy, "+method@methods.slow=slow", "only=[slow]", "scale.steps=600", "train.checkpoint_seconds=0.5"]
    session = Session(load([*slow[2:], f"runs_dir={tmp_path / 'other'}"], [tmp_path / "configs"]).tree)
    whole = make_cells(session)[0]
    steps.train_weights(session, whole, lambda *_: None)

    home: list[Path] = []
    stopped: list[int] = []

    def preempt() -> None:
        """What a scheduler does when somebody more important comes: the signal, a moment after the first checkpoint."""
        until = time.monotonic() + 60
        while time.monotonic() < until and not stopped:
            time.sleep(0.1)
            home[:] = [path.parent for path in (tmp_path / "runs").glob("toy/cells/slow*/train.safetensors")]
            for process in psutil.Process().children(recursive=True) if home else []:
                with contextlib.suppress(psutil.Error):
                    if "submitit.core._submit" in process.cmdline():
                        process.send_signal(signal.SIGUSR2)
                        stopped.append(process.pid)

    thread = threading.Thread(target=preempt)
    thread.start()
    said = call(
        ["run", "cluster=local", *slow, "methods.slow.pause=0.05", "slurm.timeout_min=0.6", "slurm.signal_delay_s=8"]
    )
    thread.join()
    assert said.code == 0, said.err
    assert stopped, "it was never preempted"
    log = next((tmp_path / "runs" / "toy" / "jobs").glob("*_0_log.err"))
    logs = "".join(path.read_text() for path in log.parent.glob("*_0_log.*"))
    assert logs.count("Requeued job") >= 2, "one preemption and at least one timeout"
    assert logs.count("slow/seed0: train all 600/600") == 1
    cell = next(path for path in (tmp_path / "runs").glob("toy/cells/slow*/"))
    one, other = load_file(whole.model), load_file(cell / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert _curve(cell / "curves.jsonl") == _curve(whole.curves)
    frame = ResultsTable.read(tmp_path / "runs" / "toy" / "results.parquet")
    assert set(frame["method"]) == {"data", "slow"} and frame["gen_ppl"].notna().all()
    assert "| Slow | 2 |" in said.out and "report " in said.out

    again = call(["run", "cluster=local", *slow, "methods.slow.pause=0.05"])
    assert again.code == 0 and "started" not in again.err, "nothing is left to be submitted"


def test_a_job_that_fails_is_named_with_its_log_and_nothing_is_published(toy, tmp_path):
    said = call(["run", "cluster=local", *toy, "+method@methods.liar=liar", "only=[liar]"])
    assert said.code == 1
    (line,) = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert line == "failed: liar/seed0: SamplerError: Liar reports 2 calls at NFE 2; its networks saw 3"
    assert not (tmp_path / "runs" / "toy" / "report.md").exists()
    assert "SamplerError" in (tmp_path / "runs" / "toy" / "errors" / "job-liar-seed0.txt").read_text()


# ---- what a job does, in this process ---------------------------------------------------------------------------------
def of(toy: list[str], action: str, *more: str, cells: tuple[str, ...] = ()) -> Job:
    return Job(action, action, (*toy[2:], *more), (toy[1],), cells=cells, command="the command")


def test_jobs_of_a_study_are_published_when_all_is_there(toy, tmp_path, monkeypatch):
    failures = read_answer(of(toy, "publish"))["failures"]
    reason = "its job ended early; the same command submits what is missing"
    assert failures == {"positions/seed0": reason, "data/seed0": reason}
    assert not (tmp_path / "runs" / "toy" / "results.parquet").exists()
    assert read_answer(of(toy, "judge")) == {"failures": {}}
    assert read_answer(of(toy, "cells", cells=("positions/seed0",))) == {"failures": {}}
    (session,) = of(toy, "publish").sessions().values()
    assert unfinished(session) == []
    answer = read_answer(of(toy, "publish"))
    assert answer["failures"] == {} and "| Positions | 4 |" in answer["text"]
    assert "the command" in (tmp_path / "runs" / "toy" / "report.md").read_text()


def test_a_loss_that_is_not_a_number_is_reported_as_the_runner_does(toy, tmp_path):
    bad = ["+method@methods.poisoned=positions", "methods.poisoned.poison_from=12", "only=[poisoned]"]
    read_answer(of(toy, "judge", *bad))
    assert read_answer(of(toy, "cells", *bad, cells=("poisoned/seed0",))) == {"failures": {}}
    answer = read_answer(of(toy, "publish", *bad))
    assert list(answer["failures"]) == ["poisoned/seed0"] and "the loss is nan at step 13" in str(answer["failures"])


def test_bad_input_in_a_job_is_one_line(toy):
    answer = read_answer(of(toy, "cells", "study.nfe=[0]"))
    assert answer["failures"]["cells"].startswith("study.nfe=0: a budget is a positive number")


def read_answer(job: Job) -> dict:
    import json

    return json.loads(job())


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
    said = call(["run", *toy, "+method@methods.liar=liar"])
    logs = "".join(path.read_text() for path in box.glob("*.log"))
    assert said.code == 1, said.err + logs
    wrong = "SamplerError: Liar reports 2 calls at NFE 2; its networks saw 3"
    assert said.err.splitlines()[-1] == f"failed: liar/seed0: {wrong}"
    assert f"liar/seed0: {wrong} (" in said.err and "publish: liar/seed0" not in said.err
    assert not (tmp_path / "runs" / "toy" / "report.md").exists()

    said = call(["run", *toy])
    assert said.code == 0, said.err
    assert "| Positions | 4 |" in said.out and f"report   {tmp_path / 'runs' / 'toy' / 'report.md'}" in said.out
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
    assert names == {"submitit.core.utils.DelayedSubmission", "harness.cluster.jobs.Job"}
    assert {job.action for job in jobs} == {"judge", "cells", "publish"}
    for job in jobs:
        flat = [word for value in vars(job).values() for word in (value if isinstance(value, tuple) else (value,))]
        assert all(type(word) is str for word in flat)
        assert type(job.checkpoint()).__name__ == "DelayedSubmission" and job.checkpoint().function is job


def test_a_login_of_the_storage_is_in_no_file(toy, tmp_path, box, monkeypatch):
    monkeypatch.setenv("HARNESS_PRIVATE_ARGUMENTS", "[]")
    url = "postgresql://me:geheim@db/x"
    arguments = [
        "study=exact",
        "only_tasks=[binsaw]",
        "tune=latent",
        *toy[3:],
        f"tune.storage={url}",
        "scale.length=16",
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
