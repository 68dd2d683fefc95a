"""Exact mixtures to measure claims on, and distances between clouds of points with their noise floor.

    p(x0) = Σ w_k N(μ_k, s_k²),     SW₂² = mean over directions u of ∫ (F⁻¹_{u·x} − F⁻¹_{u·y})²

Everything about them is known: the denoiser, the density at any noise level, draws without a sampler's error.
Source: Rabin et al. 2012, "Wasserstein barycenter and its application to texture mixing" (sliced distance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.claims.claim import Figure
from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.likelihood import student
from unfog.diffusion.processes import Gaussian, Process

DOUBLE = torch.float64
DIRECTIONS = 64


@dataclass(frozen=True)
class Round:
    """`MixtureDenoiser` for components that are equally wide in all directions: matrix products, several times as fast.

    x0 = Σ r_k·(μ_k + g_k·(x_t − α·μ_k)),  g_k = α·s_k²/(α²·s_k² + σ²),  r_k the posterior of component k
    """

    process: Process
    weights: Tensor
    means: Tensor
    stds: Tensor

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """E[x0 | x_t] (B, d) in x_t's dtype, computed in float64; t a float."""
        x, alpha, sigma = x_t.to(DOUBLE), float(self.process.schedule.alpha(t)), float(self.process.schedule.sigma(t))
        total = ((alpha * self.stds) ** 2 + sigma**2).clamp_min(1e-200)
        square = x.square().sum(1, keepdim=True) - 2.0 * alpha * (x @ self.means.T) + alpha**2 * self.means.square().sum(1)
        size = x.shape[1]
        share = torch.softmax(torch.log(self.weights) - 0.5 * square / total - 0.5 * size * torch.log(total), 1)
        gain = alpha * self.stds**2 / total
        x0 = (share * (1.0 - alpha * gain)) @ self.means + (share @ gain)[:, None] * x
        return x0.to(x_t.dtype)


@dataclass(frozen=True)
class Mixture:
    """weights (K,), means (K, d), stds (K,); mean 0 and mean square 1 a dimension; label (K,) is each component's class."""

    weights: Tensor
    means: Tensor
    stds: Tensor
    label: Tensor

    def denoiser(self, process: Gaussian, label: int | None = None) -> Denoiser:
        """The exact denoiser of all, or of one class."""
        kept = slice(None) if label is None else self.label == label
        return Round(process, self.weights[kept], self.means[kept], self.stds[kept])

    def draw(self, n: int, seed: int, label: int | None = None) -> Tensor:
        """n exact draws (n, d) float64, of all or of one class."""
        rng = np.random.default_rng([seed, 17])
        weights = self.weights.numpy() * (1.0 if label is None else (self.label == label).numpy())
        which = torch.from_numpy(rng.choice(len(weights), n, p=weights / weights.sum()))
        noise = torch.from_numpy(rng.standard_normal((n, self.means.shape[1])))
        return self.means[which] + self.stds[which, None] * noise

    def log_prob(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        """log p(x_t) (n, K) of each component with its weight; logsumexp over the last axis is the density."""
        variance = (alpha * self.stds) ** 2 + sigma**2
        square = torch.cdist(x, alpha * self.means, compute_mode="donot_use_mm_for_euclid_dist").square()
        size = x.shape[1]
        log_weights = torch.log(self.weights / self.weights.sum())
        return log_weights - 0.5 * square / variance - 0.5 * size * torch.log(2.0 * math.pi * variance)


def _unit(means: Tensor, stds: Tensor, label: Tensor) -> Mixture:
    means = means.to(DOUBLE) - means.to(DOUBLE).mean(0)
    unit = ((means**2).mean(0) + (stds**2).mean()).mean().sqrt()
    return Mixture(torch.full((len(means),), 1 / len(means), dtype=DOUBLE), means / unit, stds.to(DOUBLE) / unit, label)


def ring() -> Mixture:
    """Eight narrow spots on a circle (d 2), every second one of class 1."""
    angle = torch.arange(8, dtype=DOUBLE) * math.pi / 4
    return _unit(torch.stack([angle.cos(), angle.sin()], 1), torch.full((8,), 0.12, dtype=DOUBLE), torch.arange(8) % 2)


def curve() -> Mixture:
    """A helix of forty narrow spots (d 16), its upper half of class 1."""
    u = torch.linspace(0, 1, 40, dtype=DOUBLE)
    helix = torch.stack([(4 * math.pi * u).cos(), (4 * math.pi * u).sin(), 2 * u - 1], 1)
    basis, _ = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(11), dtype=DOUBLE))
    return _unit(helix @ basis.T, torch.full((40,), 0.05, dtype=DOUBLE), (torch.arange(40) >= 20).long())


def clouds() -> Mixture:
    """Two classes of three wide spots each that overlap a little (d 2), as classes of pictures do."""
    means = torch.tensor([[-1.3, 0.9], [-0.5, -0.2], [-1.2, -1.1], [0.5, 0.3], [1.3, 1.2], [1.1, -0.9]])
    return _unit(means, torch.full((6,), 0.4, dtype=DOUBLE), torch.tensor([0, 0, 0, 1, 1, 1]))


MIXTURES = {"ring": ring, "curve": curve, "clouds": clouds}


def sliced(x: Tensor, y: Tensor, seed: int = 0, directions: int = DIRECTIONS) -> float:
    """Sliced Wasserstein-2 distance of two clouds (n, d) of equal size, over fixed random directions."""
    rng = np.random.default_rng([seed, 23])
    u = torch.from_numpy(rng.standard_normal((x.shape[1], directions)))
    u = u / u.norm(dim=0)
    a, b = (torch.sort(cloud.to(DOUBLE) @ u, dim=0).values for cloud in (x, y))
    return float((a - b).square().mean().sqrt())


def floor(mixture: Mixture, n: int, seed: int, repeats: int, label: int | None = None) -> list[float]:
    """The distance of two exact clouds of n, several times: what no sampler can beat but by luck."""
    return [
        sliced(mixture.draw(n, seed + 2000 + 2 * k, label), mixture.draw(n, seed + 2001 + 2 * k, label)) for k in range(repeats)
    ]


def over_runs(what: str, values: Sequence[float], each: str) -> Figure:
    """The mean of a figure over independent runs with Student's interval; each: what one run was."""
    count = len(values)
    mean = float(np.mean(values))
    half = student(0.95, count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Figure(what=what, value=mean, low=mean - half, high=mean + half, n=count, of=f"runs of {each}")


def end(value: float | None) -> float:
    """An end of an interval, NaN where there is none."""
    return math.nan if value is None else value


def starts(process: Gaussian, n: int, size: int, seed: int, t: float = 1.0) -> Tensor:
    """Where sampling begins: n draws (n, size) float64 of the prior at t."""
    rng = np.random.default_rng([seed, 31])
    return process.prior(torch.from_numpy(rng.standard_normal((n, size))), t)


class Draws:
    """Fresh normal noise by stream, for samplers on clouds: one generator a stream instead of one an item, which is faster."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed = n, seed

    def normal(self, shape: Sequence[int], stream: int, device: Any = "cpu", dtype: torch.dtype = DOUBLE) -> Tensor:
        """(n, *shape)."""
        rng = np.random.default_rng([self.seed, 37, stream])
        return torch.from_numpy(rng.standard_normal((self.n, *shape))).to(dtype).to(device)
