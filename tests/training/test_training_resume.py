"""Killed runs go on to the same bits, and checkpoints that cannot be used are refused in one line."""

import itertools

import pytest
import torch
from safetensors import safe_open

from baselines.mdlm import MDLM, MDLMOptions
from harness.errors import UserError
from harness.interface import Method
from harness.nn.transformer import Block
from harness.store import append_jsonl, read_jsonl
from harness.training import checkpoint, loop
from harness.training.ema import EMA
from harness.training.loop import train
from lddm.fuji import FUJI, FUJIOptions
from lddm.seq import SEQ, SEQOptions
from tests.kit.toys import generator_of, job_of, one_thread, scramble, tiny_problem, token_data  # noqa: F401

PROBLEM = tiny_problem()
SPEED = "train/tokens_per_second"
SMALL = {"slots": 2, "dims": 2, "encoder_depth": 1}


class Tied(MDLM):
    """Its network has two names, and so have gains in it."""

    def __init__(self, problem, options: MDLMOptions) -> None:
        super().__init__(problem, options)
        self.again = self.network
        for block in self.network.modules():
            if isinstance(block, Block):
                block.norm_m = block.norm_a


BUILDERS = {
    "tied": lambda: Tied(PROBLEM, MDLMOptions()),
    "mdlm": lambda: MDLM(PROBLEM, MDLMOptions()),
    # A half-way boundary falls on a multiple of 10, where progress is reported and a kill can be placed.
    "fuji": lambda: FUJI(PROBLEM, FUJIOptions(**SMALL, encoder_share=0.5)),
    "seq": lambda: SEQ(PROBLEM, SEQOptions(**SMALL, prior_depth=1)),
    "seq-2": lambda: SEQ(PROBLEM, SEQOptions(**SMALL, prior_depth=1, stages=2, prior_share=0.5)),
}


def build(name: str, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return BUILDERS[name]()


class Killed(Exception):
    pass


def killed_at(step: int):
    def progress(text: str, done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


def curves(folder) -> list[tuple[int, dict]]:
    """Lines as (step, values) but for the speed, which differs from run to run."""
    lines = read_jsonl(folder / "curves.jsonl")
    return [(line["step"], {k: v for k, v in line["values"].items() if k != SPEED}) for line in lines]


# ---- killed and resumed ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize(
    ("kills", "every", "optimizer"),
    [((10, 20, 30), -1.0, "adamw"), ((30,), -1.0, "adamw"), ((20,), 1e9, "adamw"), ((10, 20, 30), -1.0, "muon")],
)
def test_a_killed_run_ends_with_the_same_weights_and_curves(name, kills, every, optimizer, tmp_path):
    """Kills inside either stage and at the end of the first; `every` 1e9 seconds: no checkpoint was written."""
    whole, recipe = build(name), {"checkpoint_seconds": every, "optimizer": optimizer}
    train(job_of(whole, tmp_path / "whole", optimizer=optimizer))

    folder = tmp_path / "killed"
    for kill in kills:
        with pytest.raises(Killed):
            train(job_of(build(name), folder, progress=killed_at(kill), **recipe))
        assert (folder / "train.safetensors").exists() == (every < 0)
    resumed, seen = build(name), []
    train(job_of(resumed, folder, progress=lambda text, done, total: seen.append(done), **recipe))
    if every < 0:
        assert min(seen) > kills[-1] - 10 + 1, "it went on from the checkpoint, not from the start"

    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert curves(folder) == curves(tmp_path / "whole")
    assert [step for step, _ in curves(folder)] == [10, 20, 30, 40]


def test_another_seed_of_weights_gives_other_weights(tmp_path):
    """The control of the test above: equality there is not for want of training."""
    before, first, second = build("mdlm"), build("mdlm"), build("mdlm", seed=1)
    train(job_of(first, tmp_path / "a"))
    train(job_of(second, tmp_path / "b"))
    pairs = zip(before.parameters(), first.parameters(), second.parameters(), strict=True)
    assert all(not torch.equal(a, b) and not torch.equal(b, c) for a, b, c in pairs)


def test_seconds_of_all_parts_of_a_run_are_added(tmp_path):
    with pytest.raises(Killed):
        train(job_of(build("mdlm"), tmp_path, progress=killed_at(20), checkpoint_seconds=-1.0))
    tensors, meta = checkpoint.load_tensors(tmp_path / "train.safetensors")
    checkpoint.save_tensors(tmp_path / "train.safetensors", tensors, meta | {"seconds": 1000.0})
    assert 1000.0 < train(job_of(build("mdlm"), tmp_path))["train_seconds"] < 1100.0


# ---- checkpoints ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_checkpoints_take_no_more_than_their_share_of_the_time(share, tmp_path, monkeypatch):
    """A clock that counts: a step takes 1 second of it, a checkpoint 10."""
    clock, saved = [0.0], []

    def save(*_: object) -> None:
        saved.append(clock[0])
        clock[0] += 10.0

    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loop.checkpoint, "save_tensors", save)
    monkeypatch.setattr(loop.Optimizer, "step", lambda self: clock.__setitem__(0, clock[0] + 1.0))
    train(job_of(build("mdlm"), tmp_path, steps=200, checkpoint_seconds=0.5, checkpoint_share=share))
    gaps = {b - a - 10.0 for a, b in itertools.pairwise(saved)}
    assert saved[0] == 1.0 and gaps == {31.0 if share < 1 else 1.0}, "three times as long as it took, and a step"


@pytest.fixture
def interrupted(tmp_path):
    with pytest.raises(Killed):
        train(job_of(build("mdlm"), tmp_path, progress=killed_at(20), checkpoint_seconds=-1.0))
    return tmp_path


@pytest.mark.parametrize("damage", ["empty", "short", "half", "garbage", "header"])
def test_a_damaged_checkpoint_is_named_in_one_line(interrupted, damage):
    path = interrupted / "train.safetensors"
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "short": content[:5],
            "half": content[: len(content) // 2],
            "garbage": b"not a checkpoint" * 100,
            "header": content[:8] + b"#" + content[9:],
        }[damage]
    )
    refused(lambda: train(job_of(build("mdlm"), interrupted)), path)


def test_a_foreign_safetensors_file_is_named_in_one_line(interrupted):
    from safetensors.torch import save_file

    path = interrupted / "train.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    refused(lambda: train(job_of(build("mdlm"), interrupted)), path)


def refused(run, path) -> None:
    with pytest.raises(UserError) as caught:
        run()
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    assert "delete this file" in text


@pytest.mark.parametrize(
    "other",
    [
        lambda: MDLM(tiny_problem(width=32), MDLMOptions()),
        lambda: MDLM(tiny_problem(depth=2), MDLMOptions()),
        lambda: MDLM(tiny_problem(vocab_size=9), MDLMOptions()),
        lambda: MDLM(PROBLEM, MDLMOptions(time_conditioning=True)),
        lambda: build("fuji"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_loaded(interrupted, other):
    method, data = other(), token_data(PROBLEM)
    before = [p.detach().clone() for p in method.parameters()]
    refused(lambda: train(job_of(method, interrupted, data=data)), interrupted / "train.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    import errno
    import os

    path = tmp_path / "a.safetensors"
    checkpoint.save_tensors(path, {"w": torch.ones(2)}, {"step": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="no space left"):
        checkpoint.save_tensors(path, {"w": torch.zeros(2)}, {"step": 2})
    tensors, meta = checkpoint.load_tensors(path)
    assert tensors["w"].tolist() == [1.0, 1.0] and meta == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_restored_optimizer_state_lies_where_its_parameters_do(interrupted):
    """The fused AdamW reads its step counters on the parameters' device; `meta` stands for an accelerator here."""
    path = interrupted / "train.safetensors"
    tensors, _ = checkpoint.load_tensors(path)
    method = build("mdlm").to("meta")
    optimizer = torch.optim.AdamW(method.parameters())
    checkpoint.restore_training_state(tensors, method, EMA(method, 0.9).shadow, optimizer, path)
    assert len(optimizer.state) == len(list(method.parameters()))
    kinds = {(name, value.device.type) for moments in optimizer.state.values() for name, value in moments.items()}
    assert kinds == {("step", "meta"), ("exp_avg", "meta"), ("exp_avg_sq", "meta")}


def test_a_torn_line_of_the_curves_is_written_again(tmp_path):
    whole = build("mdlm")
    train(job_of(whole, tmp_path / "whole"))
    folder = tmp_path / "torn"
    with pytest.raises(Killed):
        train(job_of(build("mdlm"), folder, progress=killed_at(20), checkpoint_seconds=-1.0))
    path = folder / "curves.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert [step for step, _ in curves(folder)] == [10]
    train(job_of(build("mdlm"), folder))
    # The line of step 20 is lost if the checkpoint is of a later step: no value is ever made up for it.
    values = dict(curves(folder))
    assert {10, 30, 40} <= set(values)
    assert all(values[step] == dict(curves(tmp_path / "whole"))[step] for step in values)
    append_jsonl(path, {"step": 50, "values": {}})
    assert curves(folder)[-1][0] == 50


# ---- tensors with several names -------------------------------------------------------------------------------------
def test_a_tensor_of_several_names_is_written_once_and_read_under_all(tmp_path):
    path, base = tmp_path / "a.safetensors", torch.arange(12.0).view(3, 4)
    given = {"a": base, "b": base, "rows": base[:2], "turned": base.T, "flat": base.view(12), "none": torch.zeros(0)}
    checkpoint.save_tensors(path, given, {"step": 3})
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(given) - {"b"}
    read, meta = checkpoint.load_tensors(path)
    assert meta == {"step": 3} and read["a"] is read["b"]
    assert read.keys() == given.keys() and all(torch.equal(read[name], given[name]) for name in given)


def test_tied_weights_come_back_tied(tmp_path):
    method, other = build("tied"), build("tied", seed=1)
    checkpoint.save_tensors(tmp_path / "model.safetensors", dict(method.state_dict()), {})
    checkpoint.load_model(other, checkpoint.load_tensors(tmp_path / "model.safetensors")[0], tmp_path)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in method.state_dict().items())
    assert len(list(other.parameters())) == len(list(method.parameters())) < len(list(build("mdlm").parameters()))
    checkpoint.save_tensors(tmp_path / "plain.safetensors", dict(build("mdlm").state_dict()), {})
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("model", "plain")]
    assert sizes[0] < 1.1 * sizes[1], "what has two names is not there twice"
