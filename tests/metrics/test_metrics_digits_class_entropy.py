"""Class entropy and confidence by hand."""

import math
import types

import numpy as np
import pytest

from harness.errors import UserError
from harness.metrics.base import Samples, ScoreContext
from harness.metrics.class_entropy import ClassEntropy, ClassEntropyOptions, entropy_of_sums


def score(p_NC, **options):
    judge = types.SimpleNamespace(class_probabilities=lambda texts: np.asarray(p_NC, dtype=float))
    context = ScoreContext(None, None, judge, None, 5)
    metric = ClassEntropy(ClassEntropyOptions(**options))
    return metric.score(Samples(np.zeros((len(p_NC), 1)), [""] * len(p_NC)), context)


def test_entropy_of_the_mean_and_not_the_mean_of_entropies():
    scores = score([[1, 0, 0], [0, 1, 0]])
    assert scores.values["class_entropy"][0] == pytest.approx(math.log(2))
    assert scores.values["class_confidence"] == (1.0, 0.0)
    mixed = score([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.5, 0.25, 0.25]])
    # mean (1/2, 1/4, 1/4)
    assert mixed.values["class_entropy"][0] == pytest.approx(1.5 * math.log(2))
    assert mixed.values["class_confidence"][0] == pytest.approx(0.5)


def test_one_class_has_no_entropy_and_all_alike_have_the_most():
    same = score([[0, 1, 0, 0]] * 6).values["class_entropy"]
    assert same == (0.0, 0.0) and math.copysign(1, same[0]) == 1
    assert score(np.full((6, 10), 0.1)).values["class_entropy"][0] == pytest.approx(math.log(10))


def test_sums_need_no_normalisation():
    assert entropy_of_sums(np.array([[3.0, 3.0], [0.0, 7.0]])) == pytest.approx([math.log(2), 0.0])


def test_errors():
    confidence = score([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])
    assert confidence.values["class_confidence"][1] == pytest.approx(np.std([0.9, 0.7, 0.8], ddof=1) / math.sqrt(3))
    assert confidence.per_sequence["class"].tolist() == [0, 0, 1]
    # 400 certain classes, 80 : 320. H'(p) = log((1 - p) / p) = log 4, so the error is log 4 sqrt(p (1 - p) / n).
    p = np.eye(2)[[0] * 80 + [1] * 320]
    assert score(p).values["class_entropy"][1] == pytest.approx(math.log(4) * math.sqrt(0.16 / 400), rel=0.1)
    assert score(p).values == score(p).values


def test_a_judge_without_classes_is_refused_in_one_line():
    with pytest.raises(UserError, match="use judge=digits") as caught:
        ClassEntropy(ClassEntropyOptions()).check(None, types.SimpleNamespace(classifies=False))
    assert "\n" not in str(caught.value)
