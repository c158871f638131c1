"""The shared trunk: forward passes eager against compiled, float32 against bfloat16 autocast, side by side in one run.

    python benchmarks/trunk.py [--length 64] [--batch 250] [--threads 1]

Prints tokens a second and the ratio to eager float32; the compiled rows also say how long compilation took.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

import torch

from harness.nn.transformer import Trunk, TrunkShape


def rate(trunk, h_BLE, positions_L, autocast, repeats: int) -> tuple[float, float]:
    """Tokens a second after the first call, and how long the first call took."""
    tokens = h_BLE.shape[0] * h_BLE.shape[1]
    with torch.inference_mode(), autocast:
        began = time.perf_counter()
        trunk(h_BLE, positions_L)
        first = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(repeats):
            trunk(h_BLE, positions_L)
        return tokens * repeats / (time.perf_counter() - began), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    h_BLE = torch.randn(args.batch, args.length, args.width)
    positions_L = torch.arange(args.length)
    base = None
    print("mode      dtype      tokens/s  ratio  first call s")
    for compiled in (False, True):
        for half in (False, True):
            trunk = Trunk(TrunkShape(args.width, args.depth, args.heads))
            if compiled:
                trunk.through = torch.compile(trunk.through, dynamic=False)
            autocast = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
            speed, first = rate(trunk, h_BLE, positions_L, autocast, args.repeats)
            base = base or speed
            mode, dtype = "compiled" if compiled else "eager", "bfloat16" if half else "float32"
            print(f"{mode:<9} {dtype:<9} {speed:9.0f}  {speed / base:5.2f}  {first:12.1f}")


if __name__ == "__main__":
    main()
