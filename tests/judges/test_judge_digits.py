"""The classifier of digits: what it learns, that it learns the same twice, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from harness.data.digits import Digits, DigitsOptions, decode
from harness.errors import UserError
from harness.judges import digits as module
from harness.judges.digits import DigitsJudge, DigitsJudgeOptions
from tests.kit.hub_fixtures import word_data

DATA = Digits(DigitsOptions()).load(64, None, None)
TEXTS = [decode(row) for row in DATA.splits["test"].tolist()]
SMALL = DigitsJudgeOptions(features=16, channels=4, steps=40)


def prepared(cache, options: DigitsJudgeOptions = SMALL, data=DATA) -> DigitsJudge:
    judge = DigitsJudge(options)
    judge.prepare(data, cache, "cpu", lambda line: None)
    return judge


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> DigitsJudge:
    return prepared(tmp_path_factory.mktemp("cache"), DigitsJudgeOptions(steps=500))


def test_it_learns_and_says_how_well(full):
    guess = full.class_probabilities(TEXTS).argmax(axis=1)
    accuracy = float((guess == DATA.labels["test"]).mean())
    assert accuracy > 0.95
    assert f"test-accuracy-{accuracy:.4f}" in full.identity


def test_it_is_less_sure_of_what_is_no_digit(full):
    noise = np.random.default_rng(0).integers(0, 17, size=(200, 64))
    sure = full.class_probabilities(TEXTS).max(axis=1).mean()
    assert full.class_probabilities([decode(row) for row in noise.tolist()]).max(axis=1).mean() < sure - 0.1


def test_features_and_probabilities(full):
    features, probabilities = full.features(TEXTS[:5]), full.class_probabilities(TEXTS[:5])
    assert features.shape == (5, 64) and features.dtype == np.float32
    assert probabilities.shape == (5, 10) and probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(1.0)
    # The head is linear in the features: dropout, which is for training, is off.
    logits = torch.from_numpy(features) @ full.model.head.weight.T + full.model.head.bias
    assert logits.detach().double().softmax(-1).numpy() == pytest.approx(probabilities, abs=1e-5)
    assert full.features([]).shape == (0, 64) and full.class_probabilities([]).shape == (0, 10)


def test_many_texts_are_read_in_parts_in_order(full, monkeypatch):
    whole = full.class_probabilities(TEXTS)
    monkeypatch.setattr(module, "_READ_AT_ONCE", 64)
    assert full.class_probabilities(TEXTS) == pytest.approx(whole, abs=1e-6)


def test_the_same_weights_twice_and_no_trace_in_the_global_generator(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = prepared(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second = prepared(tmp_path / "b")
    assert first.record["sha256"] == second.record["sha256"] and first.identity == second.identity
    other = prepared(tmp_path / "b", dataclasses.replace(SMALL, seed=1))
    assert other.record["sha256"] != first.record["sha256"]


def test_the_cache_holds_it(tmp_path, monkeypatch):
    first = prepared(tmp_path)
    monkeypatch.setattr(DigitsJudge, "_train", lambda *_: pytest.fail("trained again"))
    again = prepared(tmp_path)
    assert again.identity == first.identity
    assert (again.features(TEXTS[:20]) == first.features(TEXTS[:20])).all()


def test_a_damaged_file_is_named(tmp_path):
    prepared(tmp_path)
    (path,) = (tmp_path / "judges").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a valid file of other weights
    with pytest.raises(UserError, match="delete that file"):
        prepared(tmp_path)
    path.write_bytes(content[:100])
    with pytest.raises(UserError, match="delete that file"):
        prepared(tmp_path)


def test_it_has_no_likelihood_and_says_so(full):
    with pytest.raises(UserError, match="gives no likelihood"):
        full.score(TEXTS[:1])
    assert json.loads(json.dumps({"ppl": full.heldout_ppl}, allow_nan=False)) == {"ppl": None}


def test_it_is_moved_pictures_that_it_learns_from():
    ink = torch.zeros(300, 1, 8, 8)
    ink[:, 0, 3, 5] = 1.0
    torch.manual_seed(0)
    moved = module._moved(ink)
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(y, x) for y in (2, 3, 4) for x in (4, 5, 6)} and (moved.sum((1, 2, 3)) == 1).all()


def test_bad_input_is_one_line(tmp_path):
    with pytest.raises(UserError, match="use data=digits"):
        prepared(tmp_path, data=word_data())
    two = prepared(tmp_path, data=Digits(DigitsOptions(2)).load(64, None, None))
    with pytest.raises(UserError, match="learnt 2 grey levels"):
        two.features(["2" * 64])
    with pytest.raises(UserError, match="diverge"):
        prepared(tmp_path, dataclasses.replace(SMALL, lr=1e30))
    with pytest.raises(RuntimeError, match="prepare"):
        DigitsJudge(SMALL).features(TEXTS[:1])
