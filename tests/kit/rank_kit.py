"""What runs in each process of a group in the tests: `python -m tests.kit.rank_kit FILE`, where the file names a job below."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from harness.jobs.launch import attend, say

attend()  # before the imports that take seconds


def build(name: str):
    """A method by name, its weights always the same."""
    import torch

    from baselines.mdlm import MDLM, MDLMOptions
    from lddm.fuji import FUJI, FUJIOptions
    from lddm.seq import SEQ, SEQOptions
    from tests.kit.toys import tiny_problem

    torch.manual_seed(0)
    problem, small = tiny_problem(), {"slots": 2, "dims": 2, "encoder_depth": 1}
    if name == "mdlm":
        return MDLM(problem, MDLMOptions())
    if name == "fuji":
        return FUJI(problem, FUJIOptions(**small, encoder_share=0.5))
    if name == "seq":
        return SEQ(problem, SEQOptions(**small, prior_depth=1, prior_share=0.5))
    assert name == "bad"

    class Bad(MDLM):
        """Its loss is not a number where a part begins with token 0, which in the third step only one part does."""

        calls = 0

        def loss(self, x_BL, generator):
            from torch import distributed

            self.calls += 1
            made = super().loss(x_BL, generator)
            if self.calls == 3 and (not distributed.is_initialized() or distributed.get_rank() == 1):
                made.total = made.total * torch.nan
            return made

    return Bad(problem, MDLMOptions())


@dataclass(frozen=True)
class Run:
    """One training of a toy."""

    name: str
    parts: int
    optimizer: str = "adamw"

    @property
    def label(self) -> str:
        return f"{self.name}-{self.parts}-{self.optimizer}"

    def job(self, method, folder: Path, **more):
        from tests.kit.toys import job_of

        own = {"accumulate": self.parts, "optimizer": self.optimizer}
        return replace(job_of(method, folder / self.label, **own), **more)


def _train(runs: list[Run], folder: Path) -> None:
    """Train each toy in the group and keep what each process holds in the end."""
    import torch
    from safetensors.torch import save_file

    from harness.training import distributed
    from harness.training.loop import Diverged, train

    torch.set_num_threads(1)
    group = distributed.join("cpu")
    for run in runs:
        method = build(run.name)
        try:
            train(run.job(method, folder, group=group))
        except Diverged as error:
            say({"rank": group.rank, "diverged": str(error)})
        state = {key: value.contiguous() for key, value in method.state_dict().items()}
        own = folder / run.label
        own.mkdir(exist_ok=True)  # a training that diverged at once wrote nothing
        save_file(state, own / f"rank{group.rank}.safetensors")
    distributed.leave()


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["do"] == "train":
        _train([Run(**run) for run in spec["runs"]], Path(spec["folder"]))
    elif spec["do"] == "wait":
        say({"waits": True})
        time.sleep(600)
    elif spec["do"] == "chatter":
        for i in range(spec["times"]):
            say({"rank": int(os.environ["RANK"]), "i": i})
            sys.stdout.write("no end of line")


if __name__ == "__main__":
    main()
