"""Thresholding of x0: what lies outside the data's range is drawn back into it.

    static   x0 ← clip(x0, −limit, limit)
    dynamic  x0 ← clip(x0, −s, s)·limit/s,   s = max(limit, the `quantile` of |x0| in the item)

It comes after guidance, on D. Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487, §2.3 (quantile 0.995, data in
[−1, 1]).
"""

from __future__ import annotations

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.processes import Process
from unfog.errors import UserError


class Threshold:
    """limit > 0: the data lies in [−limit, limit]; quantile in (0, 1), or None for static."""

    def __init__(self, denoiser: Denoiser, limit: float = 1.0, quantile: float | None = 0.995) -> None:
        if not limit > 0.0 or not (quantile is None or 0.0 < quantile < 1.0):
            raise UserError(f"guidance 'threshold': need limit > 0 and quantile in (0, 1), got {limit}, {quantile}")
        self.denoiser, self.limit, self.quantile = denoiser, limit, quantile

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Thresholded x0 (B, *D)."""
        x0 = self.denoiser(x_t, t, cond)
        if self.quantile is None:
            return x0.clamp(-self.limit, self.limit)
        size = x0.flatten(1).abs()
        # kthvalue, as torch.quantile refuses more than 16 million values
        place = min(max(round(self.quantile * (size.shape[1] - 1)) + 1, 1), size.shape[1])
        bound = size.kthvalue(place, dim=1).values.clamp_min(self.limit).reshape(-1, *(1,) * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -bound), bound) * (self.limit / bound)
