"""What the tests of compiled training run in a process of their own: `python -m tests.kit.compiled_kit FOLDER`.

On Python 3.11 torch's compiler stops where distutils was imported before setuptools, which other tests may have done.
"""

from __future__ import annotations

import setuptools  # isort: skip  # noqa: F401 - before all that may import distutils

import json
import sys
from pathlib import Path

import torch

from baselines.mdlm import MDLM, MDLMOptions
from harness.training import compiled, loop
from lddm.seq import SEQ, SEQOptions
from tests.kit.toys import job_of, tiny_problem


class Killed(Exception):
    pass


def trained(train, folder: Path, kill: int | None = None, **recipe) -> dict[str, torch.Tensor]:
    """The weights after 20 steps of a toy; killed once after step `kill` and gone on from the checkpoint."""

    def progress(text: str, done: int, total: int) -> None:
        if done == kill:
            raise Killed

    for report in (progress, None) if kill else (None,):
        torch.manual_seed(0)
        method = MDLM(tiny_problem(), MDLMOptions())
        try:
            train(job_of(method, folder, steps=20, progress=report, checkpoint_seconds=-1.0, **recipe))
        except Killed:
            assert (folder / "train.safetensors").exists()
    return {name: value.clone() for name, value in method.state_dict().items()}


def graphs(folder: Path) -> int:
    """Graphs of a SEQ whose prior conditions itself, over all of its stages; compiling alone is not what is tested."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch.manual_seed(0)
    options = SEQOptions(slots=2, dims=2, self_conditioning=0.5, one_call_share=0.3, latent_batch=16)
    job = job_of(SEQ(tiny_problem(), options), folder / "graphs", steps=20, accumulate=2, batch=8)
    compiled.train(job, folder / "cache")
    return counters["stats"]["unique_graphs"]


def limited(folder: Path) -> int:
    """Graphs where no second one is allowed for a trunk: none silently runs without."""
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch.manual_seed(0)
    with torch._dynamo.config.patch(recompile_limit=1):
        options = SEQOptions(slots=2, dims=2, self_conditioning=0.5)
        compiled.train(job_of(SEQ(tiny_problem(), options), folder / "limited", steps=20), folder / "cache")
    return counters["stats"]["unique_graphs"]


def main(folder: Path) -> None:
    """Say, as JSON: what is equal to the bit, how far compiled weights are from others, and what the cache holds."""
    torch.set_num_threads(1)
    cache = folder / "cache"

    def in_cache(job: loop.Job) -> dict[str, float]:
        return compiled.train(job, cache)

    plain = trained(loop.train, folder / "plain")
    whole, resumed = trained(in_cache, folder / "whole"), trained(in_cache, folder / "killed", kill=10)
    said = {
        "resumed": all(torch.equal(value, resumed[name]) for name, value in whole.items()),
        "apart": max(float((value - whole[name]).abs().max()) for name, value in plain.items()),
        "kept": sorted({path.suffix for path in cache.rglob("*") if path.suffix == ".so"}),
    }
    torch._inductor.config.cpp.cxx = ("/bin/false",)
    torch._inductor.config.force_disable_caches = True
    failed = trained(in_cache, folder / "failed", batch=4)
    whole_compile = torch.compile
    torch.compile = lambda *args, **named: whole_compile(*args, **named, backend="eager")
    other = trained(loop.train, folder / "other", batch=4)
    said["eager"] = all(torch.equal(value, failed[name]) for name, value in other.items())
    said["graphs"], said["limited"] = graphs(folder), limited(folder)
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
