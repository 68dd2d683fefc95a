"""Small networks trained on the spot, in seconds: what claims about training are measured on.

Adam on the v-prediction loss, t uniform and stratified, cosine schedule, the learning rate falling to 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.denoisers import Cond, Denoiser, Preconditioned
from unfog.diffusion.grids import make_grid
from unfog.diffusion.losses import denoising_loss, stratified
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import Cosine
from unfog.networks import NETWORKS

RATE = 2e-3
STEPS = 30  # of dpmpp_2m, when sampling
LOWEST = 0.002  # t; below it nothing is left to learn


class PointNetwork(nn.Module):
    """Points (B, d), log-SNR (B,), cond["class"] (B,) or none -> (B, d): three hidden layers."""

    def __init__(self, size: int, classes: int = 0, width: int = 128) -> None:
        super().__init__()
        self.level = nn.Linear(9, width)
        self.classes = nn.Embedding(classes, width) if classes else None
        self.first, self.last = nn.Linear(size, width), nn.Linear(width, size)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        place = logsnr[:, None].clamp(-12, 12) / 4.0
        waves = place * torch.tensor([0.5, 1.0, 2.0, 4.0])
        told = self.level(torch.cat([place, waves.sin(), waves.cos()], 1))
        if self.classes is not None and cond is not None:
            told = told + self.classes(cond["class"])
        y = self.first(x)
        for layer in self.hidden:
            y = y + layer(F.silu(y + told))
        return self.last(F.silu(y))


def picture_network(channels: int, unshuffle: int, widths: Sequence[int]) -> Callable[[], nn.Module]:
    """A small U-Net for pictures without conditions."""
    count = len(widths)

    def build() -> nn.Module:
        settings = {"blocks": [1] * count, "attention": [False] * count, "embedding": 64, "text_dim": 0}
        return NETWORKS["unet"](channels=channels, unshuffle=unshuffle, widths=list(widths), **settings)

    return build


def built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose first weights are the seed's, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def trained(
    build: Callable[[], nn.Module],
    x0: Tensor,
    steps: int,
    seed: int,
    batch: int = 64,
    label: Tensor | None = None,
    drop: float = 0.0,
    empty: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Preconditioned:
    """A denoiser of x0 (N, *D) float32; label (N,) is its class, which becomes `empty` in a share `drop` of the cases."""
    process = Gaussian(Cosine())
    network = built(build, seed).train()
    denoiser = Preconditioned(network, process, "v")
    optimiser = torch.optim.Adam(network.parameters(), RATE, betas=(0.9, 0.99))
    draws = torch.Generator().manual_seed(seed + 1)
    for step in range(steps):
        which = torch.randint(len(x0), (batch,), generator=draws)
        t = LOWEST + (1.0 - LOWEST) * stratified(torch.rand(batch, generator=draws).clamp(1e-6, 1 - 1e-6))
        eps = torch.randn(batch, *x0.shape[1:], generator=draws)
        cond = None
        if label is not None:
            gone = torch.rand(batch, generator=draws) < drop
            cond = {"class": torch.where(gone, empty, label[which])}
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / 50)
            group["lr"] = RATE * warm * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        optimiser.zero_grad()
        denoising_loss(denoiser, x0[which], cond, t, eps).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 500 == 0:
            say(f"step {step + 1} of {steps}")
    network.eval().requires_grad_(False)
    return denoiser


@torch.no_grad()
def draw(denoiser: Denoiser, shape: Sequence[int], n: int, seed: int, cond: Cond | None = None, steps: int = STEPS) -> Tensor:
    """n samples (n, *shape): item i from noise of seed + i."""
    schedule = denoiser.process.schedule
    plan = make_plan("dpmpp_2m", schedule, make_grid("logsnr", schedule, steps))
    out = []
    for first in range(0, n, 128):
        noise = Noise(range(seed + first, seed + min(first + 128, n)))
        x = denoiser.process.prior(noise.normal(shape, 0), plan.start)
        part = None if cond is None else {key: value[first : first + 128] for key, value in cond.items()}
        out.append(sample(plan, lambda x_t, t, part=part: denoiser(x_t, t, part), x, noise))  # type: ignore[misc]
    return torch.cat(out)


@torch.no_grad()
def errors(
    denoiser: Denoiser, x0: Tensor, seed: int, cond: Cond | None = None, levels: Sequence[float] = (-2, 0, 2, 4)
) -> np.ndarray:
    """Mean squared error of x0 (N,), over log-SNR levels and noise that are the same for all denoisers, in units of the noise."""
    schedule, total = denoiser.process.schedule, torch.zeros(len(x0), dtype=torch.float64)
    for k, level in enumerate(levels):
        t = float(schedule.time(float(level)))
        eps = Noise(range(seed, seed + len(x0))).normal(x0.shape[1:], 1000 + k)
        guess = denoiser(denoiser.process.mix(x0, eps, t), t, cond)
        # the error of x0 times SNR is that of the noise; halved in v's way, so that no level rules the mean
        total += (guess - x0).double().flatten(1).square().mean(1) * math.exp(level) / (1.0 + math.exp(level)) / len(levels)
    return total.numpy()
