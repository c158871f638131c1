"""What `benchmarks/gpu.sh` runs: tokens/s, share of the peak and memory of each method's training, then a study on text.

    python -m benchmarks.gpu --text BOOKS --out RESULTS [--seconds 520] [--toy]

The peak is that of a product of two bfloat16 matrices, measured here. Steps are whole: loss, gradient, optimizer, average.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.config.load import load
from harness.interface import Method, Problem
from harness.nn.transformer import TrunkShape
from harness.study.budget import count_flops
from harness.study.session import Session
from harness.training.ema import EMA
from harness.training.optimizer import method_optimizer
from harness.training.seeds import step_generator

METHODS = ("mdlm", "ar", "seq", "seq_discrete", "fuji", "seq_embedded")
#: Options of the latents for BPE tokens at 256 to 512 of them.
LATENTS = (
    "methods.fuji.slots=32", "methods.fuji.dims=32", "methods.seq.slots=32", "methods.seq.dims=32",
    "methods.seq_discrete.slots=64", "methods.seq_discrete.codes=2048", "methods.seq_embedded.segment=4",
    "methods.seq_embedded.codes=1024", "methods.seq_embedded.latent_batch=32",
)  # fmt: skip
TOY_LATENTS = (
    "methods.seq_discrete.codes=32", "methods.seq_embedded.codes=32", "methods.seq_embedded.segment=4",
    "methods.seq_discrete.slots=8",
)  # fmt: skip
KEPT = ("results.parquet", "report.md", "report.html", "table.tex")


@dataclass(frozen=True)
class Size:
    """A problem and the sequences of a step."""

    name: str
    shape: TrunkShape
    vocab: int
    length: int
    batch: int


SIZES = (
    Size("25M", TrunkShape(512, 8, 8, stem=5), 4096, 256, 128),
    Size("110M", TrunkShape(768, 12, 12, stem=5), 16384, 512, 32),
)
TOY_SIZES = (Size("toy", TrunkShape(32, 2, 2, stem=5), 300, 32, 4),)


def words(args: argparse.Namespace) -> list[str]:
    """The study's command line."""
    own = [
        "study=few_step", "scale=gpu", "judge=trained", "tokenizer=bpe", "tokenizer.vocab_size=4096",
        "study.nfe=[2,4,8,16]", "study.samples=1000", "study.bound_sequences=512", "compute.sample_batch=500",
        "~methods.bigram", "train.validations=4", *LATENTS,
    ]  # fmt: skip
    if args.toy:
        own = [
            "study=few_step", "scale=nano", "judge=tiny", "tokenizer=bpe", "tokenizer.vocab_size=300", "scale.length=32",
            "scale.width=32", "scale.depth=2", "scale.heads=2", "scale.steps=40", "scale.batch=4", "study.nfe=[2]",
            "study.samples=16", "study.bound_sequences=16", "~methods.bigram", *TOY_LATENTS,
        ]  # fmt: skip
    lacking = [] if importlib.util.find_spec("mauve") and importlib.util.find_spec("faiss") else ["~metrics.mauve"]
    return [
        *own, *lacking, "data=text", f"data.path={args.text}", "tracking.enabled=false", "compute.compile='false'",
        "compute.eval_tokens=131072", f"runs_dir={args.out / 'runs'}", f"cache_dir={args.out / 'cache'}",
    ]  # fmt: skip


def peak_rate(device: str, size: int) -> float:
    """FLOPs a second of a product of two size x size matrices in bfloat16, the best of ten."""
    a, best = torch.randn(size, size, device=device, dtype=torch.bfloat16), 0.0
    for _ in range(10):
        began = clock(device)
        a @ a
        best = max(best, 2 * size**3 / (clock(device) - began))
    return best


def clock(device: str) -> float:
    """Seconds, when the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def speed(session: Session, name: str, size: Size, steps: int, peak: float) -> dict[str, Any]:
    """A row of the table: steps of the method's first stage on random ids."""
    numerics, device = session.numerics, session.numerics.device
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    node = session.build(name)
    method: Method = type(node)(Problem(size.vocab, size.length, size.shape), node.options).to(device).train()
    method.set_stage(method.stages()[0].name)
    optimizer, average = method_optimizer(method, session.cfg.scale, session.cfg.train), EMA(method, 0.1)
    x_BL = torch.randint(size.vocab, (size.batch, size.length), device=device)

    def step(number: int) -> None:
        with numerics.autocast():
            loss = method.loss(x_BL, step_generator(device, 0, number))
        loss.total.backward()
        optimizer.step()
        average.update()
        method.zero_grad(set_to_none=True)

    def counted() -> None:
        with numerics.autocast():
            loss = method.loss(x_BL, step_generator(device, 0))
        loss.total.backward()

    flops = count_flops(counted)
    for number in range(3):
        step(number)
    began = clock(device)
    for number in range(steps):
        step(number)
    seconds = (clock(device) - began) / steps
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {
        "size": size.name,
        "method": name,
        "parameters": sum(p.numel() for p in method.parameters()),
        "tokens_per_second": x_BL.numel() / seconds,
        "mfu": flops / seconds / peak,
        "memory_gib": memory,
    }


def measure(args: argparse.Namespace, session: Session, until: float) -> None:
    """`speed.md` and `speed.json`, written again after each row; no new one is begun after `until`."""
    device = session.numerics.device
    peak = peak_rate(device, 512 if args.toy else 8192)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    lines = [f"{name}, {peak / 1e12:.3g} TFLOP/s in a bfloat16 product; {session.numerics.precision}, not compiled", ""]
    lines += [
        "| size | method | parameters | tokens/s | share of the peak | memory, GiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    rows: list[dict[str, Any]] = []
    for size in TOY_SIZES if args.toy else SIZES:
        for method in METHODS:
            if time.monotonic() > until:
                break
            try:
                row = speed(session, method, size, 3 if args.toy else 20, peak)
            except (RuntimeError, torch.OutOfMemoryError) as error:
                row = {"size": size.name, "method": method, "error": str(error).splitlines()[0][:120]}
            rows.append(row)
            lines.append(line_of(row))
            print(lines[-1], flush=True)
            (args.out / "speed.md").write_text("\n".join(lines) + "\n")
            (args.out / "speed.json").write_text(json.dumps({"device": name, "peak": peak, "rows": rows}, indent=1))
            if device == "cuda":
                torch.cuda.empty_cache()


def line_of(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    if "error" in row:
        return f"| {row['size']} | {row['method']} | {row['error']} | | | |"
    memory = "" if row["memory_gib"] is None else f"{row['memory_gib']:.1f}"
    millions, tokens = f"{row['parameters'] / 1e6:.1f}M", f"{row['tokens_per_second']:,.0f}"
    return f"| {row['size']} | {row['method']} | {millions} | {tokens} | {row['mfu']:.1%} | {memory} |"


def study(args: argparse.Namespace, until: float) -> int:
    """Run the study until it is done or the time is up, and put what it has published into `out`."""
    command = [sys.executable, "-m", "harness.run", *words(args)]
    with open(args.out / "run.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(max(5.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait(30)
    for name in KEPT:
        if (args.out / "runs" / "few_step" / name).exists():
            shutil.copy(args.out / "runs" / "few_step" / name, args.out / name)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=520.0)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    began = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    session = Session(load(words(args)).tree)
    measure(args, session, began + 0.3 * args.seconds)
    print(f"speed: {time.monotonic() - began:.0f} s", flush=True)
    code = study(args, began + args.seconds - 10.0)
    print(f"study: exit code {code} after {time.monotonic() - began:.0f} s in all; results in {args.out}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
