"""Which number format a network runs fastest in here: bf16 where the processor has it natively, else float32.

float16 is never chosen on a CPU: torch has no fast path for it there (0.4-3 GFLOP/s against 100 and more).
"""

from __future__ import annotations

import functools
import time

import torch


@functools.cache
def fastest(device: str = "cpu") -> torch.dtype:
    """The dtype to compute in; weights stay float32 in training. Costs a few milliseconds the first time."""
    if device != "cpu":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    if not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.float32  # emulated bf16 is usually slower than float32
    x, w = torch.randn(1, 64, 32, 32), torch.randn(64, 64, 3, 3)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (v.to(dtype).to(memory_format=torch.channels_last) for v in (x, w))
        runs = []
        for _ in range(4):
            start = time.perf_counter()
            torch.nn.functional.conv2d(a, b, padding=1)
            runs.append(time.perf_counter() - start)
        seconds[dtype] = min(runs)
    return min(seconds, key=lambda d: seconds[d])
