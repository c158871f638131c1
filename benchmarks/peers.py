"""Ours beside public code of masked and uniform diffusion: steps of training and sampling at equal shapes, in one run.

    python -m benchmarks.peers mdlm=<checkout> duo=<checkout> [--vocab 27 --length 64 --width 128 --depth 4] [--nfe 8]

A checkout is one of kuleshov-group/mdlm or s-sahoo/duo, which are not part of this project; what they import has to be there
(pip install lightning torchmetrics einops fsspec requests). Each code base runs in a process of its own, one
after the other in turns, on one thread. Theirs runs as it is: its own loss, AdamW and averaged weights, its own sampler. Only
what needs a GPU has a stand-in: flash-attention is torch's attention, and CUDA's autocast is the CPU's, in bfloat16.

Prints milliseconds (median, and the range) and how many times as fast ours is.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.stand_ins import Tokenizer, modules


@dataclass(frozen=True)
class Shape:
    """What all have in common; `batch` sequences in a step, `draws` in a call of the sampler with `nfe` steps."""

    vocab: int
    length: int
    width: int
    depth: int
    heads: int
    batch: int
    draws: int
    nfe: int


@dataclass(frozen=True)
class Work:
    """One code base, ready: `step(x_BL)` trains once, `sample()` draws once."""

    step: Callable[[Tensor], object]
    sample: Callable[[], object]


# ---- ours -----------------------------------------------------------------------------------------------------------
def ours(name: str, shape: Shape, compiled: bool) -> Work:
    """A method of this project with its default sampler, trained as `harness.training.loop` does: AdamW, clipping, average."""
    from baselines.mdlm import MDLM, MDLMOptions
    from baselines.samplers.ancestral import Ancestral
    from baselines.samplers.uniform import Uniform, UniformOptions
    from baselines.udlm import UDLM, UDLMOptions
    from harness.config.fields import NoOptions
    from harness.config.schema import ScaleConfig, TrainConfig
    from harness.interface import Problem
    from harness.nn.transformer import TrunkShape
    from harness.training.compiled import compile_trunks
    from harness.training.ema import EMA
    from harness.training.optimizer import method_optimizer
    from harness.training.precision import Numerics

    problem = Problem(shape.vocab, shape.length, TrunkShape(shape.width, shape.depth, shape.heads))
    method: Any = MDLM(problem, MDLMOptions()) if name == "masked" else UDLM(problem, UDLMOptions(loss="nelbo"))
    sampler: Any = Ancestral(method, NoOptions()) if name == "masked" else Uniform(method, UniformOptions())
    recipe = TrainConfig(optimizer="adamw")
    optimizer, average = method_optimizer(method, ScaleConfig(), recipe), EMA(method, recipe.ema)
    numerics, generator = Numerics("cpu", "bfloat16"), torch.Generator().manual_seed(0)
    if compiled:
        compile_trunks(method.networks().values(), Path(tempfile.gettempdir()) / "peers")

    def step(x_BL: Tensor) -> None:
        method.train().zero_grad(set_to_none=True)
        with numerics.autocast():
            total = method.loss(x_BL, generator).total
        total.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), recipe.clip)
        optimizer.step()
        average.update()

    def sample() -> None:
        with torch.inference_mode(), numerics.autocast():
            sampler.draw(shape.draws, shape.nfe, generator)

    return Work(step, sample)


# ---- theirs ---------------------------------------------------------------------------------------------------------
def _settings(shape: Shape, **more: Any) -> Any:
    from omegaconf import OmegaConf

    model = {"name": "same", "type": "ddit", "hidden_size": shape.width, "cond_dim": 128, "length": shape.length}
    model |= {"n_blocks": shape.depth, "n_heads": shape.heads, "scale_by_sigma": True, "dropout": 0.0}
    return OmegaConf.create(
        {
            "model": model | {"tie_word_embeddings": False},
            "loader": {"eval_batch_size": shape.draws, "batch_size": shape.batch, "global_batch_size": shape.batch},
            "training": {"ema": 0.9999, "antithetic_sampling": True, "importance_sampling": False, "sampling_eps": 1e-3}
            | {"change_of_variables": False, "loss_precision": "bf16", "class_dropout_p": 0.0, "finetune_path": ""},
            "eval": {"gen_ppl_eval_model_name_or_path": "none", "perplexity_batch_size": 8, "checkpoint_path": ""},
            "optim": {"lr": 3e-4, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
            "data": {},
        }
        | more
    )


def _theirs(model: Any, loss: Callable[[Tensor], Tensor], sample: Callable[[], object], compiled: bool) -> Work:
    """The step that Lightning makes of such a model: loss, clipping, AdamW, averaged weights."""
    parameters = [*model.backbone.parameters(), *model.noise.parameters()]
    o = model.config.optim
    betas = (o.beta1, o.beta2)
    optimizer = torch.optim.AdamW(parameters, lr=o.lr, betas=betas, eps=o.eps, weight_decay=o.weight_decay)
    if compiled:
        model.backbone.compile(dynamic=False)

    def step(x_BL: Tensor) -> None:
        model.backbone.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            total = loss(x_BL)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        model.ema.update(iter(parameters))

    def draw() -> None:
        model.backbone.eval()
        with torch.no_grad():
            sample()

    return Work(step, draw)


def mdlm(path: str, shape: Shape, compiled: bool) -> Work:
    """kuleshov-group/mdlm: masked diffusion, with its cached sampler and its call for the rest."""
    (diffusion,) = modules(path, "diffusion")
    config = _settings(
        shape, backbone="dit", parameterization="subs", time_conditioning=False, T=0, subs_masking=False,
        noise={"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
        sampling={"predictor": "ddpm_cache", "steps": shape.nfe, "noise_removal": False},
    )  # fmt: skip
    model = diffusion.Diffusion(config, Tokenizer(shape.vocab))
    return _theirs(model, lambda x_BL: model._loss(x_BL, torch.ones_like(x_BL)).loss, model._sample, compiled)


def duo(path: str, shape: Shape, compiled: bool) -> Work:
    """s-sahoo/duo: uniform diffusion without its curriculum, with its ancestral sampler in float64."""
    (algo,) = modules(path, "algo")
    names = {"name": "duo_base", "backbone": "dit", "parameterization": "mean", "time_conditioning": True, "T": 0}
    config = _settings(
        shape, algo=names | {"subs_masking": False, "causal_attention": False, "ignore_bos": False, "loss_type": "elbo"},
        noise={"type": "log-linear", "eps": 1e-3}, prior={"type": "none"},
        sampling={"predictor": "ancestral", "steps": shape.nfe, "noise_removal": "none", "use_float64": True,
                  "p_nucleus": 1.0, "semi_ar": False, "guid_weight": None, "psi": dict(
                      time_profile="linear", high_mode="pure-posterior", middle_mode="pure-posterior",
                      low_mode="pure-posterior", high_frac=0.2, middle_frac=0.6)},
    )  # fmt: skip
    model = algo.DUO_BASE(config, Tokenizer(shape.vocab))
    type(model).trainer = types.SimpleNamespace(num_nodes=1, node_rank=0, num_devices=1, local_rank=0, global_rank=0,
                                                accumulate_grad_batches=1)  # fmt: skip

    def loss(x_BL: Tensor) -> Tensor:
        return model._loss(x_BL, None, torch.ones_like(x_BL), 0, train_mode=True).loss

    return _theirs(model, loss, lambda: model.generate_samples(shape.draws, num_steps=shape.nfe), compiled)


#: By name of a checkout: its work, and which of our methods does the same.
PEERS = {"mdlm": (mdlm, "masked"), "duo": (duo, "uniform")}


# ---- turns ----------------------------------------------------------------------------------------------------------
def _serve(line: Connection, name: str, path: str, shape: Shape, compiled: bool) -> None:
    """In a process of its own: milliseconds of one step or one draw for each word that arrives."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(sys.stderr):
        work = PEERS[name][0](path, shape, compiled) if path else ours(PEERS[name][1], shape, compiled)
        x_BL = torch.randint(shape.vocab, (shape.batch, shape.length))
        for word in iter(line.recv, "end"):
            began = time.perf_counter()
            work.step(x_BL) if word == "train" else work.sample()
            line.send(1e3 * (time.perf_counter() - began))


def compare(name: str, path: str, shape: Shape, rounds: int, compiled: str) -> list[list[str]]:
    """Rows of the table for one checkout: both in turns, after two rounds (for a compiler) that are not counted."""
    context = multiprocessing.get_context("spawn")
    lines, processes = [], []
    for place in ("", path):
        compiles = compiled == "both" or (compiled == "ours" and not place)
        mine, other = context.Pipe()
        processes.append(
            context.Process(
                target=_serve,
                args=(other, name, place, shape, compiles),
                daemon=True,
            )
        )
        processes[-1].start()
        other.close()
        lines.append(mine)
    rows = []
    for word in ("train", "sample"):
        took: list[list[float]] = [[], []]
        for turn in range(rounds + 2):
            for place, line in enumerate(lines):
                line.send(word)
                milliseconds = line.recv()
                if turn >= 2:
                    took[place].append(milliseconds)
        shown = [f"{statistics.median(t):.1f} ({min(t):.1f} to {max(t):.1f})" for t in took]
        rows.append([name, word, *shown, f"{statistics.median(took[1]) / statistics.median(took[0]):.2f}"])
    for line in lines:
        line.send("end")
    for process in processes:
        process.join(10)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 for a checkout that is none of those known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="+", help=f"NAME=FOLDER; names are {', '.join(PEERS)}")
    for key, value in {
        "vocab": 27,
        "length": 64,
        "width": 128,
        "depth": 4,
        "heads": 4,
        "batch": 32,
        "draws": 64,
    }.items():
        parser.add_argument(f"--{key}", type=int, default=value)
    parser.add_argument("--nfe", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--compiled", default="ours", choices=("none", "ours", "both"), help="whose networks are compiled"
    )
    args = vars(parser.parse_args(arguments))
    named, rounds, compiled = args.pop("checkout"), args.pop("rounds"), args.pop("compiled")
    shape = Shape(**args)
    print(f"{shape}, one thread, bfloat16, compiled: {compiled}; milliseconds: median (range)")
    print("| public code | what | ours | theirs | theirs / ours |\n|:--|:--|--:|--:|--:|")
    for one in named:
        name, _, path = one.partition("=")
        if name not in PEERS or not path:
            print(
                f"error: {one} is no checkout; write one of {', '.join(f'{k}=FOLDER' for k in PEERS)}", file=sys.stderr
            )
            return 2
        for row in compare(name, path, shape, rounds, compiled):
            print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
