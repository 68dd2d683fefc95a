"""ΠGDM: samples that agree with a linear measurement, such as super-resolution, deblurring, missing parts.

    y = A·x0 + noise·z        D ← D + (σ²/α)·Jᵀ·Aᵀ·(r²·A·Aᵀ + noise²)⁻¹·(y − A·D)
    J = ∂D/∂x_t,   r² = σ²·s²/(α²·s² + σ²)

Exact for x0 ~ N(mean, s²). The inverse is taken by conjugate gradients, Aᵀ by automatic differentiation, so `measure` is
all that is asked for. Source: Song et al. 2023, ICLR, "Pseudoinverse-guided diffusion models", eq. 7 and 8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.guidance.cfg import inner
from unfog.diffusion.processes import Process, expand
from unfog.errors import UserError


class Posterior:
    """measure: linear, (B, *D) -> the shape of y (B, *M). noise ≥ 0: its standard deviation. data_std: s, of the data.

    jacobian: false takes J = (α/σ²)·r², which needs no gradient of the network and is right for isotropic data.
    iterations: of conjugate gradients; where A·Aᵀ is a multiple of the identity (masks, mean pooling) one is exact.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        measure: Callable[[Tensor], Tensor],
        y: Tensor,
        noise: float = 0.0,
        data_std: float = 1.0,
        jacobian: bool = True,
        iterations: int = 20,
    ) -> None:
        if not (noise >= 0.0 and data_std > 0.0 and iterations >= 1):
            raise UserError("guidance 'posterior': need noise >= 0, data_std > 0 and iterations >= 1")
        self.denoiser, self.measure, self.y = denoiser, measure, y
        self.noise, self.data_std, self.jacobian, self.iterations = noise, data_std, jacobian, iterations

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def _adjoint(self, u: Tensor, like: Tensor) -> Tensor:
        """Aᵀ·u."""
        at = torch.zeros_like(like).requires_grad_()
        (out,) = torch.autograd.grad(self.measure(at), at, u)
        return out

    def _solve(self, residual: Tensor, like: Tensor, variance: Tensor) -> Tensor:
        """(r²·A·Aᵀ + noise²)⁻¹·residual by conjugate gradients, each item for itself."""
        variance = variance.reshape(-1, *(1,) * (residual.ndim - 1))
        tiny = torch.finfo(residual.dtype).tiny

        def apply(u: Tensor) -> Tensor:
            return variance * self.measure(self._adjoint(u, like)) + self.noise**2 * u

        out, rest = torch.zeros_like(residual), residual
        direction, size = rest, inner(rest, rest)
        enough = size * torch.finfo(residual.dtype).eps ** 2
        for _ in range(self.iterations):
            image = apply(direction)
            live = size > enough
            step = torch.where(live, size / inner(direction, image).clamp_min(tiny), 0.0)
            out, rest = out + step * direction, rest - step * image
            before, size = size, inner(rest, rest)
            if not bool((size > enough).any()):
                break
            direction = rest + size / before.clamp_min(tiny) * direction
        return out

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Guided x0 (B, *D)."""
        schedule, square = self.process.schedule, self.data_std**2
        with torch.inference_mode(False), torch.enable_grad():
            x = x_t.detach().clone().requires_grad_(self.jacobian)
            x0 = self.denoiser(x, t, cond)
            fixed = x0.detach().clone()
            alpha, sigma = (expand(torch.as_tensor(f(t), dtype=torch.float64), fixed) for f in (schedule.alpha, schedule.sigma))
            alpha, sigma = (v.to(fixed).expand(len(fixed), *(1,) * (fixed.ndim - 1)) for v in (alpha, sigma))
            variance = sigma**2 * square / (alpha**2 * square + sigma**2)
            residual = (self.y.to(fixed) - self.measure(fixed)).detach()
            pull = self._adjoint(self._solve(residual, fixed, variance), fixed).detach()
            if not self.jacobian:
                return fixed + variance * pull
            (gradient,) = torch.autograd.grad(x0, x, pull)
        factor = sigma**2 / alpha.clamp_min(torch.finfo(fixed.dtype).tiny)
        # σ²/α·J is the variance of x0 given x_t; where α = 0 it is 0·∞, and known without J
        return fixed + torch.where(alpha > 0.0, factor * gradient, variance * pull)
