import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness.errors import UserError
from harness.judges.base import Judge
from harness.metrics import mauve as mauve_file
from harness.metrics.base import Samples, ScoreContext
from harness.metrics.mauve import Mauve, MauveOptions, cached_features, mauve_scores

pytest.importorskip("mauve")

N, F = 600, 16


def cloud(seed: int, shift: float = 0.0, n: int = N) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, F)) + shift).astype(np.float32)


class ArrayJudge:
    """Texts are keys of an array of features; counts how often it is asked."""

    texts = 0
    read_of = Judge.read_of

    identity = "arrays"

    def __init__(self, arrays):
        self.arrays, self.asked = arrays, []

    def features(self, texts):
        self.asked.append(texts[0])
        return self.arrays[texts[0].split()[0]]


def samples(name: str, n: int = N, length: int = 8) -> Samples:
    return Samples(np.zeros((n, length), dtype=np.int64), [f"{name} {i}" for i in range(n)])


def context(judge, cache, reference=None) -> ScoreContext:
    return ScoreContext(data=None, reference=reference or samples("reference"), judge=judge, cache=cache, seed=0)


def test_a_sample_against_itself_is_one():
    assert mauve_scores(cloud(0), cloud(0), MauveOptions(), seed=0).value_S == pytest.approx(np.ones(5), abs=1e-6)


def test_two_samples_of_one_law_are_near_the_ceiling_and_far_laws_near_zero():
    same = mauve_scores(cloud(0), cloud(1), MauveOptions(), seed=0).value_S
    far = mauve_scores(cloud(0), cloud(1, shift=2.0), MauveOptions(), seed=0).value_S
    assert same.min() > 0.9 and same.max() < 1.0
    assert far.max() < 0.02
    near = mauve_scores(cloud(0), cloud(1, shift=0.3), MauveOptions(), seed=0).value_S
    assert far.mean() < near.mean() < same.mean()


def test_the_error_is_that_of_other_samples():
    """The spread over k-means seeds alone would be several times too small."""
    options = MauveOptions(redo=1)
    made = [mauve_scores(cloud(0, n=300), cloud(seed, 0.3, n=300), options, seed=0) for seed in range(1, 13)]
    values, errors = np.array([each.mean_and_error() for each in made]).T
    seeds = np.mean([each.value_S.std(ddof=1) / np.sqrt(5) for each in made])
    assert 0.6 < errors.mean() / values.std(ddof=1) < 1.8 and seeds < 0.6 * errors.mean()


def test_mean_and_error_are_over_kmeans_seeds_and_samples(tmp_path):
    judge = ArrayJudge({"reference": cloud(0), "model": cloud(1)})
    value, se = Mauve(MauveOptions()).score(samples("model"), context(judge, tmp_path)).values["mauve"]
    scores = mauve_scores(cloud(0), cloud(1), MauveOptions(), seed=0).value_S
    assert len(set(scores)) > 1
    assert value == scores.mean() and se > scores.std(ddof=1) / np.sqrt(5)


def test_more_seeds_and_other_buckets_are_honoured():
    assert len(mauve_scores(cloud(0, n=80), cloud(1, n=80), MauveOptions(seeds=7), seed=0).value_S) == 7
    default, explicit, coarse = (
        mauve_scores(cloud(0), cloud(1), MauveOptions(buckets=buckets), seed=0).value_S for buckets in (0, N // 10, 5)
    )
    assert np.array_equal(default, explicit) and not np.array_equal(default, coarse)


def test_unequal_n_and_length_are_refused_in_one_line(tmp_path):
    judge = ArrayJudge({"reference": cloud(0), "model": cloud(1)})
    for wrong in (samples("model", n=N - 1), samples("model", length=9)):
        with pytest.raises(UserError) as caught:
            Mauve(MauveOptions()).score(wrong, context(judge, tmp_path))
        assert str(N) in str(caught.value) and "\n" not in str(caught.value)
    assert judge.asked == []
    with pytest.raises(UserError, match="same n"):
        mauve_scores(cloud(0), cloud(1)[:-1], MauveOptions(), seed=0)


def test_bad_features_and_options_are_refused():
    broken = cloud(1)
    broken[3, 2] = np.nan
    with pytest.raises(UserError, match="not all finite"):
        mauve_scores(cloud(0), broken, MauveOptions(), seed=0)
    with pytest.raises(UserError, match="buckets=700"):
        mauve_scores(cloud(0), cloud(1), MauveOptions(buckets=700), seed=0)


def test_the_references_features_are_made_once(tmp_path):
    judge = ArrayJudge({"reference": cloud(0), "model": cloud(1)})
    metric = Mauve(MauveOptions())
    first = metric.score(samples("model"), context(judge, tmp_path))
    second = metric.score(samples("model"), context(judge, tmp_path))
    assert first.values == second.values
    assert judge.asked == ["reference 0", "model 0", "model 0"]
    other = ArrayJudge(judge.arrays)
    other.identity = "other arrays"
    metric.score(samples("model"), context(other, tmp_path))
    assert other.asked == ["reference 0", "model 0"]


def test_a_damaged_cache_is_made_again(tmp_path):
    judge = ArrayJudge({"reference": cloud(0)})
    texts = samples("reference").texts
    expected = cached_features(judge, texts, tmp_path)
    (file,) = (tmp_path / "features").iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:200], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        file.write_bytes(damaged)
        assert np.array_equal(cached_features(judge, texts, tmp_path), expected)
    assert len(judge.asked) == 3


def test_every_option_is_in_the_identity():
    identity = Mauve(MauveOptions()).identity()
    assert all(field.name in identity for field in dataclasses.fields(MauveOptions))
    assert identity != Mauve(MauveOptions(buckets=7)).identity()


def test_nothing_is_written_to_standard_error(capfd):
    mauve_scores(cloud(0), cloud(1), MauveOptions(), seed=0)
    assert "WARNING clustering" not in capfd.readouterr().err


def scores_as_bits() -> list[str]:
    a, b = (np.random.default_rng(s).normal(size=(600, 64)).astype(np.float32) for s in (0, 1))
    return [float(value).hex() for value in mauve_scores(a, b, MauveOptions(), seed=3).value_S]


def test_another_process_with_other_threads_gives_the_same_bits():
    here = scores_as_bits()
    threads = "2" if os.environ.get("OMP_NUM_THREADS") == "1" else "1"
    there = subprocess.run(
        [sys.executable, "-c", "from tests.metrics.test_metrics_mauve import scores_as_bits; print(scores_as_bits())"],
        env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == str(here) and len(here) == 5


def test_the_error_is_the_jackknife_of_the_package_s_own_curve():
    """Derivatives by the package's functions, bucket after bucket; empty buckets on either side."""
    parts, options, rng = mauve_file._package("mauve.compute_mauve"), MauveOptions(), np.random.default_rng(3)
    p_M, q_M = rng.dirichlet(np.full(12, 0.7)), rng.dirichlet(np.full(12, 0.7))
    p_M[[0, 1]], q_M[[1, 2]] = 0.0, 0.0
    p_M, q_M = p_M / p_M.sum(), q_M / q_M.sum()
    n, step = 200, 0.5 / 200

    def score(mix_M):
        weights = np.linspace(1e-6, 1 - 1e-6, options.curve_points)
        x, y = parts.get_divergence_curve_for_multinomials(p_M, mix_M, weights, options.scaling).T
        area = parts.compute_area_under_curve
        return 0.5 * (area(np.sort(x), y[np.argsort(x)]) + area(np.sort(y), x[np.argsort(y)]))

    variance = sum(
        q_M[j] * ((score((1 - step) * q_M + step * np.eye(12)[j]) - score(q_M)) / step) ** 2 / n
        for j in np.flatnonzero(q_M)
    )
    assert mauve_file._spread(p_M, q_M, n, options) == pytest.approx(variance**0.5, rel=1e-6)
