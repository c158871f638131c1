"""Lightning files: weights alone are read, averaged ones first, and nothing that is in the file runs."""

import json
import os
import subprocess

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from baselines import convert
from baselines.checkpoints import MaskedCheckpoint, MaskedCheckpointOptions
from tests.kit.checkpoint_kit import COND, DEPTH, HEADS, LENGTH, WIDTH, random_tensors
from tests.kit.toys import one_thread, tiny_problem  # noqa: F401

V = 7


class Stranger:
    """A class that the reader does not know, as a tokenizer's is."""

    def __init__(self) -> None:
        self.inner = {"a": 1}


class Evil:
    """Unpacked as usual, it makes a file."""

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return subprocess.check_call, (["touch", str(self.mark)],)


class Blocked(Evil):
    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def lightning(path, ema: bool = True, more: dict | None = None, **changes) -> tuple[dict, dict]:
    """Writes a file as Lightning does; returns the last and the averaged tensors."""
    last, averaged = random_tensors(V + 1, 0), random_tensors(V + 1, 1)
    content = {
        "state_dict": {f"backbone.{name}": tensor for name, tensor in last.items()} | {"teacher.x": torch.ones(1)},
        "hyper_parameters": {"config": OmegaConf.create({"model": {"length": 8}}), "tokenizer": Stranger()},
        "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 3}}}},
    }
    if ema:
        shadow = [tensor for name, tensor in averaged.items() if "inv_freq" not in name]
        content["ema"] = {"decay": 0.9999, "num_updates": 5, "shadow_params": shadow}
    torch.save(content | (more or {}) | changes, path)
    return last, averaged


def call(*words: str) -> int:
    return convert.main(list(words))


@pytest.mark.parametrize("ema", [True, False])
def test_a_lightning_file_becomes_a_folder_that_is_read(tmp_path, ema, capsys):
    last, averaged = lightning(tmp_path / "x.ckpt")
    to = tmp_path / "made"
    words = [f"from={tmp_path / 'x.ckpt'}", f"to={to}", f"length={LENGTH}", "time=false"]
    assert call(*words, *([] if ema else ["ema=false"])) == 0
    assert ("averaged (ema)" if ema else "last") in capsys.readouterr().out
    expected = {f"backbone.{name}": t for name, t in (averaged if ema else last).items()}
    found = load_file(to / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    assert json.loads((to / "config.json").read_text()) == {
        "vocab_size": V + 1, "hidden_dim": WIDTH, "n_blocks": DEPTH, "n_heads": HEADS, "cond_dim": COND,
        "model_length": LENGTH, "time_conditioning": False,
    }  # fmt: skip
    method = MaskedCheckpoint(tiny_problem(V, LENGTH), MaskedCheckpointOptions(path=str(to)))
    name = "blocks.1.mlp.0.weight"
    assert torch.equal(method.network.state_dict()[name], (averaged if ema else last)[name])


def test_without_averaged_weights_the_last_ones_are_named(tmp_path, capsys):
    lightning(tmp_path / "x.ckpt", ema=False)
    assert call(f"from={tmp_path / 'x.ckpt'}", f"to={tmp_path / 'made'}", "length=8", "time=true") == 0
    said = capsys.readouterr()
    assert "(last," in said.out and "has no averaged weights" in said.err


@pytest.mark.parametrize("kind", [Evil, Blocked])
def test_nothing_in_the_file_runs(tmp_path, kind):
    mark = tmp_path / "mark"
    lightning(tmp_path / "x.ckpt", more={"callbacks": kind(mark)})
    code = call(f"from={tmp_path / 'x.ckpt'}", f"to={tmp_path / 'made'}", "length=8", "time=false")
    assert not mark.exists() and code == (0 if kind is Evil else 2)


def test_bad_files_and_arguments_are_said_in_one_line(tmp_path, capsys):
    source = tmp_path / "x.ckpt"

    def said(*more: str) -> str:
        words = {"from": str(source), "to": str(tmp_path / "made"), "length": "8", "time": "false"}
        words |= dict(word.split("=") for word in more)
        assert call(*(f"{key}={value}" for key, value in words.items() if value)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        return lines[-1]

    assert "cannot be read as weights alone" in said()
    source.write_bytes(b"no checkpoint")
    assert "cannot be read as weights alone" in said()
    torch.save({"a": torch.ones(1)}, source)
    assert "has no state_dict" in said()
    shadow = [torch.ones(2)]
    lightning(source, more={"ema": {"shadow_params": shadow}})
    assert "its 1 averaged tensors are not in the order of its 30 parameters; use ema=false" in said()
    assert "length=long: is not a whole number" in said("length=long")
    assert "time=maybe: is not true or false" in said("time=maybe") and "length= is missing" in said("length=")
    assert not (tmp_path / "made").exists()
