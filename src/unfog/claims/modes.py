"""Mixtures whose modes can be counted, the ring of 8 and the grid of 25, and the count.

A sample is of high quality within three standard deviations of its nearest mean. The usual definition calls a mode found if a
single such sample lies there; here a mode is *recovered* if it has a quarter of its fair share, since a generator that puts
one sample in a thousand on a mode has dropped it. Both are given.
Source: Srivastava et al. 2017 (VEEGAN), arXiv:1705.07761, sec. 5.1 (high quality, modes found); Lin et al. 2018 (PacGAN),
arXiv:1712.04086, sec. 4.1 (the two mixtures and their sizes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unfog.claims.mixtures import Mixture

NEAR = 3.0  # standard deviations
SHARE = 0.25  # of a mode's fair share, from which on it counts as recovered
WITHIN = 1 - math.exp(-(NEAR**2) / 2)  # of a Gaussian in the plane
ROUND = 1 - NEAR**2 / 2 * math.exp(-(NEAR**2) / 2) / WITHIN  # mean of |x − μ|²/(2·std²) of what is within


def _equal(means: Tensor, std: float) -> Mixture:
    """Equal modes at means (K, 2), moved and scaled to mean 0 and mean square 1 a coordinate."""
    means = means - means.mean(0)
    scale = math.sqrt(float(means.square().mean()) + std**2)
    count = len(means)
    ones = torch.ones(count, dtype=torch.float64)
    return Mixture(ones / count, means / scale, ones * std / scale, torch.arange(count))


def ring() -> Mixture:
    """Eight modes of std 0.01 on a circle of radius 1."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return _equal(torch.stack([angle.cos(), angle.sin()], 1), 0.01)


def grid() -> Mixture:
    """Five by five modes of std 0.05, two apart."""
    line = torch.arange(5, dtype=torch.float64) * 2
    return _equal(torch.cartesian_prod(line, line), 0.05)


COUNTABLE = {"ring": ring, "grid": grid}


def draw(mixture: Mixture, n: int, generator: torch.Generator) -> Tensor:
    """n points (n, 2) float32 of equal modes: training data, drawn anew for each step."""
    chosen = torch.randint(len(mixture.means), (n,), generator=generator)
    return mixture.means.float()[chosen] + mixture.stds.float()[chosen, None] * torch.randn(n, 2, generator=generator)


@dataclass(frozen=True)
class Modes:
    """What n samples of a mixture show; shares are of all n.

    recovered: modes with SHARE of their fair share; found: modes with any; quality: share of high quality; overlap: mass of the
    mixture that is matched, Σ min(share of mode k, its fair share), 1 if exact; divergence: KL of the histogram of high-quality
    samples over modes to uniform, in nats (log K where there are none); spread: mean squared distance of high-quality samples
    from their mode over what it should be (1; a generator that shrinks modes to points has 0).
    """

    n: int
    modes: int
    recovered: int
    found: int
    quality: float
    overlap: float
    divergence: float
    spread: float


def modes(mixture: Mixture, samples: ArrayLike) -> Modes:
    """The count of samples (n, 2); one that is not finite belongs to no mode. Raises ValueError for another shape."""
    x, means, std = np.asarray(samples, np.float64), mixture.means.numpy(), mixture.stds.numpy()
    if x.ndim != 2 or x.shape[1] != means.shape[1] or not len(x):
        raise ValueError(f"modes are counted over samples (n, {means.shape[1]}), not {x.shape}")
    count = len(means)
    with np.errstate(invalid="ignore", over="ignore"):
        square = ((x[:, None] - means) ** 2).sum(-1) / std**2
    square = np.where(np.isfinite(square), square, np.inf)
    nearest, distance = square.argmin(1), square.min(1)
    good = distance < NEAR**2
    held = np.bincount(nearest[good], minlength=count)
    share, fair = held / len(x), WITHIN / count
    part = held / max(held.sum(), 1)
    entropy = -float((part * np.log(np.where(part > 0, part, 1.0))).sum())
    return Modes(
        n=len(x),
        modes=count,
        recovered=int((share >= SHARE * fair).sum()),
        found=int((held > 0).sum()),
        quality=float(good.mean()),
        overlap=float(np.minimum(share, fair).sum() / WITHIN),
        divergence=math.log(count) - entropy,
        spread=float(distance[good].mean() / 2 / ROUND) if good.any() else 0.0,
    )
