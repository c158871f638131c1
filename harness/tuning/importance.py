"""How much each dimension matters: PED-ANOVA of Optuna, which also knows dimensions that are only sometimes there.

Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces"
(IJCAI 2023): how far the best trials are from being spread as all trials are, in each dimension by itself. It needs no
model of the values, and reads a search that the sampler has steered.
"""

from __future__ import annotations

import math
import warnings

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

#: Share of the trials that counts as the best, and how many there should be of them.
QUANTILE, AT_LEAST = 0.1, 5


def quantile(finished: int) -> float:
    """The share of the best: a tenth, or five trials, and never more than half."""
    return min(0.5, max(QUANTILE, AT_LEAST / max(1, finished)))


def importances(study: optuna.Study, objective: int = 0) -> dict[str, float]:
    """Share of each dimension, summing to 1, the largest first; empty where nothing can be told."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = [t.values[objective] for t in done]
    if len(done) < 2 or min(values) == max(values):
        return {}
    tried: dict[str, set[str]] = {}
    for trial in done:
        for key, value in trial.params.items():
            tried.setdefault(key, set()).add(str(value))
    keys = [key for key, found in tried.items() if len(found) > 1]
    if not keys:
        return {}
    sign = -1.0 if study.directions[objective] == StudyDirection.MAXIMIZE else 1.0
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile(len(done)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes the importances of params to")
        raw = evaluator.evaluate(study, params=keys, target=lambda t: sign * t.values[objective])
    total = sum(v for v in raw.values() if math.isfinite(v))
    if not total > 0:
        return {}
    return {k: v / total for k, v in sorted(raw.items(), key=lambda item: -item[1]) if math.isfinite(v)}
