"""What runs in each process of a group in the tests: `python -m tests.kit.rank_kit FILE`, where the file names a job below."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

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
    shard: bool = False
    resumes: bool = False  # what the other kind of group began
    steps: int = 40

    @property
    def label(self) -> str:
        return f"{self.name}-{self.parts}-{self.optimizer}{'-shard' * self.shard}{'-resumes' * self.resumes}"

    def job(self, method, folder: Path, **more):
        from tests.kit.toys import job_of

        own = {"accumulate": self.parts, "optimizer": self.optimizer}
        if self.steps != 40:
            own |= {"checkpoint_seconds": 0.0, "checkpoint_share": 1.0, "validations": 3}
        job = job_of(method, folder / self.label, **own)
        return replace(job, scale=replace(job.scale, steps=self.steps), **more)


class Stopped(Exception):
    """Raised in all processes at once."""


def _begin(run: Run, folder: Path, group) -> None:
    """The first steps of a training, by a group that holds shares where the run's does not."""
    from harness.training.loop import train

    method, calls = build(run.name), []
    plain = method.loss

    def loss(*args):
        calls.append(args)
        if len(calls) == run.steps // 2:
            raise Stopped
        return plain(*args)

    method.loss = loss
    with contextlib.suppress(Stopped):
        train(run.job(method, folder, group=replace(group, shard=not run.shard)))


def _measured(run: Run, rank: int):
    """`training_state`, which says how many bytes this process holds, and how many there are."""
    from harness.training import checkpoint
    from harness.training.shards import local

    plain = checkpoint.training_state

    def measured(*args):
        state = plain(*args)
        held = [sum(local(v).nbytes for v in state.values()), sum(v.nbytes for v in state.values())]
        say({"rank": rank, "label": run.label, "held": held})
        return state

    return mock.patch.object(checkpoint, "training_state", measured) if run.shard else contextlib.nullcontext()


def _train(runs: list[Run], folder: Path) -> None:
    """Train each toy in the group and keep what each process holds in the end."""
    import torch
    from safetensors.torch import save_file

    from harness.training import distributed
    from harness.training.loop import Diverged, train
    from harness.training.shards import gathered

    torch.set_num_threads(1)
    group = distributed.join("cpu")
    for run in runs:
        method = build(run.name)
        if run.resumes:
            _begin(run, folder, group)
        try:
            with _measured(run, group.rank):
                train(run.job(method, folder, group=replace(group, shard=run.shard)))
        except Diverged as error:
            say({"rank": group.rank, "diverged": str(error)})
        state = {key: value.contiguous() for key, value in gathered(method.state_dict()).items()}
        own = folder / run.label
        own.mkdir(exist_ok=True)  # a training that diverged at once wrote nothing
        save_file(state, own / f"rank{group.rank}.safetensors")
    distributed.leave()


def draw(group) -> dict[str, list]:
    """Samples, calls and cost of an even and of an adaptive sampler, 5 chunks of 4 sequences of which 19 are kept."""
    import torch

    from baselines.samplers.ancestral import Ancestral
    from baselines.samplers.entropy_bounded import EntropyBounded
    from harness.contracts.world import scramble
    from harness.study.cells import Part
    from harness.study.sampling import draw_samples
    from harness.training.precision import Numerics

    torch.set_num_threads(1)
    found = {}
    numerics, shown = Numerics("cpu", "float32"), []
    for cls in (Ancestral, EntropyBounded):
        sampler = cls(scramble(build("mdlm")), cls.Options())
        drawn = draw_samples(
            sampler, Part(4, 1.0), 19, 4, (1, 0), numerics, lambda *done: shown.append(done), group=group
        )
        found[cls.__name__] = [drawn.x_NL.tolist(), drawn.nfe_token, drawn.calls, drawn.flops_per_seq, shown[-1]]
    return found


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["do"] == "train":
        _train([Run(**run) for run in spec["runs"]], Path(spec["folder"]))
    elif spec["do"] == "draw":
        from harness.training import distributed

        group = distributed.join("cpu")
        Path(spec["folder"], f"drawn{group.rank}.json").write_text(json.dumps(draw(group)))
        distributed.leave()
    elif spec["do"] == "wait":
        say({"waits": True})
        time.sleep(600)
    elif spec["do"] == "chatter":
        for i in range(spec["times"]):
            say({"rank": int(os.environ["RANK"]), "i": i})
            sys.stdout.write("no end of line")


if __name__ == "__main__":
    main()
