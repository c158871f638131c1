"""A judge for labelled pictures: a small convolutional classifier, trained once on the labels of the training split.

It reads what `harness.data.digits` decodes. It has features and class probabilities and no likelihood: `score` refuses,
and there is no perplexity on held-out data. It always runs on the CPU in float32, on one thread while it is trained, so
that the same pictures give the same weights on one machine whatever the study's device.

Shapes: N pictures, F features, C classes, B batch.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.config.fields import ranged
from harness.data.base import TokenData
from harness.data.digits import CLASSES, SIDE, encode
from harness.data.files import digest
from harness.errors import UserError
from harness.judges.base import Judge, TextScores
from harness.nn.pretrained import sha256_of_weights
from harness.training import checkpoint
from harness.training.precision import threads

JUDGE_VERSION = 2
_READ_AT_ONCE = 1024


@dataclass
class DigitsJudgeOptions:
    """Size and training of the classifier (AdamW, the rate falls to zero by a cosine).

    Pictures are moved by up to one pixel and made noisy: without that, with `dropout` 0 and without `smoothing` it is as
    sure of pure noise as of digits.
    """

    features: int = ranged(64, 1)  # F, what Frechet distances are of
    channels: int = ranged(16, 1)  # of the first convolution
    steps: int = ranged(1200, 1)
    batch: int = ranged(64, 1)  # pictures of a step
    lr: float = ranged(3e-3, 0, above=True)  # the peak
    weight_decay: float = ranged(0.05, 0)
    dropout: float = ranged(0.3, 0, 1, below=True)
    smoothing: float = ranged(0.05, 0, 1, below=True)  # of the labels
    noise: float = ranged(0.1, 0)  # standard deviation, of ink in [0, 1]
    seed: int = ranged(0, 0)


class Classifier(nn.Module):
    """Two convolutions (the second halves the side), a layer of F features, and logits of C classes."""

    def __init__(self, options: DigitsJudgeOptions) -> None:
        super().__init__()
        wide = 2 * options.channels
        self.body = nn.Sequential(
            nn.Conv2d(1, options.channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(options.channels, wide, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(wide * (SIDE // 2) ** 2, options.features),
            nn.GELU(),
        )
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.features, CLASSES)

    def forward(self, ink_B1HW: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F) and logits (B, C) of ink in [0, 1], (B, 1, 8, 8)."""
        features_BF = self.body(ink_B1HW)
        return features_BF, self.head(self.dropout(features_BF))


class DigitsJudge(Judge):
    """See the head of this file; cached as `cache/judges/digits-<hash of data and options>.safetensors`."""

    Options = DigitsJudgeOptions
    has_likelihood, classifies = False, True

    def check(self, data: TokenData) -> None:
        """Raise `UserError` where the data have no labels."""
        if not data.labels:
            raise UserError(f"judge=digits learns from labels and data {data.name} has none; use data=digits")

    def prepare(self, data: TokenData, cache: Path, device: str, progress: Callable[[str], None]) -> None:
        """Load the classifier of these data and options, training it first (seconds) where the cache lacks it.

        Raises `UserError` where the data have no labels, training diverges, or the cached file is damaged.
        """
        self.check(data)
        key = digest([JUDGE_VERSION, data.fingerprint, dataclasses.asdict(self.options)])[:24]
        path = Path(cache) / "judges" / f"digits-{key}.safetensors"
        if not path.is_file():
            self._train(data, path, progress)
        try:
            state, record = checkpoint.load_tensors(path)
            if sha256_of_weights(state) != record["sha256"]:
                raise ValueError("other weights than those that were trained")
            with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and replaced
                model = Classifier(self.options)
            checkpoint.load_model(model, state, path)
        except (UserError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"the judge in {path} cannot be read; delete that file to train it again") from error
        self.model, self.record, self.highest = model.eval(), record, data.vocab_size - 1
        self.ready = True

    @property
    def identity(self) -> str:
        """`digits-<hash of weights>/float32/<features>/<accuracy on the test split>`."""
        record = self._prepared.record
        features = f"penultimate-{self.options.features}"
        return f"digits-{record['sha256'][:16]}/float32/{features}/test-accuracy-{record['test_accuracy']:.4f}"

    @property
    def heldout_ppl(self) -> None:
        """None: a classifier has no likelihood (null in JSON, and left out of the report)."""
        return None

    def score(self, texts: Sequence[str]) -> TextScores:
        """Always a `UserError`: there is no likelihood to give."""
        raise UserError(
            "judge=digits classifies pictures and gives no likelihood; choose metrics that need none, or another judge"
        )

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """(N, F) float32: the penultimate layer, after its nonlinearity."""
        return self._read(texts)[0].numpy()

    def class_probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(N, 10) float64, rows sum to 1."""
        return self._read(texts)[1].double().softmax(-1).numpy()

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        judge = self._prepared
        x_NL = encode(texts)
        if x_NL.size and x_NL.max() > judge.highest:
            raise UserError(
                f"judge=digits learnt {judge.highest + 1} grey levels and was given level {x_NL.max()}; "
                f"use data.levels={judge.highest + 1}"
            )
        parts = [
            judge.model(_ink(x_NL[start : start + _READ_AT_ONCE], judge.highest))
            for start in range(0, max(1, len(x_NL)), _READ_AT_ONCE)
        ]
        return torch.cat([features for features, _ in parts]), torch.cat([logits for _, logits in parts])

    def _train(self, data: TokenData, path: Path, progress: Callable[[str], None]) -> None:
        began = time.monotonic()
        highest = data.vocab_size - 1
        ink_N1HW = _ink(data.splits["train"], highest)
        label_N = torch.from_numpy(data.labels["train"])
        with threads(1), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.options.seed)
            model = Classifier(self.options)
            progress(f"judge: learns the classes of {len(label_N)} pictures, once")
            _fit(model, ink_N1HW, label_N, self.options)
            with torch.no_grad():
                guess_N = model.eval()(_ink(data.splits["test"], highest))[1].argmax(-1)
        accuracy = float((guess_N.numpy() == data.labels["test"]).mean())
        state = model.state_dict()
        record = {
            "sha256": sha256_of_weights(state),
            "options": dataclasses.asdict(self.options),
            "data": data.fingerprint,
            "test_accuracy": accuracy,
        }
        checkpoint.save_tensors(path, state, record)
        progress(f"judge: {accuracy:.1%} of the test pictures named right, {time.monotonic() - began:.0f} s")


def _ink(x_NL: np.ndarray, highest: int) -> Tensor:
    """Grey levels (N, 64) as float32 ink in [0, 1], (N, 1, 8, 8): the same whatever the number of levels."""
    return torch.from_numpy(np.asarray(x_NL, dtype=np.float32) / highest).view(-1, 1, SIDE, SIDE)


def _moved(ink_B1HW: Tensor) -> Tensor:
    """Each picture moved by -1, 0 or 1 pixels down and across; what leaves the picture is lost."""
    b = len(ink_B1HW)
    padded_BHW = nn.functional.pad(ink_B1HW[:, 0], (1, 1, 1, 1))
    row_BH = torch.randint(0, 3, (b, 1)) + torch.arange(SIDE)
    column_BW = torch.randint(0, 3, (b, 1)) + torch.arange(SIDE)
    return padded_BHW[torch.arange(b)[:, None, None], row_BH[:, :, None], column_BW[:, None, :]][:, None]


def _fit(model: Classifier, ink_N1HW: Tensor, label_N: Tensor, options: DigitsJudgeOptions) -> None:
    """Smoothed cross-entropy on batches drawn with replacement, from torch's generator, which the caller has seeded."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    for step in range(options.steps):
        row_B = torch.randint(len(label_N), (options.batch,))
        seen_B1HW = _moved(ink_N1HW[row_B])
        seen_B1HW = seen_B1HW + options.noise * torch.randn_like(seen_B1HW)
        logits_BC = model(seen_B1HW)[1]
        loss = nn.functional.cross_entropy(logits_BC, label_N[row_B], label_smoothing=options.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if not torch.isfinite(loss) or (step + 1 == options.steps and checkpoint.not_finite(model)):
            raise UserError(
                f"judge lr={options.lr} makes training diverge at step {step + 1}; use {options.lr / 3:.2g}"
            )
