import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import UserError
from harness.judges.pretrained import PretrainedJudge, PretrainedJudgeOptions
from harness.judges.scoring import CausalReader, Reading, heldout_texts, pooled_ppl, windows_of
from harness.judges.trained import TrainedJudge, TrainedJudgeOptions
from harness.metrics.base import Samples, ScoreContext
from harness.metrics.mauve import cached_features
from harness.metrics.perplexity import GenerativePerplexity, GenerativePerplexityOptions
from harness.nn.pretrained import sha256_of_weights
from tests.kit.hub_fixtures import EOS, V, altered, byte_tokenizer, save, tiny_gpt2, unigram_gpt2, word_data

TEXTS = ["hello world", "a", "", "the quick brown fox", "zz", "the lazy dog slept on and on", "q"]
DATA = word_data()
TOKENIZER = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def test_of_a_set_of_samples_the_first_are_read(unigram):
    judge = judge_of(unigram[0], texts=2, bos="eos")
    samples, metric = (
        Samples(np.zeros((5, 4)), ["abc", "xy", "zzzz", "q", "w"]),
        GenerativePerplexity(GenerativePerplexityOptions(resamples=10)),
    )
    context = ScoreContext(DATA, samples, judge, Path("unused"), 0)
    assert metric.score(samples, context).per_sequence["gen_chars"].tolist() == [3, 2]
    assert judge.identity.endswith("/first-2") and "first" not in judge_of(unigram[0]).identity


def judge_of(folder, **options) -> PretrainedJudge:
    judge = PretrainedJudge(PretrainedJudgeOptions(model=str(folder), **options))
    judge.prepare(DATA, Path("unused"), "cpu", lambda line: None)
    return judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("hub") / "tiny", tiny_gpt2())


@pytest.fixture(scope="module")
def unigram(tmp_path_factory) -> tuple[str, np.ndarray]:
    logits = np.random.default_rng(0).normal(size=V)
    log_p_V = logits - np.log(np.exp(logits).sum())
    return save(tmp_path_factory.mktemp("hub") / "unigram", unigram_gpt2(log_p_V)), log_p_V


# ---- what is scored -------------------------------------------------------------------------------------------------
def test_uniform_model_costs_log_v_a_token(tmp_path):
    scores = judge_of(save(tmp_path, unigram_gpt2(np.zeros(V)))).score(["abcde", "xy"])
    assert scores.tokens_N.tolist() == [4, 1]
    assert scores.nll_N == pytest.approx([4 * math.log(V), math.log(V)])
    assert pooled_ppl(scores) == pytest.approx(V)


def test_characters_are_those_of_scored_tokens(unigram, tmp_path):
    texts = ["abcde", "xy", "", f"abc{EOS}defg", "é!"]
    without, with_bos = (judge_of(unigram[0], bos=bos).score(texts).chars_N.tolist() for bos in ("none", "eos"))
    assert without == [4, 1, 0, 2, 1] and with_bos == [5, 2, 0, 3, 2]
    judge = TrainedJudge(TrainedJudgeOptions(vocab=300, width=16, depth=1, heads=1, context=32, steps=1, batch=2))
    judge.prepare(DATA, tmp_path, "cpu", lambda line: None)
    text = DATA.decode(DATA.splits["test"][0].tolist())
    first = judge.reader.spell(judge.reader.tokenize([text])[0][:1])
    assert judge.merges and len(first) > 1 and text.startswith(first)
    assert judge.score([text]).chars_N.tolist() == [len(text) - len(first)]


def test_position_0_is_scored_only_with_a_bos(unigram):
    folder, log_p_V = unigram
    ids = ids_of("hello")
    without, with_bos = (judge_of(folder, bos=bos).score(["hello", "", "h"]) for bos in ("none", "eos"))
    assert without.tokens_N.tolist() == [4, 0, 0]
    assert without.nll_N == pytest.approx([-log_p_V[ids[1:]].sum(), 0, 0], abs=1e-4)
    assert with_bos.tokens_N.tolist() == [5, 0, 1]
    assert with_bos.nll_N == pytest.approx([-log_p_V[ids].sum(), 0, -log_p_V[ids[0]]], abs=1e-4)


def test_nothing_after_the_first_end_of_text_is_scored(unigram):
    folder, log_p_V = unigram
    texts = [f"ab{EOS}cd{EOS}e", f"{EOS}abc", "abcd"]
    expected = [-log_p_V[[ids_of("b")[0], V - 1]].sum(), 0.0, -log_p_V[ids_of("bcd")].sum()]
    scores = judge_of(folder).score(texts)
    assert scores.tokens_N.tolist() == [2, 0, 3]
    assert scores.nll_N == pytest.approx(expected, abs=1e-4)
    with_bos = judge_of(folder, bos="eos").score(texts)  # the BOS that was put in front ends nothing
    assert with_bos.tokens_N.tolist() == [3, 1, 4]


def test_scores_are_those_of_one_text_at_a_time(folder):
    model, judge = tiny_gpt2(), judge_of(folder)
    scores, features = judge.score(TEXTS), judge.features(TEXTS)
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([ids_of(text)], dtype=torch.long)
        assert scores.tokens_N[i] == max(0, ids.shape[1] - 1)
        if not text:
            assert scores.nll_N[i] == 0 and not features[i].any()
            continue
        with torch.no_grad():
            out = model(ids, output_hidden_states=True)
        log_p = out.logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        assert scores.nll_N[i] == pytest.approx(-log_p.sum().item(), rel=1e-5)
        assert features[i] == pytest.approx(out.hidden_states[-1][0].mean(0).numpy(), abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 23, 64])
def test_batch_size_changes_nothing_and_no_remainder_is_dropped(folder, batch_tokens):
    wide, narrow = judge_of(folder), judge_of(folder, batch_tokens=batch_tokens)
    assert wide.identity == narrow.identity
    one, other = wide.score(TEXTS), narrow.score(TEXTS)
    assert other.tokens_N.tolist() == one.tokens_N.tolist() == [max(0, len(t) - 1) for t in TEXTS]
    assert other.nll_N == pytest.approx(one.nll_N, rel=1e-5)
    assert narrow.features(TEXTS) == pytest.approx(wide.features(TEXTS), abs=1e-5)
    backwards = narrow.score(TEXTS[::-1])
    assert backwards.nll_N[::-1] == pytest.approx(one.nll_N, rel=1e-5)


def test_windows_own_every_token_once_and_see_enough_before_it():
    for length in range(0, 40):
        for context, stride in ((8, 4), (8, 1), (8, 7), (5, 2)):
            windows = windows_of(0, length, context, stride)
            owned = [t for w in windows for t in range(w.own, w.stop)]
            assert owned == list(range(length))
            assert all(w.stop - w.start <= context for w in windows)
            assert all(w.own - w.start >= context - stride for w in windows[1:])


def test_a_text_longer_than_the_context_is_scored_in_full(folder):
    text = "windows are slid over long texts"
    judge, model, ids = judge_of(folder, context=10, stride=4), tiny_gpt2(), ids_of(text)
    expected, hidden = 0.0, []
    for window in windows_of(0, len(ids), 10, 4):
        with torch.no_grad():
            out = model(torch.tensor([ids[window.start : window.stop]]), output_hidden_states=True)
        log_p = out.logits[0].log_softmax(-1)
        for t in range(max(window.own, 1), window.stop):
            expected -= log_p[t - 1 - window.start, ids[t]].item()
        hidden.append(out.hidden_states[-1][0, window.own - window.start :])
    scores = judge.score([text, "short"])
    assert scores.tokens_N.tolist() == [len(ids) - 1, 4]
    assert scores.nll_N[0] == pytest.approx(expected, rel=1e-5)
    assert judge.features([text])[0] == pytest.approx(torch.cat(hidden).mean(0).numpy(), abs=1e-5)
    last = judge_of(folder, context=10, stride=4, pool="last")
    assert last.features([text])[0] == pytest.approx(hidden[-1][-1].numpy(), abs=1e-5)
    assert "ctx10-stride4" in judge.identity and "features-last" in last.identity


def test_scores_and_features_of_the_same_texts_cost_one_pass(folder):
    judge, calls = judge_of(folder), []
    judge.reader.model.register_forward_hook(lambda *_: calls.append(1))
    judge.score(TEXTS)
    once = len(calls)
    judge.features(TEXTS)
    assert once == len(calls) > 0
    judge.score([*TEXTS[1:], TEXTS[0]])
    assert len(calls) > once


# ---- pretrained -----------------------------------------------------------------------------------------------------
def test_dtype_is_what_was_asked_for_not_what_the_file_holds(tmp_path):
    saved = save(tmp_path, tiny_gpt2().to(torch.bfloat16))
    for dtype in ("float32", "bfloat16"):
        judge = judge_of(saved, dtype=dtype)
        assert {str(p.dtype) for p in judge.reader.model.parameters()} == {f"torch.{dtype}"}
        assert f"/{dtype}/" in judge.identity
        assert judge.features(TEXTS).dtype == np.float32
    with pytest.raises(UserError, match="was asked for"):
        CausalReader(judge.reader.model, ids_of, str, "float32", Reading(8, 4, "mean", 64))


def test_identity_follows_the_content_and_not_the_place(tmp_path):
    """Weights, tokenizer and configuration: each changes what the judge says of the same text."""
    plain = judge_of(save(tmp_path / "a" / "tiny", tiny_gpt2()))
    same = judge_of(save(tmp_path / "b" / "tiny", tiny_gpt2()))
    weights = judge_of(save(tmp_path / "c" / "tiny", tiny_gpt2(1)))
    tokenizer = judge_of(save(tmp_path / "d" / "tiny", tiny_gpt2(), byte_tokenizer(backwards=True)))
    config = judge_of(altered(save(tmp_path / "e" / "tiny", tiny_gpt2()), "config.json", layer_norm_epsilon=0.5))
    assert plain.identity == same.identity and plain.files_key() == same.files_key()
    assert str(tmp_path) not in plain.identity and plain.identity.startswith("tiny@content-")
    judges = (plain, weights, tokenizer, config)
    assert len({judge.identity for judge in judges}) == len({judge.files_key() for judge in judges}) == 4
    assert len({float(judge.score(TEXTS[:1]).nll_N[0]) for judge in judges}) == 4


def test_features_are_cached_by_all_that_reads(tmp_path):
    one = judge_of(save(tmp_path / "a" / "tiny", tiny_gpt2()))
    other = judge_of(save(tmp_path / "b" / "tiny", tiny_gpt2(), byte_tokenizer(backwards=True)))
    first = cached_features(one, TEXTS, tmp_path)
    assert not np.allclose(cached_features(other, TEXTS, tmp_path), first)
    assert np.array_equal(cached_features(one, TEXTS, tmp_path), first)


def test_a_table_shorter_than_the_tokenizer_is_refused_before_the_weights_are_read(tmp_path):
    longer = byte_tokenizer()
    longer.add_tokens([f"<{k}>" for k in range(5)])
    folder = save(tmp_path / "short", tiny_gpt2(), longer)
    for ask in (lambda: PretrainedJudge(PretrainedJudgeOptions(model=folder)).check(DATA), lambda: judge_of(folder)):
        with pytest.raises(
            UserError, match="ids up to 261, and its model's table 257 rows, for ids up to 256"
        ) as caught:
            ask()
        assert folder in str(caught.value) and "\n" not in str(caught.value)


def test_bos_is_put_in_front_only_where_the_tokenizer_does_it(tmp_path):
    plain = judge_of(save(tmp_path / "plain", tiny_gpt2()))
    fronted = judge_of(save(tmp_path / "fronted", tiny_gpt2(), byte_tokenizer(bos=True)))
    silenced = judge_of(tmp_path / "fronted", bos="none")
    tokens = [judge.score(["abc"]).tokens_N[0] for judge in (plain, fronted, silenced)]
    assert tokens == [2, 3, 2]
    assert "no-bos" in plain.identity and f"bos{V - 1}" in fronted.identity
    # A BOS is not part of the text: it is in no feature.
    ids = torch.tensor([[V - 1, *ids_of("abc")]])
    with torch.no_grad():
        hidden = tiny_gpt2()(ids, output_hidden_states=True).hidden_states[-1][0, 1:]
    assert fronted.features(["abc"])[0] == pytest.approx(hidden.mean(0).numpy(), abs=1e-5)


def test_a_judge_with_another_end_of_text_still_stops_there(tmp_path):
    judge = judge_of(save(tmp_path, tiny_gpt2(), byte_tokenizer(eos="</s>")))
    assert judge.score([f"ab{EOS}cd"]).tokens_N.tolist() == [2]


def test_folders_that_are_no_models_are_refused_in_one_line(tmp_path, folder):
    config_only, empty, gap = tmp_path / "config", tmp_path / "empty", tmp_path / "gap"
    tiny_gpt2().config.save_pretrained(config_only)
    empty.mkdir()
    save(gap, tiny_gpt2())
    state = load_file(gap / "model.safetensors")
    state.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(state, gap / "model.safetensors", metadata={"format": "pt"})
    for path, reason in (
        (config_only, "weights"),
        (empty, "config.json"),
        (gap, "mlp.c_fc.weight"),
        (tmp_path / "nowhere", "not a folder"),
    ):
        with pytest.raises(UserError) as caught:
            judge_of(path)
        line = str(caught.value)
        assert str(path) in line and reason in line and "judge=trained" in line and "\n" not in line


def test_without_network_a_hub_name_fails_at_once(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(UserError) as caught:
        judge_of("nobody-of-this-name/no-such-model")
    assert "cannot be reached (no route); use judge=trained" in str(caught.value)


def test_bad_options_of_a_pretrained_judge(folder):
    for options, reason in (
        ({"context": 65}, "at most 64"),
        ({"context": 8, "stride": 8}, "use 4"),
    ):
        with pytest.raises(UserError, match=reason):
            judge_of(folder, **options)


def test_heldout_text_is_read_as_samples_are(folder):
    judge = judge_of(folder, heldout_rows=7)
    texts = heldout_texts(DATA, 7)
    assert len(set(texts)) == 7 and set(texts) <= {DATA.decode(row) for row in DATA.splits["test"].tolist()}
    assert judge.heldout_ppl == pooled_ppl(judge.score(texts))


def test_weight_hash_sees_values_names_and_dtypes():
    state = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    base = sha256_of_weights(state)
    assert base == sha256_of_weights(dict(reversed(state.items())))
    changed = (
        {"a": torch.arange(4.0) + 1e-7, "b": torch.zeros(2)},
        {"a": torch.arange(4.0), "c": torch.zeros(2)},
        {"a": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.float16)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.zeros(2)},
    )
    assert len({base, *map(sha256_of_weights, changed)}) == 5
