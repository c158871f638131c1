"""A part of a split is a random choice of its rows, the same for all who ask, and all who need a part ask for that one."""

from types import SimpleNamespace

import numpy as np
import torch

from harness.data.base import TokenData
from harness.interface import Bound
from harness.judges.scoring import heldout_texts
from harness.study import match
from harness.study.bound import measure_bound
from harness.training import loop
from harness.training.precision import Numerics
from tests.kit.toys import job_of, tiny_problem

NUMERICS = Numerics("cpu", "float32")


def data_in_order(rows: int = 200) -> TokenData:
    """Row r holds r // (rows / 2): the second half of each split is another kind."""
    x_NL = np.repeat(np.arange(rows) * 2 // rows, 4).reshape(rows, 4).astype(np.uint16)
    return TokenData(
        "ordered", 2, 4, {split: x_NL for split in ("train", "valid", "test")}, "f", lambda ids: str(ids[0])
    )


def test_a_part_is_random_fixed_and_the_start_of_a_larger_part(tmp_path):
    rows_NL = np.arange(300, dtype=np.int32).reshape(100, 3)
    np.save(tmp_path / "rows.npy", rows_NL)
    mapped = TokenData("mapped", 300, 3, {"test": np.load(tmp_path / "rows.npy", mmap_mode="r")}, "f", str)
    part = mapped.some("test", 20)
    assert part.dtype == np.int64 and part.shape == (20, 3) and len({tuple(row) for row in part}) == 20
    assert np.array_equal(part, mapped.some("test", 50)[:20]) and np.array_equal(part, mapped.some("test", 20))
    assert not np.array_equal(np.sort(part[:, 0]), rows_NL[:20, 0])
    for beyond in (100, 1000, None):
        assert np.array_equal(np.sort(mapped.some("test", beyond), axis=0), rows_NL)


class Seen:
    """Remembers which rows its bound was asked for; the bound is the kind of the row, in nats."""

    def bound(self, x_BL, generator):
        self.kinds = x_BL[:, 0].tolist()
        return Bound(x_BL[:, 0].double(), "its kind")


def test_the_bound_is_of_a_random_choice_so_that_its_error_covers_the_rest():
    study = SimpleNamespace(bound_sequences=40, bound_draws=1)
    session = SimpleNamespace(cfg=SimpleNamespace(study=study), numerics=NUMERICS, data=data_in_order())
    facts = measure_bound(session, SimpleNamespace(seed=0), Seen())
    bound, error = facts["nelbo_nats_per_token"] * 4, facts["nelbo_se"] * 4
    assert error > 0.05 and abs(bound - 0.5) < 3 * error
    study.bound_sequences = 1000
    assert measure_bound(session, SimpleNamespace(seed=0), Seen())["nelbo_nats_per_token"] * 4 == 0.5


def test_curves_judges_and_counts_of_flops_read_such_a_choice(tmp_path):
    data, seen = data_in_order(), Seen()
    method = SimpleNamespace(bound=seen.bound, problem=tiny_problem(2, 4))
    loop._held_out(job_of(method, tmp_path, data=data, valid_sequences=40), instruments=False)
    assert 8 < sum(seen.kinds) < 32
    assert 8 < sum(map(int, heldout_texts(data, 40))) < 32
    cfg = SimpleNamespace(scale=SimpleNamespace(batch=80), train=SimpleNamespace(accumulate=2))
    part = match.first_part(SimpleNamespace(cfg=cfg, numerics=NUMERICS, data=data))
    assert len(part) == 40 and 8 < int(torch.sum(part[:, 0])) < 32
