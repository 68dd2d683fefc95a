"""What a network predicts, measured on it: two calls, on noise alone and on a little noise over a smooth field.

    x_T = ε          an eps network says ε;  a v or x0 network says what it takes for the data, which ε does not tell
    x_t = α·f + σ·ε  at log-SNR 1: read as what it is, the network comes nearer to the field f than by saying nothing

A network that has learned nothing fits none of these, and then nothing is said: folders are never refused by chance. At the end
of a schedule with zero terminal SNR a v network does not heed its input, elsewhere it hands α·ε through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.noise import Noise
from unfog.modalities.contract import Cond

LOW = 1.0  # log-SNR of the second call
ITEMS = 2
BETTER = 0.7  # of the error of one who says nothing


@dataclass(frozen=True)
class Found:
    """prediction: eps, v, x0, or None where the network fits none. zero: a v network trained with zero terminal SNR."""

    prediction: str | None
    zero: bool
    figures: dict[str, float]


@torch.no_grad()
def probe(denoiser: Preconditioned, shape: tuple[int, ...], ask: Callable[[int], Cond], device: str) -> Found:
    """shape (C, h, w) of x0. ask(n): the condition of n empty prompts."""
    schedule, noise = denoiser.process.schedule, Noise(range(ITEMS))
    eps = noise.normal(shape, 0, device=device)
    coarse = noise.normal((shape[0], 4, 4), 1, device=device)
    field = F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=False)
    field = field / field.std()
    cond = ask(ITEMS)
    twice = {key: torch.cat([value, value]) for key, value in cond.items()}
    top = denoiser.raw(torch.cat([eps, -eps]), 1.0, twice).float()
    odd = 0.5 * (top[:ITEMS] - top[ITEMS:])  # what the input alone changes
    t = float(schedule.time(LOW))
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x_t = alpha * field + sigma * eps
    out = denoiser.raw(x_t, t, cond).float()
    slope = float((odd * eps).mean() / (eps * eps).mean())
    rest, spread = (float(value.square().mean().sqrt()) for value in (odd - eps, odd))
    nothing = (alpha * x_t - field).square().mean()  # the error of a v network that says 0
    readings = {"eps": (x_t - sigma * out) / alpha, "v": alpha * x_t - sigma * out, "x0": out}
    errors = {name: float((x0 - field).square().mean() / nothing) for name, x0 in readings.items()}
    figures = {"slope": slope, "rest": rest, "spread": spread, **errors}
    if not all(abs(value) < 1e6 for value in figures.values()):  # NaN too
        return Found(None, False, figures)
    if slope > 0.8 and rest < 0.5 and errors["eps"] < BETTER:
        return Found("eps", False, figures)
    best = min(("v", "x0"), key=lambda name: errors[name])
    if abs(slope) > 0.4 or spread > 0.8 or errors[best] > BETTER:
        return Found(None, False, figures)
    end = float(schedule.alpha(1.0)) if math.isfinite(float(schedule.logsnr(1.0))) else 0.0
    return Found(best, best == "v" and end > 0.03 and spread < 0.25 * end, figures)
