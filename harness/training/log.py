"""What training shows of itself: lines of `curves.jsonl`, and the words beside its progress.

A line is `{step, time_ms, values}`. Its values `train/...` are means over the steps since the line before (`lr` is that of
the step itself), so that they depend on the steps with a line and on nothing else: a run that was killed and goes on from
its checkpoint, which holds the sums of the steps since the last line, writes the same ones. Times and speeds differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from harness.progress import clock
from harness.store import append_jsonl, read_jsonl

#: In the names of a checkpoint's tensors: sums by name, and over how many steps.
_SUM, _COUNT = "log/sum/", "log/count"


class TrainingLog:
    """The log of a training of `steps` steps of `tokens` tokens, from step `first` on, with what a checkpoint kept of it."""

    def __init__(self, path: Path, steps: int, tokens: int, first: int = 0, kept: Mapping[str, Tensor] | None = None):
        self.path, self.steps, self.tokens, self.first = path, steps, tokens, first
        self.lines: dict[int, dict[str, float]] = {}
        for line in read_jsonl(path):
            self.lines.setdefault(line["step"], {}).update(line["values"])
        kept = kept or {}
        self._count = int(kept.get(_COUNT, 0))
        self._sums = {key.removeprefix(_SUM): value for key, value in kept.items() if key.startswith(_SUM)}
        self._lr = 0.0
        self._latest: Mapping[str, float] = {}
        self._began = self._since = time.monotonic()
        self._timed = 0  # steps since `_since`

    def add(self, values: Mapping[str, Tensor], lr: float) -> None:
        """The values of a step, scalars that stay on their device; other names than before begin new means."""
        if values.keys() != self._sums.keys():
            self._count, self._sums = 0, {name: torch.zeros((), dtype=torch.float64) for name in values}
        for name, value in values.items():
            self._sums[name] = self._sums[name].to(value.device) + value.detach()
        self._count, self._timed, self._lr = self._count + 1, self._timed + 1, lr

    def write(self, step: int, measure: Callable[[], Mapping[str, float]] | None = None) -> dict[str, float]:
        """All values of a step. What its line lacks is written; `measure` is called where none of its `valid/...` is there.

        A step that was written before a kill is left as it is: its values would be the same, its time would not.
        """
        means = self._means()
        known = self.lines.setdefault(step, {})
        new = {} if known else means
        if measure is not None and not any(name.startswith("valid/") for name in known):
            new = {**new, **measure()}
        if new:
            append_jsonl(self.path, {"step": step, "time_ms": int(time.time() * 1000), "values": new})
            known |= new
        self._latest, self._since, self._timed = known, time.monotonic(), 0
        return known

    def _means(self) -> dict[str, float]:
        """Means since the last line, which are then forgotten. Reading them waits for the device, and so does the clock."""
        means = {f"train/{name}": float(total) / self._count for name, total in self._sums.items()}
        speed = self._timed * self.tokens / max(time.monotonic() - self._since, 1e-9)
        self._count, self._sums = 0, {}
        return means | {"train/lr": self._lr, "train/tokens_per_second": speed}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to hold: the steps since the last line."""
        sums = {f"{_SUM}{name}": value for name, value in self._sums.items()}
        return sums | {_COUNT: torch.tensor(self._count)}

    def words(self, step: int) -> str:
        """Loss and speed of the last line and the time to go, each after a comma."""
        pace = (time.monotonic() - self._began) / max(1, step - self.first)
        shown = []
        if "train/loss" in self._latest:
            speed = self._latest["train/tokens_per_second"]
            shown = [f"loss {self._latest['train/loss']:.3g}", f"{speed / 1000:.1f}k tokens/s"]
        return "".join(f", {word}" for word in (*shown, f"ETA {clock(pace * (self.steps - step))}"))
