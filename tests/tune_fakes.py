"""A tuning without a study behind it: trials that wait a moment, and experiments in which their workers are killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna

from harness.errors import UserError
from harness.search.claims import RETRY_OF, all_trials, status, tally
from harness.search.crew import Crew
from harness.search.process import Spec
from harness.search.schema import DimensionConfig, ObjectiveConfig, PrunerConfig, TuneConfig
from harness.search.storage import open_study

LOAD, RUNNER = "tests.tune_fakes:load_fake", "tests.tune_fakes:FakeRunner"


def load_fake(arguments: list[str], config_dirs: list[Path], check: bool = True) -> SimpleNamespace:
    """What `load_tune` gives, as far as storage, workers and engine look: arguments are `key=value`."""
    # Real objectives import what they measure with; these are only told apart by direction.
    sys.modules.setdefault("harness.search.objective", SimpleNamespace(directions=lambda loaded: ["minimize"]))
    given = dict(a.split("=", 1) for a in arguments)
    cfg = TuneConfig(
        name=given.get("name", "fake"),
        method="m",
        space={
            "x": DimensionConfig(kind="float", low=0.0, high=1.0),
            "kind": DimensionConfig(kind="categorical", choices=["a", "b"]),
            "y": DimensionConfig(kind="int", low=1, high=64, log=True, when={"kind": ["b"]}),
        },
        objectives={"score": ObjectiveConfig(column="excess", nfe=4, direction="minimize")},
        sampler=given.get("sampler", "tpe"),
        pruner=PrunerConfig(kind=given.get("pruner", "none")),
        trials=int(given.get("trials", 20)),
        retries=int(given.get("retries", 30)),
        storage=given.get("tune.storage", "").strip("'"),
        workers=int(given.get("workers", 1)),
    )
    folder = Path(given["folder"])
    base = SimpleNamespace(
        cfg=SimpleNamespace(
            study=SimpleNamespace(name=given.get("study", "fake-study")),
            compute=SimpleNamespace(threads=1, device="cpu"),
            tracking=SimpleNamespace(enabled=False),
            runs_dir=str(folder),
            plan=False,
        ),
        tree={},
    )
    return SimpleNamespace(
        cfg=cfg, base=base, folder=folder, identity=given.get("identity", "0123"), tree={},
        session=SimpleNamespace(cfg=SimpleNamespace(scale=SimpleNamespace(steps=100))),
        identity_parts={"space": "fake", "given": given.get("identity", "0123")},
        command="python -m harness.tune ...", notes=[], given=given, ledger=folder / "ledger.jsonl",
    )  # fmt: skip


class Pruned(Exception):
    """As the real one."""


@dataclass
class FakeResult:
    """As a real trial's result."""

    values: list[float]
    constraints: list[float] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    trained: bool = False
    curves: list[dict[str, Any]] = field(default_factory=list)


class FakeRunner:
    """Waits instead of training; one in ten trials is pruned and one in ten fails, as its values say."""

    def __init__(self, loaded: SimpleNamespace) -> None:
        self.loaded = loaded
        self.seconds = float(loaded.given.get("seconds", 0.05))

    def prepare(self, progress) -> None:
        """Nothing is needed."""

    def run(self, params, report, progress) -> FakeResult:
        """Value: distance of x from 0.3. What was run is written down in the order in which it ended."""
        x = params["x"]
        for step in range(5):
            progress("waits", step, 5)
            time.sleep(self.seconds / 5)
        share = (x * 1000) % 1
        if share < 0.1:
            raise Pruned("no good")
        if share > 0.9:
            raise UserError("it cannot be done with this x")
        with open(self.loaded.ledger, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"x": x, "pid": os.getpid()}) + "\n")
        return FakeResult([abs(x - 0.3)], [], {"excess@4": abs(x - 0.3)}, {"score": 0.0}, True)


class RefusedRunner(FakeRunner):
    """Finds out before its first trial that no trial makes sense."""

    def prepare(self, progress) -> None:
        raise UserError("nothing can satisfy this constraint; loosen it")


class BrokenRunner(FakeRunner):
    """Never comes as far as a trial."""

    def prepare(self, progress) -> None:
        raise RuntimeError("a bug")


@dataclass
class Killed:
    """What an experiment of `kill_workers` left: all trials, and how often a worker was killed in which of its phases."""

    loaded: SimpleNamespace
    trials: list[optuna.trial.FrozenTrial]
    kills: Counter[str]
    seconds: float


def kill_workers(
    folder: Path, workers: int, trials: int, kills: int, seconds: float, seed: int, storage: str = ""
) -> Killed:
    """Each of `workers` on a fresh storage is killed `kills` times, some time after its start, and started again.

    Raises `AssertionError` if the wanted number of trials was there before all kills, or is not there in two minutes.
    """
    rng = np.random.default_rng(seed)
    given = [f"folder={folder}", f"trials={trials}", f"seconds={seconds}", "retries=30", f"tune.storage={storage}"]
    spec = Spec(given, parent=os.getpid(), load=LOAD, runner=RUNNER)
    (folder / "workers").mkdir(parents=True)
    crew = Crew(spec, workers, None, folder / "workers")
    left = {hand.spec.index: kills for hand in crew.hands}
    due: dict[int, float] = {}  # by process
    phases: Counter[str] = Counter()
    began = time.monotonic()
    try:
        while crew.alive():
            crew.poll(0.01, lambda line: None)
            crew.deaths = 0
            for hand in crew.hands:
                hand.begin_at = min(hand.begin_at, time.monotonic()) if hand.begin_at else 0.0
                process = hand.process
                if process is None or not left[hand.spec.index]:
                    continue
                # One in four may be killed before it is there at all, one is sure to have a trial.
                kind = hand.spec.index % 4
                if process.pid not in due and (kind and not hand.said or kind == 1 and hand.trial is None):
                    continue
                now = time.monotonic()
                if now >= due.setdefault(process.pid, now + rng.uniform(0, seconds if kind == 1 else 3)):
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    left[hand.spec.index] -= 1
                    phases["in a trial" if hand.trial is not None else "idle" if hand.said else "at its start"] += 1
            assert time.monotonic() - began < 120, f"not done in time; still to be killed: {left}"
    finally:
        crew.stop()
    assert not any(left.values()), f"it was done before all workers were killed: {left}"
    loaded = load_fake(given, [])
    study = open_study(loaded, ["minimize"]).study
    return Killed(loaded, all_trials(study), phases, time.monotonic() - began)


def check_nothing_lost(done: Killed) -> None:
    """The wanted number, each configuration once, and every result that any worker came to."""
    now = tally(done.trials)
    assert now.counted == done.loaded.cfg.trials and not now.running and not now.waiting
    counted = [t.params["x"] for t in done.trials if status(t) != "lost"]
    assert len(set(counted)) == len(counted) == done.loaded.cfg.trials, "a configuration is counted twice"
    results = {json.loads(line)["x"] for line in done.loaded.ledger.read_text().splitlines()}
    assert results == {t.params["x"] for t in done.trials if status(t) == "complete"}, "a result is lost"
    again = Counter(t.user_attrs[RETRY_OF] for t in done.trials if RETRY_OF in t.user_attrs)
    lost = {t.number for t in done.trials if status(t) == "lost"}
    assert set(again) == lost and set(again.values()) <= {1}, "a lost trial was not begun again once"
    by_number = {t.number: t for t in done.trials}
    for trial in done.trials:
        before = by_number.get(trial.user_attrs.get(RETRY_OF))
        asked = trial.system_attrs.get("fixed_params", {}) | trial.params
        assert before is None or before.params.items() <= asked.items(), "begun again with other values"
