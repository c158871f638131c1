"""Attention on a CPU: torch's kernel against its definition, forward and backward, side by side in one run.

    python benchmarks/attention.py [--length 64] [--threads 1]

Prints milliseconds (median of repeats that alternate between the two) and their ratio. `harness.nn.transformer.attend`
chooses by what this shows.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional as F


def written_out(q, k, v):
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1) @ v


def time_once(attention, q, k, v) -> tuple[float, float]:
    """Seconds of one forward and one backward pass."""
    began = time.perf_counter()
    out = attention(q, k, v)
    middle = time.perf_counter()
    out.sum().backward()
    return middle - began, time.perf_counter() - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-width", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (max(1, args.tokens // args.length), args.heads, args.length, args.head_width)
    print("dtype     pass      kernel ms  written ms  kernel / written")
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
        taken = {"kernel": [], "written": []}
        for _ in range(args.repeats + 3):
            for name, attention in (("kernel", F.scaled_dot_product_attention), ("written", written_out)):
                taken[name].append(time_once(attention, q, k, v))
        for index, name in enumerate(("forward", "backward")):
            a, b = (1000 * statistics.median(t[index] for t in taken[which][3:]) for which in ("kernel", "written"))
            print(f"{str(dtype)[6:]:<9} {name:<9} {a:9.2f}  {b:10.2f}  {a / b:16.2f}")


if __name__ == "__main__":
    main()
