"""What benchmarks/samplers.py measures on: exact mixtures and a trained model, each asked at any noise level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unfog.diffusion import Gaussian, MixtureDenoiser, Noise, make_grid, make_plan, sample
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.schedules import EDM, Linear, Table
from unfog.model import load

DOUBLE = torch.float64
FINE_STEPS = 40  # of a model's fine trajectory, 3 evaluations each
PROMPTS = ("a red apple", "grinning face", "a house with a garden", "a black cat", "guitar", "snowflake", "rocket", "cup of tea")


def ring() -> tuple[Tensor, Tensor]:
    angle = torch.arange(8) * math.pi / 4
    return 1.3 * torch.stack([angle.cos(), angle.sin()], 1), torch.full((8, 2), 0.15)


def power() -> tuple[Tensor, Tensor]:
    rank = torch.arange(1, 65).to(DOUBLE)
    means = torch.randn(12, 64, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) * rank.pow(-0.75)
    widths = torch.linspace(0.5, 1.5, 12, dtype=DOUBLE)[:, None].sqrt() * (0.6 / rank)
    return means, widths


def curve() -> tuple[Tensor, Tensor]:
    u = torch.linspace(0, 1, 40, dtype=DOUBLE)
    helix = torch.stack([(4 * math.pi * u).cos(), (4 * math.pi * u).sin(), 2 * u - 1], 1)
    basis, _ = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(11), dtype=DOUBLE))
    return helix @ basis.T, torch.full((40, 16), 0.05)


def points() -> tuple[Tensor, Tensor]:
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(12), dtype=DOUBLE), torch.full((12, 3), 1e-6)


def field() -> tuple[Tensor, Tensor]:
    frequency = torch.fft.fftfreq(16, dtype=DOUBLE) * 16
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp_min(1).flatten()
    means = 1.2 * torch.randn(4, 256, generator=torch.Generator().manual_seed(13), dtype=DOUBLE) / radius
    return means, torch.linspace(0.6, 1.4, 4, dtype=DOUBLE)[:, None].sqrt() / radius


def moons() -> tuple[Tensor, Tensor]:
    angle = math.pi * torch.linspace(0, 1, 30, dtype=DOUBLE)
    upper, lower = torch.stack([angle.cos(), angle.sin()], 1), torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    return torch.cat([upper, lower]), torch.full((60, 2), 0.07)


def sparse() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(14)
    kept = torch.rand(20, 32, generator=generator).argsort(1) < 4
    return torch.randn(20, 32, generator=generator, dtype=DOUBLE) * kept, torch.full((20, 32), 0.1)


def onehot() -> tuple[Tensor, Tensor]:
    return 3.0 * torch.eye(10, dtype=DOUBLE), torch.full((10, 10), 0.02)


# How many noises: enough for the mean error; of "points" many, as an end is right or wrong there and one in 384 decided the best.
TARGETS: dict[str, tuple[Callable[[], tuple[Tensor, Tensor]], int]] = {
    "ring": (ring, 512), "power": (power, 192), "curve": (curve, 192), "points": (points, 4096), "field": (field, 64),
    "moons": (moons, 512), "sparse": (sparse, 192), "onehot": (onehot, 256),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One target on one path.

    at(y, level): E[x0] for y = x/α (B, *D) float64 at σ/α = level; at inf y is the noise. x (B, *D): the start; fine: where
    the exact trajectory from it ends.
    """

    path: str
    schedule: Any
    at: Callable[[Tensor, float], Tensor]
    x: Tensor
    fine: Tensor

    def denoiser(self, x: Tensor, t: float) -> Tensor:
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        x = x.to(DOUBLE)
        return self.at(x / alpha, sigma / alpha) if alpha > 0.0 else self.at(x, math.inf)

    def error(self, x: Tensor) -> float:
        gap = (x.to(DOUBLE) - self.fine).flatten(1)
        return float(gap.norm(dim=1).mean() / math.sqrt(gap.shape[1])) if bool(gap.isfinite().all()) else math.nan


def mixture(name: str) -> tuple[Callable[[Tensor, float], Tensor], tuple[int, ...], int]:
    """E[x0 | y, σ/α] of a target scaled to mean 0 and standard deviation 1; its shape and number of noises.

    σ/α is all that enters, so one schedule that reaches every level stands for all.
    """
    make, count = TARGETS[name]
    means, widths = (value.to(DOUBLE) for value in make())
    means = means - means.mean(0)
    unit = ((means**2).mean(0) + (widths**2).mean(0)).mean().sqrt()
    schedule = EDM(sigma_max=1e7)
    inner = MixtureDenoiser(Gaussian(schedule), torch.ones(len(means)), means / unit, stds=widths / unit)

    def at(y: Tensor, level: float) -> Tensor:
        return torch.zeros_like(y) if math.isinf(level) else inner(y, float(schedule.time(-2.0 * math.log(level))))

    return at, (means.shape[1],), count


def model(name: str) -> tuple[Callable[[Tensor, float], Tensor], tuple[int, ...], int]:
    """The same of a model folder, with the guidance that it samples with, one picture for each of PROMPTS."""
    made = load(name)
    styles = [made.styles[i % len(made.styles)] for i in range(len(PROMPTS))] if made.styles else [None] * len(PROMPTS)
    with torch.inference_mode(False):
        cond, uncond = made.condition(PROMPTS, styles), made.condition([""], [None])
    interval = made.defaults.get("interval")
    guided = ClassifierFree(made.denoiser, made.defaults["scale"], uncond, tuple(interval) if interval else None)
    schedule = made.denoiser.process.schedule

    def at(y: Tensor, level: float) -> Tensor:
        t = 1.0 if math.isinf(level) else float(schedule.time(-2.0 * math.log(level)))
        x = y if math.isinf(level) else y * float(schedule.alpha(t))
        with torch.no_grad():
            return guided(x.float(), t, cond).to(DOUBLE)

    return at, (4, made.size, made.size), len(PROMPTS)


def case(name: str, path: str, first_seed: int = 0) -> Case:
    """A target (or a model folder), its noises and where they lead."""
    at, shape, count = mixture(name) if name in TARGETS else model(name)
    schedule = Table.linear() if path == "ddpm" else Linear()
    x = Noise(range(100 + 10_000 * first_seed, 100 + 10_000 * first_seed + count)).normal(shape, 0, dtype=DOUBLE)
    steps = 100 if name in TARGETS else FINE_STEPS
    grid = make_grid("logsnr", schedule, steps, logsnr_min=-11.0, logsnr_max=14.0 if name in TARGETS else 9.0)
    found = Case(path, schedule, at, x, x)
    return replace(found, fine=sample(make_plan("dpmpp_3s", schedule, grid), found.denoiser, x))
