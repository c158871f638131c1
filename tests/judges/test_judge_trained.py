import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UserError
from harness.judges import fit as fit_module
from harness.judges import trained as trained_module
from harness.judges.corpus import END_OF_TEXT_ID, training_blocks
from harness.judges.pretrained import PretrainedJudge, PretrainedJudgeOptions
from harness.judges.scoring import pooled_ppl
from harness.judges.trained import TrainedJudge, TrainedJudgeOptions
from harness.store import read_jsonl
from harness.training import checkpoint
from harness.training.optimizer import rate_at
from tests.kit.hub_fixtures import EOS, WORDS, altered, word_data

DATA = word_data()

# ---- trained --------------------------------------------------------------------------------------------------------
TINY = TrainedJudgeOptions(
    vocab=320, width=32, depth=1, heads=2, context=32, steps=60, batch=8, lr=1e-2, warmup=5, checkpoint_every=20
)


def train(cache, **options) -> TrainedJudge:
    judge = TrainedJudge(dataclasses.replace(TINY, **options))
    judge.prepare(DATA, cache, "cpu", lambda line: None)
    return judge


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[TrainedJudge, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return train(cache), cache


def test_the_trained_judge_learns(trained):
    judge, _ = trained
    assert judge.trained_steps == TINY.steps
    assert len(judge.reader.tokenize([f" {WORDS[0]} {WORDS[1]}"])[0]) == 2
    assert 8 * 0.9 < judge.heldout_ppl < 8 * 1.15  # words are drawn uniformly from 8: nobody can do better
    assert pooled_ppl(judge.score([" zqj xkw qqz vvk"])) > 100
    assert {p.dtype for p in judge.reader.model.parameters()} == {torch.float32}


def test_muon_may_move_the_matrices(trained, tmp_path):
    judge = train(tmp_path, muon_lr=0.02)
    assert judge.identity != trained[0].identity and 8 * 0.9 < judge.heldout_ppl < 8 * 1.15


def test_a_short_training_reads_no_more_text_than_it_can_see(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trained_module, "train_tokenizer", lambda data, vocab, most: asked.append(most) or 1 / 0)
    monkeypatch.setattr(trained_module, "_LEAST_CHARS", 1000)
    for steps, most in ((1, 8 * 8 * 32), (1000, TINY.tokenizer_chars)):
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / str(steps), steps=steps)
        assert asked.pop() == most


def test_the_cache_holds_it_and_nothing_is_trained_again(trained, monkeypatch):
    judge, cache = trained

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(trained_module, "fit", refuse)
    again = train(cache, batch_tokens=100, heldout_rows=512)
    assert again.trained_steps == 0 and again.identity == judge.identity
    assert again.heldout_ppl == pytest.approx(judge.heldout_ppl, rel=1e-5)
    with pytest.raises(AssertionError, match="trained again"):
        train(cache, seed=1)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(trained, tmp_path, monkeypatch):
    judge, cache = trained
    keep, steps = checkpoint.save_tensors, []

    def killed(path, tensors, meta):
        keep(path, tensors, meta)
        if meta["step"] == 40:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_tensors", killed)
        train(tmp_path)
    windows = fit_module.windows
    monkeypatch.setattr(fit_module, "windows", lambda *a: steps.append(a[2]) or windows(*a))
    resumed = train(tmp_path)
    assert steps == list(range(40, 60))
    assert resumed.identity == judge.identity
    (name,) = (p.name for p in (tmp_path / "judges").iterdir())  # nothing is left over
    ours, theirs = (load_file(c / "judges" / name / "model.safetensors") for c in (cache, tmp_path))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    curves = [read_jsonl(c / "judges" / name / "curves.jsonl") for c in (cache, tmp_path)]
    assert [line["step"] for line in curves[0]] == [50, 60]
    for whole, other in zip(*curves, strict=True):
        del whole["values"]["train/tokens_per_second"], other["values"]["train/tokens_per_second"]
        assert whole["values"] == other["values"] and whole["values"]["train/loss"] > 0


def test_damaged_checkpoints_are_not_trusted(trained, tmp_path, monkeypatch):
    keep = checkpoint.save_tensors

    def killed(path, tensors, meta):
        keep(path, tensors, meta)
        path.write_bytes(path.read_bytes()[:-100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save_tensors", killed)
        train(tmp_path)
    assert train(tmp_path).identity == trained[0].identity


def test_a_judge_that_was_tampered_with_is_refused(tmp_path):
    judge = train(tmp_path, steps=2)
    (folder,) = (tmp_path / "judges").iterdir()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not the one that was trained"):
        train(tmp_path, steps=2)
    (folder / "judge.json").write_text("{")
    with pytest.raises(UserError, match="delete that folder"):
        train(tmp_path, steps=2)
    assert judge.identity.startswith("trained-")


def test_a_judge_whose_configuration_or_tokenizer_was_altered_is_refused(tmp_path):
    train(tmp_path, steps=2)
    (folder,) = (tmp_path / "judges").iterdir()
    for name, changes in (("config.json", {"rms_norm_eps": 1.0}), ("tokenizer.json", {"truncation": None, "more": 1})):
        before = (folder / name).read_bytes()
        altered(str(folder), name, **changes)
        with pytest.raises(UserError, match="not the one that was trained|cannot be read"):
            train(tmp_path, steps=2)
        (folder / name).write_bytes(before)
    train(tmp_path, steps=2)


def test_another_seed_is_another_judge_and_the_record_says_what_it_is(trained, tmp_path):
    other = train(tmp_path, seed=1, steps=3)
    (folder,) = (tmp_path / "judges").iterdir()
    record = json.loads((folder / "judge.json").read_text())
    assert other.identity != trained[0].identity
    assert record["options"]["seed"] == 1 and record["training_tokens"] == 3 * 8 * 32
    assert record["parameters"] == sum(p.numel() for p in other.reader.model.parameters())
    # It is a folder of the hub's kind: the pretrained judge reads it and finds the same numbers.
    texts = ["river stone cloud", "winter", f"a{EOS}b"]
    as_pretrained = PretrainedJudge(PretrainedJudgeOptions(model=str(folder), context=32))
    as_pretrained.prepare(DATA, tmp_path, "cpu", print)
    assert as_pretrained.score(texts).nll_N == pytest.approx(other.score(texts).nll_N, rel=1e-5)


def test_training_text_covers_the_split_and_reads_on_across_rows(monkeypatch):
    whole = "".join(training_blocks(DATA, 10**9))
    assert whole == bytes(DATA.splits["train"].reshape(-1)).decode()
    monkeypatch.setattr("harness.judges.corpus._BLOCK_TOKENS", 64)
    blocks = list(training_blocks(DATA, 640))
    assert len(blocks) == 10 and all(len(block) == 64 and block in whole for block in blocks)
    assert whole.startswith(blocks[0]) and whole.endswith(blocks[-1])


def test_learning_rate_warms_up_and_decays():
    rates = [rate_at(step, 100, warm=10, final=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert max(rates) == pytest.approx(1.0) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_windows_depend_on_seed_and_step_alone():
    recipe = fit_module.Recipe(100, 4, 8, 1.0, 10, 0.0, 1.0, 3, False)
    stream = np.arange(500, dtype=np.int32)
    batch = fit_module.windows(stream, recipe, 7)
    assert batch.shape == (4, 8) and (np.diff(batch, axis=1) == 1).all()
    assert np.array_equal(batch, fit_module.windows(stream, recipe, 7))
    assert not np.array_equal(batch, fit_module.windows(stream, recipe, 8))
    assert fit_module.windows(stream[:5], recipe, 0).tolist() == [[0, 1, 2, 3, 4]] * 4
    assert END_OF_TEXT_ID == 0


def test_bad_options_of_a_trained_judge():
    with pytest.raises(UserError, match="use width=32"):
        TrainedJudge(dataclasses.replace(TINY, width=30))


def test_training_that_diverges_says_so(tmp_path):
    with pytest.raises(UserError, match="diverge"):
        train(tmp_path, lr=1e38)
