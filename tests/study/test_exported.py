"""A trained model by itself: what is exported draws the same tokens, without the study and its data."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open

import harness
from baselines.sdtt import SDTT, SDTTOptions
from harness import export, sample
from harness.errors import UserError
from harness.study import exported
from harness.study.model import Model
from harness.study.session import MODEL
from harness.training import checkpoint
from tests.kit.hub_server import HubStandIn
from tests.kit.toys import tiny_problem
from tests.study.test_score import said

V, L = 5, 8


@pytest.mark.parametrize(
    ("method", "label", "nfe"), [("mdlm", "", 4), ("seq_discrete", "codes", 4), ("fuji", "path", 2)]
)
def test_an_exported_model_draws_the_same_without_study_and_data(finished, tmp_path, monkeypatch, method, label, nfe):
    model = harness.load(finished.folder, method)
    model.export(tmp_path / "mine")
    expected = model.draw_ids(24, nfe)
    monkeypatch.setattr("harness.study.model.Session", None)  # nothing of the study is looked at
    alone = harness.load(tmp_path / "mine", label)
    assert not isinstance(alone, Model) and np.array_equal(alone.draw_ids(24, nfe), expected)
    assert alone.draw(3, nfe) == [model.decode(row) for row in alone.draw_ids(3, nfe).tolist()]
    x_NL = expected[:4]
    assert np.array_equal(alone.bound(x_NL), model.bound(x_NL))


def test_a_models_file_says_all_that_it_needs(finished, tmp_path):
    said_code = export.main([f"run={finished.folder}", "method=mdlm", f"to={tmp_path / 'mine'}"])
    assert said_code == 0
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    weights = next((finished.folder / "weights").glob("mdlm-*/model.safetensors"))
    own = checkpoint.load_tensors(weights)[1]  # the study's file knows it as well
    for key in ("vocab_size", "length", "shape", "tokenizer", "config", "method", "seed"):
        assert own[key] == config[key]
    assert (config["length"], config["vocab_size"], config["shape"]["width"]) == (32, 96, 32)
    with safe_open(tmp_path / "mine" / "model.safetensors", "pt") as file:  # plain safetensors, for anybody
        assert "network.embed.weight" in file.keys()  # noqa: SIM118 - not a mapping
    done = said(sample.main, f"run={tmp_path / 'mine'}", "nfe=4", "n=24")
    assert done.out == (finished.folder / "samples" / "mdlm-ancestral-seed0-nfe0004-T1.jsonl").read_text()


def test_a_sampler_that_was_settled_on_text_is_not_drawn_from_without_it(tmp_path):
    """Else an exported SDTT would draw with its last student, and not say so."""
    method = SDTT(tiny_problem(V, L), SDTTOptions())
    samplers = {"chosen": {"_target_": "baselines.samplers.chosen_round.ChosenRound"}}
    samplers["last"] = {"_target_": "baselines.samplers.ancestral.Ancestral"}
    described = {"kind": MODEL, "vocab_size": V, "length": L, "shape": dataclasses.asdict(method.problem.shape)}
    described |= {"data": "toys", "tokenizer": None, "tokenizer_text": "", "sampling_seed": 0, "seed": 0, "chunk": 4}
    described |= {"precision": "float32", "eval_tokens": 64}
    described["config"] = {"_target_": "baselines.sdtt.SDTT", "samplers": samplers}
    checkpoint.save_tensors(tmp_path / "weights.safetensors", method.state_dict(), {"made": {}})
    exported.export(tmp_path / "weights.safetensors", described, method.title, tmp_path / "mine")
    with pytest.raises(UserError, match="chosen: draws by what validation text chose, .* use method=last"):
        harness.load(tmp_path / "mine")
    assert harness.load(tmp_path / "mine", "last").draw_ids(3, 2).shape == (3, L)


def test_push_to_hub_uploads_what_is_loaded_again(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with HubStandIn(tmp_path / "there") as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
        model = harness.load(finished.folder, "mdlm")
        assert hub.address in model.push_to_hub("me/model")
        assert hub.made[0]["name"] == "model" and hub.made[0]["organization"] == "me"
    assert np.array_equal(harness.load(tmp_path / "there").draw_ids(5, 2), model.draw_ids(5, 2))


def test_what_cannot_be_exported_or_loaded_is_said_in_one_line(finished, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unigram has no weights that were trained here"):
        harness.load(finished.folder, "unigram").export(tmp_path / "no")
    harness.load(finished.folder, "mdlm").export(tmp_path / "mine")
    with pytest.raises(UserError, match="did you mean 'ancestral'"):
        harness.load(tmp_path / "mine", "ancestrl")
    done = said(export.main, f"run={tmp_path / 'mine'}", "method=ancestral", f"to={tmp_path / 'again'}")
    assert done.code == 2 and "is an exported model already" in done.error
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    done = said(export.main, f"run={finished.folder}", "method=mdlm", f"to={tmp_path / 'x'}", "hub=me/model")
    assert done.code == 2 and "hf auth login" in done.error and "Traceback" not in done.err
    checkpoint.save_tensors(tmp_path / "x" / "model.safetensors", {}, {})
    with pytest.raises(UserError, match="is no model that was exported"):
        harness.load(tmp_path / "x")
