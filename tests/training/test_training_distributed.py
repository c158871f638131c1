"""Several processes that train one model: the same curves as one process, what is refused, and what a kill leaves."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file

from harness.config.load import load
from harness.errors import UserError
from harness.jobs.launch import RanksEnded, launch
from harness.store import read_jsonl
from harness.study import ranks, steps
from harness.study.cells import make_cells
from harness.study.fit import fit
from harness.study.session import Session
from harness.training import distributed
from harness.training.loop import train
from tests.kit.rank_kit import Run, build
from tests.kit.study_kit import command, write_corpus
from tests.kit.toys import one_thread  # noqa: F401

ROOT = Path(__file__).parents[2]
RUNS = [Run("mdlm", 2), Run("mdlm", 4), Run("fuji", 2), Run("seq", 2), Run("bad", 2), Run("mdlm", 2, "muon")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, list[dict]]:
    """All toys trained by two processes, and what they said."""
    folder, said = tmp_path_factory.mktemp("pair"), []
    spec = {"do": "train", "folder": str(folder), "runs": [vars(run) for run in RUNS]}
    (folder / "spec.json").write_text(json.dumps(spec))
    launch("tests.kit.rank_kit", str(folder / "spec.json"), 2, said.append, folder / "log")
    assert not (folder / "log").exists(), "a log stays where something went wrong"
    return folder, said


def curves(folder: Path) -> list[dict[str, float]]:
    """The lines' values with their step, without the speed, which differs from run to run."""
    lines = [line["values"] | {"step": line["step"]} for line in read_jsonl(folder / "curves.jsonl")]
    return [{k: v for k, v in line.items() if k != "train/tokens_per_second"} for line in lines]


def alone(run: Run, folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The same training by this process."""
    torch.set_num_threads(1)
    method = build(run.name)
    train(run.job(method, folder))
    return dict(method.state_dict()), curves(folder / run.label)


def together(run: Run, pair: tuple[Path, list[dict]]) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, float]]]:
    folder = pair[0] / run.label
    return [load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1)], curves(folder)


# ---- the same curves --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("run", [RUNS[0], RUNS[-1]], ids=lambda run: run.label)
def test_two_processes_with_a_part_each_give_the_bits_of_one_with_two_parts(pair, tmp_path, run):
    states, curve = together(run, pair)
    state, expected = alone(run, tmp_path)
    assert curve == expected and [point["step"] for point in curve] == [10, 20, 30, 40]
    assert all(torch.equal(value, state[key]) for held in states for key, value in held.items())


def test_two_processes_with_two_parts_each_give_the_curve_of_one_with_four(pair, tmp_path):
    states, curve = together(RUNS[1], pair)
    state, expected = alone(RUNS[1], tmp_path)
    for point, other in zip(curve, expected, strict=True):
        assert point == pytest.approx(other, rel=1e-5)
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
        torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5)
    # The control: another number of parts is another draw of the noise, and shows.
    assert (
        abs(curve[-1]["train/nelbo_nats_per_token"] - curves(pair[0] / RUNS[0].label)[-1]["train/nelbo_nats_per_token"])
        > 1e-3
    )


def test_running_statistics_and_stages_are_those_of_one_process(pair, tmp_path):
    """FUJI normalises the encoder's features with running statistics, freezes it half-way, and validates by them."""
    states, curve = together(RUNS[2], pair)
    state, expected = alone(RUNS[2], tmp_path)
    for point, other in zip(curve, expected, strict=True):
        assert ("valid/latent_std" in other) == (other["step"] in (20, 40)), "half-way and at the end"
        for key in ("train/token_nats_per_token", "valid/bound_nats_per_token", "valid/latent_std"):
            if key == "valid/latent_std" and key not in other:
                continue
            assert point[key] == pytest.approx(other[key], rel=1e-4), (point["step"], key)
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
        torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5)


def test_a_bank_of_latents_is_equal_in_law_only_and_what_does_not_read_it_is_equal(pair, tmp_path):
    states, curve = together(RUNS[3], pair)
    state, expected = alone(RUNS[3], tmp_path)
    before = [(p, o) for p, o in zip(curve, expected, strict=True) if p["step"] < 20]  # of the stage of the tokens
    assert before and all(
        p["valid/bound/tokens"] == pytest.approx(o["valid/bound/tokens"], rel=1e-4) for p, o in before
    )
    for key, value in states[0].items():
        if not key.startswith("bank."):
            assert torch.equal(value, states[1][key]), f"{key} differs between the processes"
        if key.startswith(("encoder.", "decoder.")):
            torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-5)
    assert not torch.equal(states[0]["prior.latent_in.weight"], state["prior.latent_in.weight"])
    assert curve[-1]["valid/bound/latent"] == pytest.approx(expected[-1]["valid/bound/latent"], rel=0.3)


def test_a_loss_that_is_not_a_number_in_one_process_stops_all_in_the_same_line(pair, tmp_path):
    _, said = pair
    expected = "the loss is nan at step 3; a smaller scale.lr (now 0.003) may help"
    assert sorted((m["rank"], m["diverged"]) for m in said) == [(0, expected), (1, expected)]


# ---- a study's cell ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("cell")
    corpus = write_corpus(root / "words.txt", lines=300)
    more = ("only=[mdlm]", "train.accumulate=2", "train.checkpoint_seconds=0", "scale.steps=120", "judge.steps=1")
    return command(corpus, root / "runs", root / "cache", *more)


def cell_of(arguments: list[str], *more: str):
    session = Session(load([*arguments, *more]).tree)
    return session, make_cells(session)[0]


def descendants() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "harness" in " ".join(p.cmdline())]


def test_a_cell_survives_the_end_of_its_command_and_of_a_process_with_the_same_weights(arguments):
    session, cell = cell_of(arguments)
    fit(session, cell.weights, session.build("mdlm"), lambda *_: None)
    session, both = cell_of(arguments, "compute.processes=2")
    assert both.key != cell.key, "another number of processes is another cell"
    shown: list[int] = []
    killed: list[int] = []

    class Pruned(Exception):
        pass

    def stop(method, step: int, values: dict[str, float]) -> None:
        assert step == 40 and math.isfinite(values["valid/bound_nats_per_token"])
        kept = load_bytes(both.weights.checkpoint.read_bytes())  # in one step: it is replaced meanwhile
        assert not torch.equal(method.network.head.weight, torch.zeros_like(method.network.head.weight))
        assert kept.keys() >= {"ema/network.head.weight"}
        raise Pruned

    with pytest.raises(Pruned):
        steps.train_weights(session, both.weights, lambda *_: None, stop)
    assert not descendants(), "they end with the command that started them"
    assert not both.weights.model.exists()

    def progress(text: str, done: int, total: int) -> None:
        shown.append(done)
        if done >= 80 and not killed:
            victim = next(
                p for p in descendants() if "harness.study.ranks" in p.cmdline() and "LOCAL_RANK" in p.environ()
            )
            assert "--nnodes=1" not in victim.cmdline()
            killed.append(victim.pid)
            victim.kill()

    steps.train_weights(session, both.weights, progress)
    assert killed and shown[0] >= 40, "it went on from the checkpoint"
    assert (
        not descendants()
        and not (both.weights.folder / "ranks.log").exists()
        and not (both.weights.folder / "ranks.json").exists()
    )
    one, two = load_file(cell.weights.model), load_file(both.weights.model)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert curves(cell.weights.folder) == curves(both.weights.folder)
    assert not list(both.weights.folder.glob("validation-*"))


def test_reports_of_processes_that_speak_at_once_arrive_whole_and_in_order(tmp_path):
    """They share one pipe, and the launcher starts them unbuffered."""
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"do": "chatter", "times": 400}))
    heard: dict[int, list[int]] = {0: [], 1: []}
    launch("tests.kit.rank_kit", str(spec), 2, lambda m: heard[m["rank"]].append(m["i"]), tmp_path / "log")
    assert heard == {0: list(range(400)), 1: list(range(400))}


def test_processes_die_with_the_worker_that_started_them(tmp_path):
    """SIGKILL leaves the worker no time to say goodbye."""
    (tmp_path / "spec.json").write_text(json.dumps({"do": "wait"}))
    code = (
        "import pathlib, sys; from harness.jobs.launch import launch; "
        "launch('tests.kit.rank_kit', sys.argv[1], 2, lambda m: print(m, flush=True), pathlib.Path(sys.argv[1] + '.log'))"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "spec.json")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert [worker.stdout.readline() for _ in range(2)] == ["{'waits': True}\n"] * 2
    family = psutil.Process(worker.pid).children(recursive=True)
    assert len(family) >= 3
    worker.kill()
    worker.wait()
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_a_process_that_ends_twice_is_reported_with_the_end_of_its_log(tmp_path):
    began = time.monotonic()
    with pytest.raises(RanksEnded, match="no_such_module_here.*\n(.*\n)*one of 2 processes that work together ended"):
        launch("no_such_module_here", "x", 2, lambda message: None, tmp_path / "log")
    assert (tmp_path / "log").exists() and time.monotonic() - began < 60


# ---- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("processes", "parts", "line"),
    [
        (2, 1, "must divide train.accumulate = 1, the parts of a batch; use train.accumulate=2 or compute.processes=1"),
        (4, 6, "must divide train.accumulate = 6, the parts of a batch; use train.accumulate=4 or compute.processes=3"),
        (0, 1, "must be 1 or more; the nearest is 1"),
    ],
)
def test_processes_that_do_not_share_a_batch_evenly_are_refused(arguments, processes, parts, line):
    given = [a for a in arguments if not a.startswith("train.accumulate")]
    with pytest.raises(UserError) as caught:
        load([*given, "scale.batch=24", f"compute.processes={processes}", f"train.accumulate={parts}"])
    assert str(caught.value) == f"compute.processes={processes}: {line}"


def test_more_processes_than_gpus_and_one_named_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    distributed.check_processes(2, "cuda")
    distributed.check_processes(8, "cpu")
    with pytest.raises(UserError, match=r"^compute.processes=4: each needs a GPU and this machine has 2; use compute"):
        distributed.check_processes(4, "cuda")
    with pytest.raises(
        UserError, match=r"^compute.processes=2: compute.device=cuda:1 is one device; use compute.device=cuda$"
    ):
        distributed.check_processes(2, "cuda:1")


def test_gpus_are_shared_out_among_workers_and_a_restriction_is_kept(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert distributed.gpu_groups(1) == ["0", "1", "2", "3", "4"]
    assert distributed.gpu_groups(2) == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,6,7,9")
    assert distributed.gpu_groups(2) == ["3,5", "6,7"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed.gpu_groups(1) == []


def test_torchrun_by_hand_must_start_as_many_as_were_asked_for(arguments, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert ranks.main(arguments) == 2
    assert capsys.readouterr().err == "error: there is no group of processes to join: start this with torchrun\n"
    monkeypatch.setattr(distributed, "join", lambda *_: distributed.Group(0, 2))
    assert ranks.main(arguments) == 2
    assert capsys.readouterr().err == "error: compute.processes=1: torchrun started 2; use compute.processes=2\n"
