"""What a storage says of trials: what became of each, how many there are, and which are the best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

#: User attributes of a trial: the command that asked for it, why it failed, was lost, put back or pruned, the trial that it
#: is asked for again in the place of, how often that happened, and by how much each constraint is broken (at most 0: met).
ASKED_BY, FAILURE, LOST, STOPPED, PRUNED = "asked_by", "failure", "lost", "stopped", "pruned"
RETRY_OF, TRIES, CONSTRAINTS = "retry_of", "tries", "constraints"
#: Its run in tracking.
RUN_ID = "run_id"


def status(trial: FrozenTrial) -> str:
    """'complete', 'pruned', 'failed' (for a reason of its own), 'lost' (killed or put back), 'running', 'waiting'."""
    if trial.state == TrialState.FAIL:
        return "failed" if FAILURE in trial.user_attrs else "lost"
    return trial.state.name.lower()


@dataclass(frozen=True)
class Tally:
    """How many trials there are of each `status`."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    lost: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def counted(self) -> int:
        """Those that `tune.trials` is about."""
        return self.complete + self.pruned + self.failed


def tally(trials: Sequence[FrozenTrial]) -> Tally:
    return Tally(**Counter(status(t) for t in trials))


def all_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All trials by number, not copied: to be read only."""
    return study.get_trials(deepcopy=False)


def reason(trial: FrozenTrial) -> str | None:
    """Why a trial has no result, in words; None where there is nothing to say."""
    attrs = trial.user_attrs
    stopped = "the command was stopped" if STOPPED in attrs else None
    return attrs.get(FAILURE) or attrs.get(LOST) or attrs.get(PRUNED) or stopped


# ---- the best ---------------------------------------------------------------------------------------------------------
def feasible(trial: FrozenTrial) -> bool:
    """Whether a completed trial met all constraints."""
    return trial.state == TrialState.COMPLETE and all(c <= 0 for c in trial.user_attrs.get(CONSTRAINTS) or [])


def signs(directions: Sequence[StudyDirection]) -> np.ndarray:
    """1 for each objective that is minimised and -1 for each that is maximised, (K,)."""
    return np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])


def front(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The feasible trials that no other feasible trial beats in every objective; with one objective, the best."""
    able = [t for t in trials if feasible(t)]
    if not able:
        return []
    cost_TK = np.array([t.values for t in able]) * signs(directions)
    if len(directions) == 1:
        return [able[int(cost_TK[:, 0].argmin())]]
    no_worse_TT = (cost_TK[:, None, :] <= cost_TK[None, :, :]).all(-1)
    better_TT = (cost_TK[:, None, :] < cost_TK[None, :, :]).any(-1)
    beaten_T = (no_worse_TT & better_TT).any(0)
    return [trial for trial, beaten in zip(able, beaten_T, strict=True) if not beaten]


def so_far(trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> str:
    """In words, for the progress line: how many were pruned and failed, and the best feasible one, or the front's size."""
    now, found = tally(trials), front(trials, directions)
    parts = [f"{count} {word}" for word, count in (("pruned", now.pruned), ("failed", now.failed)) if count]
    if found and len(directions) == 1:
        parts.append(f"best {found[0].values[0]:.4g} (trial {found[0].number})")
    elif found:
        parts.append(f"{len(found)} trial{'s' if len(found) > 1 else ''} on the front")
    else:
        parts.append("none meets the constraints yet" if now.complete else "none done yet")
    return ", ".join(parts)
