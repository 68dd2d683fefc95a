"""Rescaled guidance: its standard deviation is drawn back to that of the conditioned result.

    G ← φ·G·std(G_c)/std(G) + (1 − φ)·G        in the space of a prediction; std over each item

Large scales over-expose where the schedule ends in pure noise; this undoes it.
Source: Lin et al. 2023, arXiv:2305.08891, eq. 15 and 16 (v-space, φ 0.7).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.guidance.cfg import ClassifierFree, Pair, plain
from unfog.diffusion.predictions import Prediction
from unfog.errors import UserError


def rescale(
    denoiser: Denoiser,
    scale: float | Tensor,
    uncond: Cond,
    amount: float = 0.7,
    space: str = "v",
    interval: tuple[float, float] | None = None,
) -> ClassifierFree:
    """Classifier-free guidance, rescaled; amount in [0, 1], 0 = off; space: a prediction, such as v, eps or x0."""
    if not 0.0 <= amount <= 1.0:
        raise UserError(f"guidance 'rescale': amount must lie in [0, 1], got {amount}")
    prediction = Prediction(space)

    def combine(pair: Pair) -> Tensor:
        guided = prediction.of_x0(plain(pair), pair.x_t, *pair.level)
        wanted = prediction.of_x0(pair.with_cond, pair.x_t, *pair.level)
        tiny = torch.finfo(guided.dtype).tiny
        dims = tuple(range(1, guided.ndim))
        ratio = wanted.std(dims, keepdim=True) / guided.std(dims, keepdim=True).clamp_min(tiny)
        return prediction.to_x0(guided * (amount * ratio + (1.0 - amount)), pair.x_t, *pair.level)

    return ClassifierFree(denoiser, scale, uncond, interval, combine=combine if amount else plain)
