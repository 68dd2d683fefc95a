"""CFG-Zero*: the unconditioned velocity is first scaled to fit the conditioned one, and no step is made near pure noise.

    v = s*·v_u + scale·(v_c − s*·v_u),   s* = ⟨v_c, v_u⟩/⟨v_u, v_u⟩;      v = 0 where f = σ/(α + σ) > 1 − zero

v = ε − x0 is the velocity of flow matching; any schedule has one. An undertrained network's first velocities are worse
than none. Source: Fan et al. 2025, arXiv:2503.18886, Alg. 1 (zero: the first 4 % of the steps).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.guidance.cfg import ClassifierFree, Pair, inner
from unfog.diffusion.predictions import Prediction
from unfog.diffusion.processes import expand
from unfog.errors import UserError


def zero_star(
    denoiser: Denoiser, scale: float | Tensor, uncond: Cond, zero: float = 0.04, interval: tuple[float, float] | None = None
) -> ClassifierFree:
    """Guidance on the velocity; zero in [0, 1): share of flow time, from pure noise on, without any step."""
    if not 0.0 <= zero < 1.0:
        raise UserError(f"guidance 'zero_star': zero must lie in [0, 1), got {zero}")
    flow = Prediction("flow")

    def combine(pair: Pair) -> Tensor:
        alpha, sigma = pair.level
        with_cond = flow.of_x0(pair.with_cond, pair.x_t, alpha, sigma)
        without = flow.of_x0(pair.without, pair.x_t, alpha, sigma)
        tiny = torch.finfo(without.dtype).tiny
        fitted = inner(with_cond, without) / inner(without, without).clamp_min(tiny) * without
        v = fitted + pair.scale * (with_cond - fitted)
        early = expand(torch.as_tensor(sigma / (alpha + sigma) > 1.0 - zero), v)
        return flow.to_x0(torch.where(early.bool(), 0.0, v), pair.x_t, alpha, sigma)

    return ClassifierFree(denoiser, scale, uncond, interval, combine=combine)
