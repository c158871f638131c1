"""The training loop: accumulation, averages, rates, batches, and a loss that is not a number."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from baselines.mdlm import MDLM, MDLMOptions
from harness.config.schema import TrainConfig
from harness.interface import Bound, Loss, Method, Stage
from harness.store import read_jsonl
from harness.training import batches, loop
from harness.training.ema import EMA
from harness.training.loop import Diverged, stage_steps, train
from harness.training.optimizer import learning_rate
from harness.training.seeds import step_generator
from lddm.fuji import FUJI, FUJIOptions
from lddm.seq import SEQ, SEQOptions
from tests.kit.toys import generator_of, job_of, one_thread, scramble, tiny_problem, token_data  # noqa: F401

PROBLEM = tiny_problem()
SMALL = {"slots": 2, "dims": 2, "encoder_depth": 1}


def curves(folder) -> list[tuple[int, dict]]:
    return [(line["step"], line["values"]) for line in read_jsonl(folder / "curves.jsonl")]


def test_training_learns_and_the_curves_show_it(tmp_path):
    method = MDLM(PROBLEM, MDLMOptions())
    train(job_of(method, tmp_path, steps=150, lr=1e-2, batch=30, data=token_data(PROBLEM, rows=600)))
    x_NL = torch.from_numpy(token_data(PROBLEM, rows=600, seed=1).splits["train"].astype(np.int64))
    with torch.no_grad():
        per_token = method.bound(x_NL, generator_of(0)).total_B.mean().item() / PROBLEM.length
    # Entropy: ln 7 for the first token and ln 2 for each of the other seven, 0.85 nats a token; ln 7 = 1.95 untrained.
    assert 0.85 < per_token < 1.6
    assert {"train/nelbo_nats_per_token", "valid/bound_nats_per_token"} <= set(curves(tmp_path)[0][1])
    assert all(math.isfinite(v) for _, values in curves(tmp_path) for v in values.values())
    assert not method.training


def test_curves_name_the_parts_of_a_latent_bound(tmp_path):
    train(job_of(SEQ(PROBLEM, SEQOptions(**SMALL, prior_depth=1)), tmp_path))
    values = curves(tmp_path)[-1][1]
    parts = [values[f"valid/bound/{k}"] for k in ("encoder", "latent_ends", "latent", "tokens")]
    assert sum(parts) == pytest.approx(values["valid/bound_nats_per_token"])


# ---- a method whose gradient is known -------------------------------------------------------------------------------
@dataclass
class StubOptions:
    nan_at: int = -1


class MeanOfTokens(Method):
    """loss = mean over the batch of w[x_0]: the gradient of w[v] is the share of sequences that begin with v."""

    Options = StubOptions
    title, sampler = "stub", "none"

    def __init__(self, options: StubOptions | None = None) -> None:
        super().__init__(PROBLEM, options or StubOptions())
        self.w = nn.Parameter(torch.zeros(PROBLEM.vocab_size))
        self.calls = 0

    def networks(self):
        return {}

    def loss(self, x_BL, generator) -> Loss:
        self.calls += 1
        total = self.w[x_BL[:, 0]].mean()
        if self.calls == self.options.nan_at:
            total = total * torch.nan
        return Loss(total, {"first": x_BL[:, 0].float().mean(), "size": torch.tensor(float(len(x_BL)))})

    def bound(self, x_BL, generator) -> Bound | None:
        return None

    def sample(self, n, nfe, generator, temperature=1.0):
        raise NotImplementedError


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate, tmp_path):
    method = MeanOfTokens()
    job = job_of(method, tmp_path, steps=1, batch=8, accumulate=accumulate, clip=1e9, validations=1)
    train(job)
    rows = np.sort(batches.batch_rows(60, 8, 0, job.seed))
    first = job.data.splits["train"][rows][:, 0].astype(np.int64)
    expected = np.bincount(first, minlength=PROBLEM.vocab_size) / 8
    assert method.calls == accumulate
    assert method.w.grad.tolist() == pytest.approx(expected.tolist())
    values = curves(tmp_path)[-1][1]
    assert values["train/first"] == pytest.approx(first.mean()), "reported parts are means over the whole batch too"
    assert values["train/size"] == 8 / accumulate


def test_gradients_are_clipped_to_the_stated_norm(tmp_path):
    method = MeanOfTokens()
    train(job_of(method, tmp_path, steps=1, clip=0.01))
    assert method.w.grad.norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("nan_at", [1, 3])
def test_a_loss_that_is_not_a_number_stops_the_run_in_one_line(nan_at, tmp_path):
    method = MeanOfTokens(StubOptions(nan_at=nan_at))
    with pytest.raises(
        Diverged, match=rf"^the loss is nan at step {nan_at}; a smaller scale\.lr \(now 0\.003\) may help$"
    ):
        train(job_of(method, tmp_path))
    assert torch.isfinite(method.w).all(), "the weights are those before the bad step"


@pytest.mark.parametrize(("steps", "named"), [(40, 3), (8, 3)])
def test_where_looking_costs_a_wait_a_bad_loss_is_found_later_and_nothing_is_kept_of_it(
    steps, named, tmp_path, monkeypatch
):
    """As on a GPU: seen at step 10, or at the end or at a validation, and named as the step that it was."""
    method, saved = MeanOfTokens(StubOptions(nan_at=3)), []
    monkeypatch.setattr(loop.checkpoint, "save_tensors", lambda *_: saved.append(method.calls))
    job = job_of(method, tmp_path, steps=steps, validations=1, checkpoint_seconds=-1.0)
    monkeypatch.setattr(loop, "_read_every", lambda device: 10)
    with pytest.raises(Diverged, match=rf"the loss is nan at step {named};"):
        train(job)
    assert method.calls == min(steps, 10) and not saved and not (tmp_path / "curves.jsonl").exists()


def test_weight_decay_is_for_matrices_only(tmp_path):
    """With no gradient at all, AdamW moves a weight by decay alone."""

    class Idle(MeanOfTokens):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.embed_table = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
            self.gain = nn.Parameter(torch.ones(2))

        def loss(self, x_BL, generator) -> Loss:
            rest = self.matrix.sum() + self.embed_table.sum() + self.gain.sum()
            return Loss((self.w.sum() + rest) * 0.0, {})

    method = Idle()
    recipe = {"weight_decay": 0.1, "decay": "constant", "warmup": 0.0, "ema": 0.0}
    train(job_of(method, tmp_path, steps=1, lr=0.5, **recipe))
    assert method.matrix.flatten().tolist() == pytest.approx([1.0 - 0.5 * 0.1] * 4)
    assert method.embed_table.flatten().tolist() == [1.0] * 4
    assert method.gain.tolist() == [1.0] * 2


def test_a_stage_starts_with_no_momentum_of_the_one_before(tmp_path):
    """The second stage's gradient is zero, so that only old moments could move a weight in it."""
    seen = []

    class TwoStages(MeanOfTokens):
        def stages(self):
            return Stage("moves", 0.5), Stage("rests", 0.5)

        def set_stage(self, name):
            self.factor = float(name == "moves")

        def loss(self, x_BL, generator) -> Loss:
            seen.append(self.w.detach().clone())
            return Loss(super().loss(x_BL, generator).total * self.factor, {})

    method = TwoStages()
    train(job_of(method, tmp_path, steps=20, ema=0.0))
    assert not torch.equal(seen[0], seen[10])
    assert all(torch.equal(w, seen[10]) for w in [*seen[10:], method.w])


# ---- averages -------------------------------------------------------------------------------------------------------
def test_average_by_hand():
    """A share of a quarter: the new value has the weights 1 / (1 + k / 4), 4/5, 4/6, 4/7, 4/8."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    ema = EMA(module, share=0.25)
    shadow = 1.0
    for value, decay in ((2.0, 1 / 5), (-1.0, 2 / 6), (5.0, 3 / 7), (0.0, 4 / 8)):
        nn.init.constant_(module.weight, value)
        ema.update()
        shadow = decay * shadow + (1 - decay) * value
        assert ema.shadow["weight"].item() == pytest.approx(shadow, rel=1e-5)
        assert module.weight.item() == value
    with ema.applied():
        assert module.weight.item() == pytest.approx(shadow, rel=1e-5)
    assert module.weight.item() == 0.0
    ema.restart()
    assert (ema.shadow["weight"].item(), ema.updates) == (0.0, 0)
    nn.init.constant_(module.weight, 3.0)
    ema.copy_to_model()
    assert module.weight.item() == 0.0


def test_live_weights_come_back_after_an_error_in_the_block():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    ema = EMA(module, 0.9)
    nn.init.constant_(module.weight, 2.0)
    with pytest.raises(KeyboardInterrupt), ema.applied():
        raise KeyboardInterrupt
    assert module.weight.item() == 2.0


def test_final_weights_are_the_average_of_the_last_stage(tmp_path):
    """A trained encoder is frozen in FUJI's second stage: its average must be exactly what the second stage saw."""
    seen = []

    class Watched(FUJI):
        def loss(self, x_BL, generator):
            seen.append((self._stage, self.encoder.body.out.weight.detach().clone()))
            return super().loss(x_BL, generator)

    torch.manual_seed(0)
    method = Watched(PROBLEM, FUJIOptions(**SMALL))
    train(job_of(method, tmp_path))
    joint = [weight for stage, weight in seen if stage == "joint"]
    assert len(joint) == 24 and [stage for stage, _ in seen] == ["encoder"] * 16 + ["joint"] * 24
    assert all(torch.equal(w, joint[0]) for w in joint)
    assert torch.equal(method.encoder.body.out.weight, joint[0])
    assert not torch.equal(seen[0][1], joint[0])


@pytest.mark.parametrize("steps", [200, 4000])
def test_an_average_looks_back_a_share_of_the_steps(steps):
    """Of weights that are the number of the step it is late by the share, in runs of any length."""
    module = nn.Linear(1, 1, bias=False)
    ema = EMA(module, share=0.1)
    for step in range(steps):
        nn.init.constant_(module.weight, step)
        ema.update()
    assert (steps - ema.shadow["weight"].item()) / steps == pytest.approx(1 / 11, rel=0.06)
    nothing = EMA(module, share=0.0)
    nn.init.constant_(module.weight, 5.0)
    nothing.update()
    assert nothing.shadow["weight"].item() == 5.0


# ---- rates, stages, batches -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_rate_rises_to_the_peak_and_falls_to_its_end(decay):
    recipe, steps = TrainConfig(warmup=0.1, decay=decay, final_lr=0.05), 200
    rates = [learning_rate(recipe, step, steps) for step in range(steps + 1)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[:20] == pytest.approx([(k + 1) / 20 for k in range(20)])
    assert rates[20] == 1.0 == max(rates)
    assert rates[steps] == pytest.approx(0.05)
    assert all(a > b for a, b in zip(rates[20:], rates[21:], strict=False))
    middle = learning_rate(recipe, 110, steps)
    assert middle == pytest.approx(0.05 + 0.95 / 2), "half-way, cosine and line meet"


def test_constant_rate_and_the_shortest_runs():
    constant = TrainConfig(warmup=0.0, decay="constant")
    assert [learning_rate(constant, k, 10) for k in range(11)] == [1.0] * 11
    assert learning_rate(TrainConfig(), 0, 1) == 1.0
    assert 0 < learning_rate(TrainConfig(warmup=1.0), 4, 5) <= 1.0


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1001])
def test_stage_steps_are_whole_and_sum_to_the_budget(steps):
    class Staged(MeanOfTokens):
        def stages(self):
            return Stage("a", 0.3), Stage("b", 0.3), Stage("c", 0.4)

    plan = stage_steps(Staged(), steps)
    assert [name for name, _ in plan] == ["a", "b", "c"]
    assert sum(count for _, count in plan) == steps
    assert all(
        count >= 0 and abs(count - share * steps) <= 1 for (_, count), share in zip(plan, (0.3, 0.3, 0.4), strict=True)
    )


@pytest.mark.parametrize(("rows", "batch"), [(12, 4), (10, 4), (3, 8), (7, 7)])
def test_every_row_comes_once_in_each_epoch(rows, batch):
    steps = 5 * rows
    stream = np.concatenate([batches.batch_rows(rows, batch, step, seed=3) for step in range(steps)])
    assert len(stream) == steps * batch
    epochs = stream[: len(stream) // rows * rows].reshape(-1, rows)
    assert (np.sort(epochs, axis=1) == np.arange(rows)).all()
    assert len(np.unique(epochs[:5], axis=0)) > 1, "each epoch has an order of its own"
    assert not np.array_equal(
        stream[:rows], np.concatenate([batches.batch_rows(rows, batch, s, 4) for s in range(rows)])[:rows]
    )


def test_step_generators_depend_on_the_whole_key():
    keys = [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (0, 1, 1)]  # also a zero at the end, which NumPy's seeding drops
    draws = [torch.rand(4, generator=step_generator("cpu", *key)).tolist() for key in keys]
    assert len({tuple(d) for d in draws}) == len(keys)
    assert torch.rand(4, generator=step_generator("cpu", 0, 1)).tolist() == draws[2]


def test_training_noise_is_new_in_each_step():
    method = scramble(MDLM(PROBLEM, MDLMOptions()))
    x_BL = torch.from_numpy(token_data(PROBLEM).splits["train"][:8].astype(np.int64))
    losses = {float(method.loss(x_BL, step_generator("cpu", 0, 1, step)).total.detach()) for step in range(5)}
    assert len(losses) == 5
    assert torch.equal(method.loss(x_BL, generator_of(0)).total, method.loss(x_BL, generator_of(0)).total)
