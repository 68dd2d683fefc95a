"""From data into the noise and between noises: what editing is made of, for any Gaussian model.

    noised      x_t = α(t)·x0 + σ(t)·ε, then sample from t on: what is coarser than σ/α stays (SDEdit, img2img)
    inversion   the probability-flow ODE from data to noise: sampling back returns the data
    slerp       between two noises along the sphere on which high-dimensional noise lies

Sources: Meng et al. 2022 (SDEdit), arXiv:2108.01073; Song et al. 2021 (DDIM inversion), arXiv:2010.02502, §4.3;
Shoemake 1985 (slerp), doi:10.1145/325165.325242.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.checks import call
from unfog.diffusion.grids import check_grid
from unfog.diffusion.noise import NoiseSource
from unfog.diffusion.plan import Plan
from unfog.diffusion.processes import Process, expand
from unfog.diffusion.samplers import SAMPLERS, sampler_name
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError


def noised(process: Process, x0: Tensor, noise: NoiseSource, t: float) -> Tensor:
    """x_t (B, *D) of x0 (B, *D) with the starting noise of each seed (stream 0): give it to a plan that starts at t."""
    if not 0.0 < t <= 1.0:
        raise UserError(f"noised: t (the strength) must be greater than 0 and at most 1, got {t}")
    eps = noise.normal(tuple(x0.shape[1:]), 0, device=x0.device, dtype=x0.dtype)
    if len(eps) != len(x0):
        raise UserError(f"noised: {len(x0)} items but {len(eps)} seeds; give one seed an item")
    return process.mix(x0, eps, t)


def inversion(name: str, schedule: Schedule, grid: np.ndarray, **options: Any) -> Plan:
    """The plan of sampler `name` walked from data to noise on `grid` reversed; run it on α(end)·x0.

    The grid must end above σ = 0 (`end=0.002`, say): at clean data the ODE has no slope in ε. Higher order returns nearer:
    the way back undoes it up to both discretisation errors. UserError for stochastic samplers and those with correctors.
    """
    key = sampler_name(name)
    falling = check_grid(grid)
    if not schedule.sigma(float(falling[-1])) > 0.0:
        raise UserError("inversion: the grid ends at clean data; end it a little above, for example end=0.002")
    if SAMPLERS[key].stochastic:
        raise UserError(f"inversion: sampler {key!r} draws noise; use a deterministic one, for example 'ddim' or 'dpmpp_3s'")
    plan = call(SAMPLERS[key].plan, f"sampler {key!r}", 2, schedule, falling[::-1].copy(), **options)
    if plan.stochastic:
        raise UserError("inversion: the options make this sampler stochastic; set eta, churn or tau to 0")
    return plan


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    """From a (B, *D) at weight 0 to b (B, *D) at 1 along the sphere, lengths mixed linearly; weight: float or (B,).

    Items that point the same way, or have no length, are mixed on the line; exactly opposite ones have no one way and are too.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise UserError(f"slerp: need two tensors of one shape (B, *D), got {tuple(a.shape)} and {tuple(b.shape)}")
    w = weight if isinstance(weight, Tensor) else torch.full((len(a),), float(weight))
    w = w.to(device=a.device, dtype=torch.float64)
    first, second = a.double().flatten(1), b.double().flatten(1)
    lengths = first.norm(dim=1), second.norm(dim=1)
    cosine = ((first * second).sum(1) / (lengths[0] * lengths[1]).clamp_min(1e-300)).clamp(-1.0, 1.0)
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    straight = (sine < 1e-6) | (lengths[0] == 0.0) | (lengths[1] == 0.0)
    safe = torch.where(straight, torch.ones_like(sine), sine)
    length = (1.0 - w) * lengths[0] + w * lengths[1]
    left = torch.where(straight, 1.0 - w, torch.sin((1.0 - w) * angle) / safe * length / lengths[0].clamp_min(1e-300))
    right = torch.where(straight, w, torch.sin(w * angle) / safe * length / lengths[1].clamp_min(1e-300))
    mixed = expand(left, a) * a + expand(right, b) * b
    for edge, end in ((0.0, a), (1.0, b)):  # to the bit
        mixed = torch.where(expand(w == edge, a).bool(), end, mixed)
    return mixed
