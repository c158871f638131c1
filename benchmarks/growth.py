"""How costs grow: with the length, the vocabulary, the number of calls, samples and cells. Each table varies one of them.

    python -m benchmarks.growth [--only length vocab nfe samples cells] [--threads 1]

Seconds are the best of three; the power is that of the growth from the row before (1: proportional). Sizes are those of a
CPU: a trunk of 2 blocks of width 128, 16 sequences of 128 tokens of 512 symbols where nothing else is said.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from baselines.mdlm import MDLM, MDLMOptions
from baselines.samplers.ancestral import Ancestral
from harness.config.fields import NoOptions
from harness.config.load import load
from harness.interface import Problem
from harness.metrics.mauve import MauveOptions, mauve_scores
from harness.nn.transformer import TrunkShape
from harness.study.cells import make_cells
from harness.study.session import Session
from harness.training.seeds import step_generator

LENGTH, VOCAB, SEQUENCES = 128, 512, 16


def seconds(run: Callable[[], object]) -> float:
    """The best of three, after one that does not count."""
    found = []
    for _ in range(4):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def model(length: int = LENGTH, vocab: int = VOCAB) -> tuple[MDLM, torch.Tensor]:
    """MDLM and a batch."""
    method = MDLM(Problem(vocab, length, TrunkShape(128, 2, 4)), MDLMOptions())
    return method, torch.randint(vocab, (SEQUENCES, length))


def trained(length: int = LENGTH, vocab: int = VOCAB) -> float:
    """A step's loss and gradient."""
    method, x_BL = model(length, vocab)
    return seconds(lambda: method.loss(x_BL, step_generator("cpu", 0)).total.backward())


def drawn(nfe: int = 4, length: int = LENGTH, vocab: int = VOCAB) -> float:
    """A draw of all sequences."""
    method, _ = model(length, vocab)
    with torch.inference_mode():
        return seconds(lambda: Ancestral(method, NoOptions()).draw(SEQUENCES, nfe, step_generator("cpu", 0)))


def scored(count: int) -> float:
    """MAUVE of so many samples on features of 64 dims."""
    rng = np.random.default_rng(0)
    reference, samples = (rng.normal(size=(count, 64)).astype(np.float32) for _ in range(2))
    return seconds(lambda: mauve_scores(reference, samples, MauveOptions(), 0))


def found(seeds: int) -> float:
    """Reading the configuration and listing the cells of the smoke study with so many seeds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_text("\n".join("a line of text, as long as others are" for _ in range(3000)))
        own = [f"runs_dir={folder}/runs", f"cache_dir={folder}/cache", f"study.seeds={list(range(seeds))}"]
        command = ["study=smoke", "data=text", f"data.path={path}", "study.samples=8", *own]
        return seconds(lambda: make_cells(Session(load(command).tree)))


def tables() -> Iterator[tuple[str, str, list[int], dict[str, Callable[[int], float]]]]:
    """Key, what it is, its values, and what is timed at each."""
    yield (
        "length",
        "tokens L",
        [64, 128, 256, 512, 1024],
        {
            "a training step": lambda v: trained(length=v),
            "a draw in 4 calls": lambda v: drawn(length=v),
        },
    )
    yield (
        "vocab",
        "symbols V",
        [32, 512, 4096, 16384, 50257],
        {
            "a training step": lambda v: trained(vocab=v),
            "a draw in 4 calls": lambda v: drawn(vocab=v),
        },
    )
    yield "nfe", "calls", [2, 4, 8, 16, 32], {"a draw": drawn}
    yield "samples", "samples n", [500, 1000, 2000, 4000], {"MAUVE": scored}
    yield "cells", "seeds", [1, 4, 16, 64], {"listing the cells": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for key, label, values, timed in tables():
        if args.only and key not in args.only:
            continue
        print(f"| {label} | {' | '.join(f'{name}, s | power' for name in timed)} |")
        print("|---:|" + "---:|---:|" * len(timed))
        before: dict[str, float] = {}
        for place, value in enumerate(values):
            cells = []
            for name, run in timed.items():
                now = run(value)
                grown = math.log(now / before[name]) / math.log(value / values[place - 1]) if before.get(name) else None
                cells.append(f"{now:.3g} | {'' if grown is None else f'{grown:.2f}'}")
                before[name] = now
            print(f"| {value} | {' | '.join(cells)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
