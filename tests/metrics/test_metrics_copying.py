"""Copied n-grams, seams, distinct n-grams and known words against counts by hand and laws that are known."""

import math

import numpy as np
import pytest

from harness.config.fields import NoOptions
from harness.data.base import TokenData
from harness.errors import UserError
from harness.metrics.base import Samples, ScoreContext
from harness.metrics.copied import Copied, CopiedOptions, spread_over_offsets
from harness.metrics.distinct_ngrams import DistinctNGrams, DistinctNGramsOptions, distinct_share
from harness.metrics.ngrams import are_in, hashes, training_hashes
from harness.metrics.words import Words, whole_words


def data_of(train_NL, **facts) -> TokenData:
    train_NL = np.asarray(train_NL)
    return TokenData("toy", 30, train_NL.shape[1], {"train": train_NL}, f"{train_NL.tolist()}", str, facts)


def scored(metric, x_NL, data, cache, texts=(), reference=()):
    context = ScoreContext(data, Samples(np.zeros((0, 0)), list(reference)), None, cache, 0)
    return metric.score(Samples(np.asarray(x_NL), list(texts)), context)


# ---- hashes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 20])
def test_hashes_are_equal_where_the_windows_are(n):
    x_NL = np.random.default_rng(0).integers(2, size=(40, 20))
    windows = np.lib.stride_tricks.sliding_window_view(x_NL, n, axis=1).reshape(-1, n)
    kind_M = np.unique(windows, axis=0, return_inverse=True)[1].ravel()
    hash_M = hashes(x_NL, n).ravel()
    assert len(hash_M) == len(kind_M)
    assert len(set(zip(kind_M.tolist(), hash_M.tolist(), strict=True))) == len(set(kind_M)) == len(set(hash_M.tolist()))


def test_the_order_of_tokens_counts():
    assert len(set(hashes(np.array([[1, 2, 3], [3, 2, 1], [2, 1, 3]]), 3).ravel().tolist())) == 3


def test_the_training_split_is_one_stream_and_is_read_once(tmp_path, monkeypatch):
    data = data_of([[1, 2, 3, 4], [5, 6, 7, 8]])
    known = training_hashes(data, 3, 100, tmp_path)
    asked = np.array([[4, 5, 6], [3, 2, 1], [6, 7, 8]])
    assert are_in(hashes(asked, 3), known).ravel().tolist() == [True, False, True]
    assert are_in(hashes(asked, 3), training_hashes(data, 3, 4, tmp_path)).ravel().tolist() == [False] * 3
    monkeypatch.setattr("harness.metrics.ngrams.hashes", lambda *_: pytest.fail("hashed again"))
    assert np.array_equal(training_hashes(data, 3, 100, tmp_path), known)


# ---- copies -----------------------------------------------------------------------------------------------------------
def test_copied_shares_by_hand(tmp_path):
    metric = Copied(CopiedOptions([2, 3]))
    found = scored(metric, [[1, 2, 3, 9], [9, 9, 9, 9]], data_of([[0, 1, 2, 3]]), tmp_path)
    assert found.values["copied_2"][0] == pytest.approx((2 / 3 + 0) / 2)
    assert found.values["copied_3"] == (pytest.approx(0.25), pytest.approx(0.25))
    assert found.profiles == {"Familiar 2-grams by offset": pytest.approx(np.array([0.5, 0.5, 0.0]))}


def test_training_text_is_copied_whole_and_other_text_is_not(tmp_path):
    rng = np.random.default_rng(0)
    train_NL, other_NL = rng.integers(27, size=(2, 50, 64))
    metric, data = Copied(CopiedOptions()), data_of(train_NL)
    pasted, fresh = (scored(metric, x, data, tmp_path).values for x in (train_NL[:20], other_NL[:20]))
    assert list(pasted) == ["copied_8", "copied_16", "copied_32", "seams"]
    assert all(pasted[f"copied_{n}"] == (1.0, 0.0) and fresh[f"copied_{n}"][0] == 0.0 for n in (8, 16, 32))


def test_lengths_follow_the_tokens_and_never_leave_the_sample(tmp_path):
    merged = data_of([[1, 2, 3]], bytes_per_token_train=3.1)
    metric = Copied(CopiedOptions())
    assert [c.name for c in metric.columns_for(merged, None)] == ["copied_4", "copied_8", "copied_16", "seams"]
    assert [c.name for c in metric.columns][:3] == ["copied_8", "copied_16", "copied_32"]
    assert list(scored(metric, [[1, 2, 3], [1, 1, 1]], merged, tmp_path).values["copied_16"]) == [0.5, 0.5]
    with pytest.raises(UserError, match=r"lengths=\[8, 8\].*use \[8,16,32\]"):
        Copied(CopiedOptions([8, 8])).check(merged, None)


def test_flat_familiarity_has_no_seams_and_its_estimate_is_unbiased():
    """Windows overlap, so neighbours agree; each sequence has a rate of its own; no offset is special."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(300):
        x_NW = rng.random((60, 24)) < rng.random((60, 1))
        x_NW[:, 1::2] = x_NW[:, ::2]
        found.append(spread_over_offsets(x_NW.astype(float)))
    value, error = np.array(found).T
    assert abs(value.mean()) < 3 * value.std() / math.sqrt(len(value))
    assert 1.0 < np.sqrt((error**2).mean()) / value.std() < 1.6, "the jackknife is too wide here, by the root of two"


def test_seams_are_found_with_their_size():
    share_W = np.tile([0.35, 0.22, 0.13, 0.09, 0.07, 0.10, 0.15, 0.23], 8)
    x_NW = np.random.default_rng(2).random((2000, 64)) < share_W
    value, error = spread_over_offsets(x_NW.astype(float))
    assert abs(value - share_W.var(ddof=1) / share_W.mean() ** 2) < 3 * error and 0 < error < 0.1 * value
    assert spread_over_offsets(np.ones((9, 1))) == (0.0, 0.0), "one offset has no neighbours"


# ---- distinct ---------------------------------------------------------------------------------------------------------
def test_distinct_share_by_hand_and_its_error_by_leaving_out():
    x_NL = np.random.default_rng(3).integers(3, size=(12, 6))
    hash_NW = hashes(x_NL, 3)
    share, error = distinct_share(hash_NW)
    assert share == len(np.unique(hash_NW)) / hash_NW.size
    without = np.array([len(np.unique(part)) / part.size for part in (np.delete(hash_NW, i, 0) for i in range(12))])
    assert error == pytest.approx(math.sqrt(11 / 12 * ((without - without.mean()) ** 2).sum()))


def test_distinct_ngrams_tell_text_from_letters_drawn_alone(tmp_path):
    """Where the unigram entropy of the samples is the same."""
    rng = np.random.default_rng(4)
    words = rng.integers(27, size=(20, 4))
    text_NL = words[rng.integers(20, size=(100, 8))].reshape(100, 32)
    alone_NL = rng.permuted(text_NL, axis=1)
    metric = DistinctNGrams(DistinctNGramsOptions())
    text, alone = (scored(metric, x, None, tmp_path).values["distinct_ngrams"] for x in (text_NL, alone_NL))
    assert text[0] + 5 * text[1] < alone[0] and "4" in metric.columns[0].title
    same = scored(metric, np.tile(text_NL[:1], (100, 1)), None, tmp_path).values["distinct_ngrams"]
    assert same[0] <= 29 / 2900 and same[1] >= 0, "samples that repeat each other"


# ---- words ------------------------------------------------------------------------------------------------------------
def test_words_that_an_edge_cuts_are_left_out():
    assert list(whole_words("ab the Cat, and mo")) == ["the", "cat", "and"]
    assert list(whole_words(" ab ")) == ["ab"] and list(whole_words("nospaceatall")) == ["nospaceatall"]
    assert list(whole_words("two words")) == [] and list(whole_words("")) == []


def test_known_words_by_hand(tmp_path):
    texts, reference = ["x the cat sat x", "x zzz the x", "only edges"], ["a the dog sat a", "a big a"]
    value, error = scored(Words(NoOptions()), [[0]], None, tmp_path, texts, reference).values["known_words"]
    assert value == 3 / 5 and error > 0
    assert math.isnan(scored(Words(NoOptions()), [[0]], None, tmp_path, ["a b"], reference).values["known_words"][0])
