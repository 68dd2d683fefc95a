"""Which number format a network runs fastest in here: bf16 where the processor has it natively, else float32.

Decided by what the processor says, not by a timing: a choice that a busy moment can turn would let the same seed give other
bytes. The environment variable UNFOG_PRECISION, float32 or bfloat16, decides instead where it is set: for the same pictures on
machines of several kinds, say. float16 is never chosen on a CPU: torch has no fast path for it there (0.4-3 GFLOP/s against 100
and more).
"""

from __future__ import annotations

import os

import torch

from unfog.errors import UserError, shown

OVERRIDE = "UNFOG_PRECISION"
SMALL = 8_000_000  # bytes of a network's file; a U-Net of 5.7 MB took 1.2 times as long in bf16, one of 13 MB 0.9 times
KNOWN = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fastest(device: str = "cpu", size: int | None = None) -> torch.dtype:
    """The dtype to compute in, always the same on one machine; weights stay float32 in training.

    size: bytes that the network takes on disk, where small ones are to stay in float32 on a CPU: their time is that of calls
    and conversions, not of arithmetic.
    Raises UserError where UNFOG_PRECISION names none that is known.
    """
    if wanted := os.environ.get(OVERRIDE):
        if wanted not in KNOWN:
            raise UserError(f"{OVERRIDE}: {shown(wanted)} is not one of {', '.join(KNOWN)}; set it to one, or unset it")
        return KNOWN[wanted]
    if device != "cpu":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    if size is not None and size < SMALL:
        return torch.float32
    has = torch.cpu.get_capabilities()
    native = has.get("avx512_bf16", False) or has.get("amx_bf16", False)  # emulated bf16 is usually slower than float32
    return torch.bfloat16 if native else torch.float32
