"""Power-function averaging of weights: w̄ ← β·w̄ + (1 − β)·w,  β = (1 − 1/n)^(γ+1) at step n.

The average always spans the same share of the run so far, so a short run needs no tuning.
Source: Karras et al. 2023 (EDM2), arXiv:2312.02696, eq. 127 and appendix C; σ_rel → γ by its eq. 129.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from unfog.training.parallel import locals_of, twin


def exponent(sigma_rel: float) -> float:
    """γ whose averaging profile has the relative standard deviation `sigma_rel` (0 < sigma_rel < 0.28)."""
    # σ_rel² = (γ+1) / ((γ+2)² (γ+3)), so that γ is the largest real root of a cubic
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class PowerEMA:
    """Holds the averaged copy of a network, renewed every `every` steps (an average over so many needs no single one)."""

    def __init__(self, network: nn.Module, sigma_rel: float = 0.1, every: int = 1) -> None:
        self.network = twin(network).eval().requires_grad_(False)
        self.gamma, self.every = exponent(sigma_rel), every

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take the weights after step `step` (1, 2, ...) into the average."""
        if step % self.every:
            return
        weight = 1 - (1 - self.every / step) ** (self.gamma + 1)
        torch._foreach_lerp_(locals_of(self.network.parameters()), locals_of(network.parameters()), weight)
