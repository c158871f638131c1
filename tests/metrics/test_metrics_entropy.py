import math
import time

import numpy as np
import pytest

from harness.config.fields import NoOptions
from harness.metrics.base import Samples
from harness.metrics.entropy import Entropy, sequence_entropy


def test_known_histograms_in_nats():
    x = np.array([[7, 7, 7, 7], [1, 2, 3, 4], [5, 5, 9, 9], [0, 0, 0, 1]])
    mixed = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert sequence_entropy(x) == pytest.approx([0.0, math.log(4), math.log(2), mixed])


def test_order_of_tokens_and_neighbouring_rows_do_not_matter():
    # The last token of a row equals the first of the next after sorting: runs must not join across rows.
    assert sequence_entropy(np.array([[2, 3], [3, 3], [3, 2]])) == pytest.approx([math.log(2), 0.0, math.log(2)])


def test_agrees_with_a_count_per_row_and_is_fast_at_full_size():
    rng = np.random.default_rng(0)
    x = rng.zipf(1.3, size=(2000, 1024)) % 50_000
    began = time.monotonic()
    found = sequence_entropy(x)
    assert time.monotonic() - began < 10
    for row in (0, 17, 1999):
        share = np.unique(x[row], return_counts=True)[1] / 1024
        assert found[row] == pytest.approx(-(share * np.log(share)).sum(), abs=1e-12)


def test_mean_and_standard_error():
    x = np.array([[7, 7], [1, 2], [3, 4], [5, 5]])
    scores = Entropy(NoOptions()).score(Samples(x, [""] * 4), None)
    value, se = scores.values["entropy"]
    assert value == pytest.approx(math.log(2) / 2)
    assert se == pytest.approx(np.std([0, math.log(2), math.log(2), 0], ddof=1) / 2)
    assert scores.per_sequence["entropy"] == pytest.approx([0, math.log(2), math.log(2), 0])


def test_rows_without_tokens_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        sequence_entropy(np.zeros((3, 0), dtype=np.int64))
