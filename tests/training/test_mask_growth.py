"""The share of masks grows in training (`train.mask_growth`), and no bound knows of it."""

import numpy as np
import pytest
import torch

from baselines.mdlm import MDLM, MDLMOptions
from harness.diffusion import masked
from harness.interface import Stage
from harness.training.loop import train
from lddm.fuji import FUJI, FUJIOptions
from lddm.seq import SEQ, SEQOptions
from lddm.seq_discrete import SEQDiscrete, SEQDiscreteOptions
from tests.kit.toys import generator_of, job_of, one_thread, scramble, tiny_problem, token_data  # noqa: F401

PROBLEM = tiny_problem()
SMALL = {"slots": 2, "dims": 2, "encoder_depth": 1}


# ---- masks that grow ------------------------------------------------------------------------------------------------
def test_the_share_of_masks_grows_in_each_stage_and_bounds_know_nothing_of_it(tmp_path):
    seen: list[float] = []

    class Watched(MDLM):
        def stages(self):
            return Stage("a", 0.5), Stage("b", 0.5)

        def loss(self, x_BL, generator):
            seen.append(self.largest_time)
            return super().loss(x_BL, generator)

    method = Watched(PROBLEM, MDLMOptions())
    train(job_of(method, tmp_path, steps=40, mask_growth=0.5))
    assert seen[:20] == seen[20:] and seen[0] == 0.3 and seen[10:20] == [1.0] * 10
    assert all(a < b for a, b in zip(seen[:10], seen[1:11], strict=True))
    seen.clear()
    train(job_of(Watched(PROBLEM, MDLMOptions()), tmp_path / "plain", steps=4, mask_growth=0.0))
    assert seen == [1.0] * 4


@pytest.mark.parametrize("name", ["mdlm", "fuji", "seq", "seq_discrete"])
def test_masked_methods_draw_times_up_to_the_largest_for_the_loss_alone(name, monkeypatch):
    """With the largest time near zero nothing is masked; the bound is that of the same method with all times."""
    options = {"full_mask": 0.0} if name != "mdlm" else {}
    method = {
        "mdlm": lambda: MDLM(PROBLEM, MDLMOptions()),
        "fuji": lambda: FUJI(PROBLEM, FUJIOptions(**SMALL, **options)),
        "seq": lambda: SEQ(PROBLEM, SEQOptions(**SMALL, **options)),
        "seq_discrete": lambda: SEQDiscrete(PROBLEM, SEQDiscreteOptions(slots=2, codes=4, **options)),
    }[name]()
    drawn: list[float] = []
    plain = masked.mask_tokens

    def watched(x_BL, alpha_B, mask_id, generator):
        drawn.append(1 - float(alpha_B.min()))
        return plain(x_BL, alpha_B, mask_id, generator)

    monkeypatch.setattr(masked, "mask_tokens", watched)
    x_BL = torch.from_numpy(token_data(PROBLEM).splits["train"][:16].astype(np.int64))
    method.set_stage(method.stages()[0].name)
    method.largest_time = 0.2
    method.loss(x_BL, generator_of(0))
    assert max(drawn) <= 0.2 + 1e-9
    before = method.eval().bound(x_BL, generator_of(1)).total_B
    method.largest_time = 1.0
    assert torch.equal(before, method.bound(x_BL, generator_of(1)).total_B)
