"""What every judge under `studies/judge/` owes the harness; a new YAML is tested here without a new line.

Downloads are replaced by a tiny model in the hub's layout, and what is trained is trained for a few steps.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from harness.config.registry import build_options, find_entries, studies_folder
from harness.data.base import TokenData
from harness.data.digits import Digits, DigitsOptions
from harness.errors import UserError
from harness.judges.base import Judge
from harness.judges.scoring import heldout_texts, pooled_ppl
from tests.kit.hub_fixtures import save, tiny_gpt2, word_data
from tests.kit.toys import one_thread  # noqa: F401
from tests.kit.toys_exact import data_of, table_task

ENTRIES = find_entries([studies_folder()])["judge"]
#: By class: small options, and others that change what is said of a text.
TRAINED = {"vocab": 257, "width": 16, "depth": 1, "heads": 1, "context": 32, "steps": 5, "batch": 4, "threads": 1}
SMALL = {
    "TrainedJudge": (TRAINED | {"precision": "float32"}, {"seed": 1}),
    "PretrainedJudge": ({}, {"context": 16}),
    "PackagedJudge": ({"context": 32, "dtype": "float32", "texts": 0}, {"context": 16}),
    "DigitsJudge": ({"features": 8, "channels": 2, "steps": 5}, {"seed": 1}),
    "OracleJudge": ({}, {}),
}


def data_for(kind: str) -> TokenData:
    """Data that a judge of the class can read."""
    if kind == "DigitsJudge":
        return Digits(DigitsOptions()).load(64, None, None)
    return data_of(table_task(3, 4)) if kind == "OracleJudge" else word_data(rows=60)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    save(folder / "model", tiny_gpt2())
    return folder


class Case:
    """An entry of `studies/judge` with data that it can read."""

    def __init__(self, name: str, root: Path) -> None:
        self.content, self.cache = dict(ENTRIES[name].content), root / name
        self.kind = self.content["_target_"].rpartition(".")[2]
        small, self.other = SMALL[self.kind]
        self.content |= small | ({"model": str(root / "model")} if self.kind == "PretrainedJudge" else {})
        self.data = data_for(self.kind)
        self.texts = [self.data.decode(row.tolist()) for row in self.data.splits["test"][:9]]

    def judge(self, cache: Path | None = None, data: TokenData | None = None, **more) -> Judge:
        cls, options = build_options(self.content | more, "judge")
        judge = cls(options)
        if self.kind == "PackagedJudge":  # as if it had been read out of the package before
            save(judge.folder(cache or self.cache), tiny_gpt2())
        judge.prepare(data or self.data, cache or self.cache, "cpu", lambda line: None)
        return judge


@pytest.fixture(scope="module", params=sorted(ENTRIES))
def case(request, root) -> Case:
    return Case(request.param, root)


@pytest.fixture(scope="module")
def judge(case) -> Judge:
    return case.judge()


def likelihoods(judge: Judge, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of each text; a judge without a likelihood must say so in one line."""
    try:
        scores = judge.score(texts)
    except UserError as error:
        assert "likelihood" in str(error) and "\n" not in str(error) and judge.heldout_ppl is None
        pytest.skip("this judge has no likelihood, and says so")
    return scores.nll_N, scores.tokens_N


def test_identity_is_one_line_that_holds_no_path(judge, root):
    assert judge.identity and "\n" not in judge.identity and str(root) not in judge.identity


def test_prepared_again_it_is_the_same_with_its_cache_or_without(case, judge, tmp_path):
    for cache in (case.cache, tmp_path):
        again = case.judge(cache)
        assert again.identity == judge.identity and again.heldout_ppl == judge.heldout_ppl
        assert np.array_equal(again.features(case.texts), judge.features(case.texts))


def test_identity_changes_with_the_options(case, judge):
    if not case.other:
        pytest.skip("there is nothing to choose")
    assert case.judge(**case.other).identity != judge.identity


def test_identity_of_what_is_taken_from_the_data_changes_with_them(case, judge):
    if case.kind in ("PretrainedJudge", "PackagedJudge"):
        pytest.skip("its weights are not of these data")
    first = {"train": case.data.splits["train"][:30]}
    other = dataclasses.replace(case.data, splits=case.data.splits | first, fingerprint="of-other-data")
    if case.kind == "DigitsJudge":
        other = Digits(DigitsOptions(4)).load(64, None, None)
    assert case.judge(data=other).identity != judge.identity


def test_scores_are_finite_and_of_the_text_alone(case, judge):
    nll_N, tokens_N = likelihoods(judge, case.texts)
    assert nll_N.dtype == np.float64 and np.issubdtype(tokens_N.dtype, np.integer)
    assert nll_N.shape == tokens_N.shape == (len(case.texts),) and np.isfinite(nll_N).all() and (tokens_N > 0).all()
    backwards = likelihoods(judge, case.texts[::-1])
    assert backwards[0][::-1] == pytest.approx(nll_N, rel=1e-5) and np.array_equal(backwards[1][::-1], tokens_N)
    for i, text in enumerate(case.texts):
        one = likelihoods(judge, [text])
        assert one[0][0] == pytest.approx(nll_N[i], rel=1e-5) and one[1][0] == tokens_N[i]
    assert [len(values) for values in likelihoods(judge, [])] == [0, 0]
    assert len({value for value in nll_N.round(6)}) > 1, "it looks at the text"


def test_heldout_perplexity_is_that_of_texts_scored_as_samples_are(case, judge):
    likelihoods(judge, case.texts[:1])
    scores = judge.score(heldout_texts(case.data, 512))
    assert judge.heldout_ppl == pytest.approx(pooled_ppl(scores), rel=1e-6) and judge.heldout_ppl >= 1


def test_features_have_one_length_and_are_of_the_text_alone(case, judge):
    features_NF = judge.features(case.texts)
    assert features_NF.dtype == np.float32 and features_NF.ndim == 2 and len(features_NF) == len(case.texts)
    assert np.isfinite(features_NF).all()
    assert judge.features(case.texts[::-1])[::-1] == pytest.approx(features_NF, rel=1e-5, abs=1e-5)
    for text, features_F in zip(case.texts, features_NF, strict=True):
        assert judge.features([text])[0] == pytest.approx(features_F, rel=1e-5, abs=1e-5)
    assert judge.features([]).shape == (0, features_NF.shape[1])


def test_batch_size_changes_neither_scores_nor_identity(case, judge):
    if "batch_tokens" not in vars(judge.options):
        pytest.skip("it reads text by text, or in parts that are not an option")
    narrow = case.judge(batch_tokens=23)
    assert narrow.identity == judge.identity
    assert narrow.score(case.texts).nll_N == pytest.approx(judge.score(case.texts).nll_N, rel=1e-5)
    assert narrow.features(case.texts) == pytest.approx(judge.features(case.texts), abs=1e-5)
