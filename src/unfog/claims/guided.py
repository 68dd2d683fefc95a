"""What guidance is measured on, for the two claims about it: two overlapping classes with exact denoisers, and captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.claims import emoji
from unfog.claims.claim import Say, Settings
from unfog.claims.mixtures import MIXTURES, Draws, Mixture, starts
from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.grids import make_grid
from unfog.diffusion.guidance import guide
from unfog.diffusion.guidance.threshold import Threshold
from unfog.diffusion.plan import sample
from unfog.diffusion.processes import Gaussian, Process
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import Cosine
from unfog.evaluation.coverage import diversity, prdc

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0)
PICTURE_SCALES = (1.0, 2.0, 3.0, 5.0, 10.0)
TOP = 10.0
STEPS = 20  # of a picture, the model's default
FINE = 100  # of a point: what is seen is guidance, not the sampler
INTERVAL = (-3.0, 3.0)  # log-SNR
QUANTILE = 0.001
COVERED = 1_000  # points, made and exact, of which coverage is counted
MENDED = ("rescale", "interval", "apg", "threshold")  # what is said to undo over-saturation

Make = Callable[[Denoiser, float, Cond], Denoiser]  # (denoiser, scale, the empty condition) -> guided


class Classes:
    """The exact denoiser of a mixture's classes: cond["class"] is 0, 1, or 2 for both."""

    def __init__(self, mixture: Mixture) -> None:
        self.process: Process = Gaussian(Cosine())
        self.of = [mixture.denoiser(Gaussian(Cosine()), label) for label in (0, 1, None)]

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """E[x0 | x_t, class] (B, d); t a float."""
        assert cond is not None
        out = torch.empty_like(x_t)
        for label in cond["class"].unique().tolist():
            here = cond["class"] == label
            out[here] = self.of[label](x_t[here], t)
        return out


class InColours:
    """Dynamic thresholding where the data is bounded: x0 as colours in [−1, 1], thresholded, and back."""

    def __init__(self, denoiser: Denoiser, codec: Any) -> None:
        self.denoiser = denoiser
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (codec.mean, codec.std))

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Thresholded x0 (B, 4, H, W)."""
        colours = 2.0 * (self.denoiser(x_t, t, cond) * self.std + self.mean) - 1.0
        within = Threshold(_Fixed(self.process, colours))(x_t, t)
        return (0.5 * (within + 1.0) - self.mean) / self.std


@dataclass(frozen=True)
class _Fixed:
    """A denoiser whose answer is there already."""

    process: Process
    x0: Tensor

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        return self.x0


def ways(limit: float | None) -> dict[str, Make]:
    """Plain guidance and each way to mend it; limit: of the data's range, None for pictures, whose colours have their own."""

    def threshold(denoiser: Denoiser, scale: float, uncond: Cond) -> Denoiser:
        plain = guide("cfg", denoiser, scale=scale, uncond=uncond)
        return InColours(plain, emoji.model().codec) if limit is None else Threshold(plain, limit)

    return {
        "plain": lambda d, scale, uncond: guide("cfg", d, scale=scale, uncond=uncond),
        "rescale": lambda d, scale, uncond: guide("rescale", d, scale=scale, uncond=uncond, amount=0.7),
        "interval": lambda d, scale, uncond: guide("cfg", d, scale=scale, uncond=uncond, interval=INTERVAL),
        "apg": lambda d, scale, uncond: guide("apg", d, scale=scale, uncond=uncond),
        "threshold": threshold,
    }


@dataclass(frozen=True)
class Points:
    """Points made of class 0 (n, d): how sure the exact classifier is, how wide they lie, which lie beyond the class, how
    far from the middle they are, over the class's own, and how much of the class they cover."""

    sure: float
    spread: float
    beyond: float
    far: float
    coverage: float


class Cloud:
    """Class 0 of "clouds", and what is measured of points that claim to be of it."""

    def __init__(self, n: int, steps: int) -> None:
        self.mixture, self.n, self.steps = MIXTURES["clouds"](), n, steps
        self.classes = Classes(self.mixture)
        real = self.mixture.draw(100_000, 5, 0)
        self.real = real[: min(n, COVERED)].numpy()
        self.edge = float(np.quantile(self.density(real).numpy(), QUANTILE))
        self.width, self.length = float(real.var(0).sum().sqrt()), float(real.norm(dim=1).mean())
        self.limit = float(np.quantile(real.abs().numpy(), 1.0 - QUANTILE))

    def density(self, x: Tensor) -> Tensor:
        """log p(x | class 0) (n,), but for a constant."""
        return self.mixture.log_prob(x)[:, self.mixture.label == 0].logsumexp(1)

    def made(self, way: Make, scale: float, seed: int) -> Points:
        """Points of one run, measured."""
        process = Gaussian(Cosine())
        plan = make_plan("dpmpp_2m", Cosine(), make_grid("logsnr", Cosine(), self.steps))
        guided = way(self.classes, scale, {"class": torch.tensor([2])})
        cond = {"class": torch.zeros(self.n, dtype=torch.long)}
        x = sample(plan, lambda x, t: guided(x, t, cond), starts(process, self.n, 2, seed, plan.start), Draws(self.n, seed))
        each = self.mixture.log_prob(x)
        sure = (self.density(x) - each.logsumexp(1)).exp().mean()
        beyond = (self.density(x) < self.edge).double().mean()
        far = x.norm(dim=1).mean()
        covered = prdc(self.real, x[:COVERED]).coverage
        return Points(float(sure), float(x.var(0).sum().sqrt()) / self.width, float(beyond), float(far) / self.length, covered)


@dataclass(frozen=True)
class Shown:
    """Pictures of captions, several of each: which fit their caption (N,), how different those of one caption are (captions,),
    colourfulness and overshoot (N,); clusters names the caption of each."""

    fits: NDArray[np.bool_]
    differ: NDArray[np.float64]
    chroma: NDArray[np.float64]
    overshoot: NDArray[np.float64]
    clusters: list[int]


def shown(way: str, scale: float, settings: Settings, say: Say) -> Shown:
    """Pictures of held-out pairs' captions at a scale; all scales and ways share captions and noise, both claims the pictures."""
    say(f"pictures, {way}, scale {scale:g}")
    return _shown(way, scale, settings)


@lru_cache(maxsize=32)
def _shown(way: str, scale: float, settings: Settings) -> Shown:
    captions, each = (2, 2) if settings.quick else (16, 4)
    steps = 5 if settings.quick else STEPS
    rows = [row for row in emoji.rows("heldout_pair", captions, settings.seed) for _ in range(each)]
    make = ways(None)[way]
    guided = None if scale == 1.0 else (lambda d, none: make(d, scale, none))
    x0 = emoji.made(rows, emoji.plan("auto", steps), guided, settings.seed)
    pictures = emoji.decoded(x0)
    found = emoji.features(pictures).reshape(captions, each, -1)
    return Shown(
        emoji.agrees(pictures, rows),
        np.array([diversity(part) for part in found]),
        emoji.chroma(pictures),
        emoji.overshoot(x0),
        rows,
    )
