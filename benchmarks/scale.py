"""Memory at the size of published models: 12 blocks of width 768, 50257 symbols, 1024 tokens, on random ids.

    python -m benchmarks.scale [--batch 1] [--sequences 8] [--tokens 2048] [--methods mdlm seq ...] [--only train sample ...]

Each figure is the peak of a process of its own, the method's weights and Python (0.5 GiB) in it: building it, its fit, a
step of training on `--batch` sequences, a validation (bound and, with `diagnose`, instruments) and a draw of `--sequences`
at a time, and a judge of that size on as many texts, with a budget of `--tokens` read at a time. On a GPU it is the most that
torch has allocated there. `--width`, `--depth`, `--vocab` and `--length` set another size.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.ancestral import Ancestral
from harness.config.fields import NoOptions
from harness.config.schema import ScaleConfig, TrainConfig
from harness.interface import Method, Problem
from harness.judges.scoring import CausalReader, Reading
from harness.nn.slices import at_most
from harness.nn.transformer import TrunkShape
from harness.training.ema import EMA
from harness.training.optimizer import method_optimizer
from harness.training.precision import resolve
from harness.training.seeds import step_generator
from lddm.fuji import FUJI, FUJIOptions
from lddm.samplers.codes import Codes, CodesOptions
from lddm.samplers.diffusion import Diffusion, DiffusionOptions
from lddm.samplers.path import AlongPath, AlongPathOptions
from lddm.seq import SEQ, SEQOptions
from lddm.seq_discrete import SEQDiscrete, SEQDiscreteOptions

STEPS = ("build", "fit", "train", "validate", "diagnose", "sample")
JUDGE = "judge"


def methods(args: argparse.Namespace) -> dict[str, tuple[Any, Any, Any, Any]]:
    """Class, options, sampler and its options of each method; four tokens to a code, as their page advises for BPE."""
    codes = SEQDiscreteOptions(slots=args.length // 4, codes=args.codes, em_steps=2, latent_batch=max(2, args.batch))
    latents = {"slots": 32, "dims": 32, "bank": 256}
    return {
        "mdlm": (MDLM, MDLMOptions(), Ancestral, NoOptions()),
        "fuji": (FUJI, FUJIOptions(**latents), AlongPath, AlongPathOptions()),
        "seq": (SEQ, SEQOptions(**latents), Diffusion, DiffusionOptions()),
        "seq_discrete": (SEQDiscrete, codes, Codes, CodesOptions()),
    }


def tokens_of(args: argparse.Namespace, count: int) -> np.ndarray:
    """Ids (N, L) of a Zipf law."""
    rng = np.random.default_rng(0)
    return np.minimum(rng.zipf(1.3, (count, args.length)) - 1, args.vocab - 1).astype(np.int64)


def build(args: argparse.Namespace, name: str) -> Method:
    """The method, fitted where it fits anything, in its first stage."""
    torch.manual_seed(0)
    shape = TrunkShape(args.width, args.depth, args.width // 64 or 2)
    cls, options, _, _ = methods(args)[name]
    return cls(Problem(args.vocab, args.length, shape), options)


def train_step(args: argparse.Namespace, method: Method, numerics: Any, x_BL: torch.Tensor) -> None:
    """A step with everything that a training keeps: gradients, moments, averaged weights."""
    optimizer, average = method_optimizer(method, ScaleConfig(), TrainConfig()), EMA(method, 0.1)
    method.train()
    for stage in method.stages():
        method.set_stage(stage.name)
        with numerics.autocast():
            loss = method.loss(x_BL, step_generator(numerics.device, 0))
        loss.total.backward()
        optimizer.step()
        average.update()
        method.zero_grad(set_to_none=True)
        optimizer.state.clear()


def judge_call(args: argparse.Namespace, device: str) -> None:
    """A causal transformer of the same size reads texts that are as long as its context."""
    shape = {"hidden_size": args.width, "num_hidden_layers": args.depth, "num_attention_heads": args.width // 64 or 2}
    config = LlamaConfig(vocab_size=args.vocab, intermediate_size=4 * args.width, tie_word_embeddings=True, **shape)
    model = LlamaForCausalLM(config).float().eval().to(device)
    ids = tokens_of(args, args.sequences).tolist()
    reading = Reading(args.length, args.length // 2, "mean", 1 << 30)
    CausalReader(model, lambda texts: ids, "float32", reading).read([str(i) for i in range(len(ids))])


def one(args: argparse.Namespace, name: str, step: str) -> None:
    """One figure, printed as numbers: parameters, GiB, seconds."""
    numerics = resolve("auto", "auto")
    device, params, began = numerics.device, 0, time.perf_counter()
    with at_most(args.tokens):
        if name == JUDGE:
            judge_call(args, device)
        else:
            method = build(args, name).to(device)
            params = sum(p.numel() for p in method.parameters())
            if step == "fit":
                method.fit(tokens_of(args, 64))
            elif step == "train":
                train_step(args, method, numerics, torch.from_numpy(tokens_of(args, args.batch)).to(device))
            elif step != "build":
                read(args, name, step, method.eval(), device)
    seconds = time.perf_counter() - began
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    print(params, peak / 2**30, seconds)


def read(args: argparse.Namespace, name: str, step: str, method: Method, device: str) -> None:
    """A validation, the instruments or a draw in two calls; under autocast as in a study, but with the budget of `--tokens`."""
    x_NL = torch.from_numpy(tokens_of(args, args.sequences)).to(device)
    cls, _, sampler, options = methods(args)[name]
    generator = step_generator(device, 0)
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        if step == "validate":
            method.bound(x_NL, generator)
        elif step == "diagnose":
            method.diagnose(x_NL, generator)
        else:
            sampler(method, options).draw(args.sequences, 2, generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, value in (("batch", 1), ("sequences", 8), ("tokens", 2048), ("width", 768), ("depth", 12)):
        parser.add_argument(f"--{key}", type=int, default=value)
    for key, value in (("vocab", 50257), ("length", 1024), ("codes", 256)):
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--methods", nargs="*", default=["mdlm", "fuji", "seq", "seq_discrete", JUDGE])
    parser.add_argument("--only", nargs="*", default=["build", "fit", "train", "validate", "sample"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(args, *args.one)
    print(f"| method | parameters | {' | '.join(f'{step}, GiB (s)' for step in args.only)} |")
    print("|---|---:|" + "---:|" * len(args.only))
    for name in args.methods:
        cells, params = [], ""
        for step in args.only if name != JUDGE else ["read"]:
            command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--one", name, step]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                cells.append(last[:60])
                continue
            count, peak, seconds = done.stdout.split()
            params = f"{int(count) / 1e6:.0f}M" if name != JUDGE else ""
            cells.append(f"{float(peak):.2f} ({float(seconds):.0f})")
        print(f"| {name} | {params} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
