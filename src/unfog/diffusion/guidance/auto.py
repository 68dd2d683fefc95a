"""Autoguidance: away from what a weaker version of the model says.

    D = D_weak + scale·(D − D_weak)        scale 1 = off, and the weak model is not asked

The weak model makes the same mistakes, only larger: an early snapshot, a smaller network. Unlike classifier-free guidance
it does not trade variety for quality. Source: Karras et al. 2024, arXiv:2406.02507, eq. 3.
"""

from __future__ import annotations

from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.processes import Process


class Autoguidance:
    """scale: a number, or (B,). weak: a denoiser of the same process, given the same condition, or `weak_cond`.

    interval: (low, high) in log-SNR outside which scale is 1.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weak: Denoiser,
        scale: float | Tensor,
        weak_cond: Cond | None = None,
        interval: tuple[float, float] | None = None,
    ) -> None:
        self.denoiser, self.weak, self.weak_cond = denoiser, weak, weak_cond
        self.inside = ClassifierFree(denoiser, scale, {}, interval)

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Guided x0 (B, *D)."""
        strong = self.denoiser(x_t, t, cond)
        scales = self.inside.scales(t, x_t.shape[0])
        if bool((scales == 1.0).all()):
            return strong
        weak = self.weak(x_t, t, cond if self.weak_cond is None else self.weak_cond)
        factor = scales.to(strong.device, strong.dtype).reshape(-1, *(1,) * (strong.ndim - 1))
        return weak + factor * (strong - weak)
