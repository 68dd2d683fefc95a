"""Infill: the known part of an item is kept, the rest is sampled to fit it.

    D ← known where mask, D elsewhere

With D constant there, x follows α·known + σ·z to known itself, and a sampler whose last step is D ends on it exactly.
The rest sees the known part at its right noise level at every step; "repaint" and "restart" let it see more often.
Source: Song et al. 2021, arXiv:2011.13456, §I.2 (with one noise for the whole path).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.processes import Process
from unfog.errors import UserError


class Infill:
    """known (B or 1, *D): clean data; mask, bool, broadcast to it: true where it is known.

    align(x0, known, mask): x0 moved to where its known part lies, for denoisers that do not know where an item lies.
    """

    def __init__(
        self, denoiser: Denoiser, known: Tensor, mask: Tensor, align: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    ) -> None:
        if mask.dtype != torch.bool:
            raise UserError(f"guidance 'infill': mask must be of dtype bool, got {mask.dtype}")
        if not bool(torch.isfinite(known[mask.expand_as(known)]).all()):
            raise UserError("guidance 'infill': the known part holds a value that is not finite")
        self.denoiser, self.known, self.mask, self.align = denoiser, known, mask, align

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """x0 (B, *D) with the known part in place."""
        x0 = self.denoiser(x_t, t, cond)
        if self.align is not None:
            x0 = self.align(x0, self.known, self.mask)
        return torch.where(self.mask.to(x0.device), self.known.to(x0), x0)
