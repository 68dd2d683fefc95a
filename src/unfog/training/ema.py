"""Power-function averaging of weights: w̄ ← β·w̄ + (1 − β)·w,  β = (1 − 1/n)^(γ+1) at step n.

The average after step t weighs what the weights were at step τ by  p(τ) = (γ+1)·τ^γ / t^(γ+1): it always spans the same share
of the run so far, so a short run needs no tuning. Of averages of two widths, kept now and then, one of any other width (and of
any moment) is a weighted sum: the weights that bring the sum of profiles nearest to the wanted profile.
Source: Karras et al. 2023 (EDM2), arXiv:2312.02696, eq. 127, appendix C (σ_rel → γ by its eq. 129; weights by algorithm 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from unfog.training.parallel import locals_of, twin

WIDTHS = (0.05, 0.10)  # of the averages that are kept, as in the source


def exponent(sigma_rel: float) -> float:
    """γ whose averaging profile has the relative standard deviation `sigma_rel` (0 < sigma_rel < 0.28)."""
    # σ_rel² = (γ+1) / ((γ+2)² (γ+3)), so that γ is the largest real root of a cubic
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class PowerEMA:
    """Holds the averaged copy of a network, renewed every `every` steps (an average over so many needs no single one)."""

    def __init__(self, network: nn.Module, sigma_rel: float = 0.1, every: int = 1) -> None:
        self.network = twin(network).eval().requires_grad_(False)
        self.sigma_rel, self.gamma, self.every = sigma_rel, exponent(sigma_rel), every

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take the weights after step `step` (1, 2, ...) into the average."""
        if step % self.every:
            return
        weight = 1 - (1 - self.every / step) ** (self.gamma + 1)
        torch._foreach_lerp_(locals_of(self.network.parameters()), locals_of(network.parameters()), weight)


def overlap(t: np.ndarray, gamma: np.ndarray, other_t: np.ndarray, other_gamma: np.ndarray) -> np.ndarray:
    """∫ p(τ)·p'(τ) dτ of two profiles, in float64; arrays broadcast. Source: EDM2 appendix C.3."""
    ratio = np.where(t < other_t, t / other_t, other_t / t)
    # of the two profiles the one that reaches further is the smaller at the other's end: by its own power
    power = np.where(t < other_t, other_gamma, gamma)
    return (gamma + 1) * (other_gamma + 1) * ratio**power / ((gamma + other_gamma + 1) * np.maximum(t, other_t))


def shares(steps: Sequence[float], gammas: Sequence[float], step: float, sigma_rel: float) -> np.ndarray:
    """How much of each kept average (of its step and γ) makes up that of `sigma_rel` after `step`; they sum to 1. (S,)"""
    # in units of `step`, so that numbers stay near one
    t, gamma = np.asarray(steps, np.float64)[:, None] / step, np.asarray(gammas, np.float64)[:, None]
    kept = overlap(t, gamma, t.T, gamma.T)
    wanted = overlap(t[:, 0], gamma[:, 0], np.ones(1), np.full(1, exponent(sigma_rel)))
    # least squares under Σ shares = 1 (a constant stays itself), by a multiplier
    size = len(t)
    system = np.ones((size + 1, size + 1))
    system[:size, :size], system[size, size] = kept, 0.0
    return np.linalg.lstsq(system, np.append(wanted, 1.0), rcond=1e-14)[0][:size]
