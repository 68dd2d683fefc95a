"""Guidance by the gradient of a log-probability: a classifier, an energy, a likelihood of a measurement.

    D ← D + scale·(σ²/α)·∇_{x_t} log p(y | x_t)          as the score of x_t is (α·D − x_t)/σ²

"x_t": log_prob(x_t, t, cond), a classifier trained on noisy data. "x0": log_prob(D, t, cond), any differentiable function
of clean data, with the gradient through the denoiser. `dps` is the second with a Gaussian measurement y = A(x0) + noise.
Sources: Dhariwal & Nichol 2021, arXiv:2105.05233, Alg. 2; Chung et al. 2023 (DPS), arXiv:2209.14687, eq. 10 and Alg. 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.processes import Process, expand
from unfog.errors import UserError

LogProb = Callable[[Tensor, Any, Cond | None], Tensor]  # (x (B, *D), t, cond) -> (B,)


class Energy:
    """scale: 0 = off (log_prob is not asked), 1 = Bayes' rule for an exact log_prob. on: "x_t" or "x0"."""

    def __init__(self, denoiser: Denoiser, log_prob: LogProb, scale: float = 1.0, on: str = "x0") -> None:
        if on not in ("x_t", "x0") or not math.isfinite(scale):
            raise UserError(f"guidance 'energy': need a finite scale and on 'x_t' or 'x0', got {scale}, {on!r}")
        self.denoiser, self.log_prob, self.scale, self.on = denoiser, log_prob, scale, on

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Guided x0 (B, *D)."""
        if not self.scale:
            return self.denoiser(x_t, t, cond)
        # a sampler runs without gradients; in inference mode only a copy made outside it can have one
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_()
            x0 = self.denoiser(x if self.on == "x0" else x.detach(), t, cond)
            value = self.log_prob(x0 if self.on == "x0" else x, t, cond)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        schedule = self.process.schedule
        alpha, sigma = (expand(torch.as_tensor(f(t), dtype=torch.float64), x_t) for f in (schedule.alpha, schedule.sigma))
        # where α = 0, x_t says nothing about x0, nor y about x_t
        factor = torch.where(alpha > 0.0, sigma * sigma / alpha.clamp_min(torch.finfo(x_t.dtype).tiny), 0.0)
        return x0.detach() + self.scale * factor * gradient


def dps(denoiser: Denoiser, measure: Callable[[Tensor], Tensor], y: Tensor, noise: float = 0.05, scale: float = 1.0) -> Energy:
    """Posterior sampling for y = measure(x0) + noise·z; measure: differentiable, (B, *D) -> the shape of y.

    noise > 0: standard deviation of the measurement. Deviation: the published step length ζ/|y − A(D)| depends on the
    sampler's step; here the likelihood's own length is kept, so that any sampler and grid may be used.
    """
    if not noise > 0.0:
        raise UserError(f"guidance 'dps': noise must be greater than 0, got {noise}")

    def log_prob(x0: Tensor, t: Any, cond: Cond | None) -> Tensor:
        return -0.5 * ((y - measure(x0)) / noise).flatten(1).square().sum(1)

    return Energy(denoiser, log_prob, scale, "x0")
