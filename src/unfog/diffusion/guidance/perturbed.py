"""Perturbed-attention guidance: away from what the network says when its self-attention is the identity.

    D = D + scale·(D − D_perturbed)        scale 0 = off

The network is told by cond["perturb"] (B,) bool; one that cannot do it refuses the key. It comes first, next to the
network: under classifier-free guidance both conditions are moved.
Source: Ahn et al. 2024, arXiv:2403.17377, eq. 12.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.processes import Process
from unfog.errors import UserError


class Perturbed:
    """scale: 0 = off, and the network is asked once."""

    def __init__(self, denoiser: Denoiser, scale: float = 1.0) -> None:
        if not math.isfinite(scale):
            raise UserError(f"guidance 'perturbed': scale must be finite, got {scale}")
        self.denoiser, self.scale = denoiser, scale

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Guided x0 (B, *D)."""
        if not self.scale:
            return self.denoiser(x_t, t, cond)
        count = len(x_t)
        given = {} if cond is None else cond
        both = {key: torch.cat([value, value]) for key, value in given.items()}
        both["perturb"] = torch.arange(2 * count, device=x_t.device) >= count
        times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        x0, perturbed = self.denoiser(torch.cat([x_t, x_t]), times, both).chunk(2)
        return x0 + self.scale * (x0 - perturbed)
