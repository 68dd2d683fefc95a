"""Adaptive projected guidance: the change that guidance makes, without what only over-saturates.

    Δ = D_c − D_u  (+ β·the Δ before);  Δ ← Δ·min(1, r/|Δ|);  Δ = Δ∥ + Δ⊥ along D_c
    D = D_c + (scale − 1)·(Δ⊥ + η·Δ∥)

Source: Sadat et al. 2024, arXiv:2410.02416, Alg. 1 (η 0, β −0.5 to −0.75, r depends on the data's size).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.guidance.cfg import ClassifierFree, Pair, inner
from unfog.errors import UserError


def apg(
    denoiser: Denoiser,
    scale: float | Tensor,
    uncond: Cond,
    eta: float = 0.0,
    norm: float = math.inf,
    momentum: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> ClassifierFree:
    """eta: weight of the parallel part (1 with norm inf and momentum 0 = plain); norm r > 0, over the whole item.

    momentum β in (−1, 1) remembers the change from one call to the next, at a lower noise level; a call at the same or
    a higher one, or with another number of items, forgets it. With it, one guided denoiser serves one run at a time.
    """
    if not (norm > 0.0 and -1.0 < momentum < 1.0 and math.isfinite(eta)):
        raise UserError("guidance 'apg': need a finite eta, norm > 0 and momentum in (-1, 1)")
    before: list[tuple[float, Tensor]] = []

    def combine(pair: Pair) -> Tensor:
        change = pair.with_cond - pair.without
        if momentum:
            time = float(torch.as_tensor(pair.t).max())
            if before and before[0][0] > time and before[0][1].shape == change.shape:
                change = change + momentum * before[0][1]
            before[:] = [(time, change)]
        tiny = torch.finfo(change.dtype).tiny
        if math.isfinite(norm):
            change = change * (norm / inner(change, change).sqrt().clamp_min(tiny)).clamp(max=1.0)
        along = inner(change, pair.with_cond) / inner(pair.with_cond, pair.with_cond).clamp_min(tiny) * pair.with_cond
        return pair.with_cond + (pair.scale - 1.0) * (change - along + eta * along)

    return ClassifierFree(denoiser, scale, uncond, interval, combine=combine)
