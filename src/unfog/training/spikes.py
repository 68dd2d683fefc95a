"""Which gradients are too large to be believed: a batch that explodes is left out, and counted."""

from __future__ import annotations

import math

import torch

TIMES = 20.0  # the usual norm; clipping deals with what is less out of the ordinary
STEPS = 50  # over which the usual norm is an average, and before which none is known
BROKEN = 5  # in a row end a run


class Spikes:
    """The usual gradient norm so far.

    `state` (4,) float64 goes with the checkpoint: batches counted, mean of ln(norm), left out, left out in a row.
    """

    def __init__(self) -> None:
        self.state = torch.zeros(4, dtype=torch.float64)

    @property
    def limit(self) -> float:
        """The largest norm that is still taken."""
        count, mean, *_ = self.state.tolist()
        return TIMES * math.exp(mean) if count >= STEPS else math.inf

    def saw(self, norm: float) -> bool:
        """Count a batch whose gradient had this norm. -> whether it was left out."""
        count, mean, skipped, row = self.state.tolist()
        out = not math.isfinite(norm) or norm > self.limit
        if out:
            skipped, row = skipped + 1, row + 1
        else:
            row = 0
            if norm > 0:
                count += 1
                mean += (math.log(norm) - mean) / min(count, STEPS)
        self.state.copy_(torch.tensor([count, mean, skipped, row], dtype=torch.float64))
        return out

    @property
    def skipped(self) -> int:
        """Batches left out so far."""
        return int(self.state[2])

    @property
    def broken(self) -> bool:
        """Whether the last batches all had to be left out."""
        return int(self.state[3]) >= BROKEN
