"""A GAN of today, and a denoiser trained beside it by the same optimiser, average, batches and learning-rate fall.

    D:  softplus(D(G z) − D(x)) + γ/2·|∇D(x)|² + γ/2·|∇D(G z)|²        G:  softplus(D(x) − D(G z))           relativistic
    D:  softplus(−D(x)) + softplus(D(G z)) + the same                  G:  softplus(−D(G z))                 non-saturating

Source: Huang et al. 2024 (R3GAN), arXiv:2501.05441 (the first, with both penalties); Goodfellow et al. 2014, arXiv:1406.2661
(the second); Mescheder et al. 2018, arXiv:1801.04406 (the penalties); Karras et al. 2020, arXiv:1912.04958 (lazily).

Runs of several seeds or settings may go side by side: a batch holds run after run, and networks keep them apart (`MLP`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import LogNormal, Weight, denoising_loss, stratified
from unfog.training.ema import PowerEMA

Draw = Callable[[int, torch.Generator], Tensor]  # n, generator -> (n, *D) of the data
EMA_EVERY = 4  # steps
POINTS = 50  # on a loss curve


@dataclass(frozen=True)
class Settings:
    """How a run trains. lr and seeds: one a run. fall: last share of the run over which the learning rate falls to 0."""

    steps: int
    batch: int
    lr: tuple[float, ...]
    seeds: tuple[int, ...]
    fall: float = 0.5
    ema: float = 0.05


@dataclass(frozen=True)
class Adversary:
    """What a GAN alone has. gamma: weight of both penalties, one a run; every: steps from one penalised step to the next."""

    gamma: tuple[float, ...]
    latent: int = 8
    relativistic: bool = True
    every: int = 1


@dataclass(frozen=True)
class Trained:
    """The averaged network; curve: rows of (step, loss of each run); seconds: processor time of all runs together."""

    network: nn.Module
    curve: list[list[float]]
    seconds: float


class Adam:
    """Adam with a learning rate for each run: parameters are (R, ...) of R runs, or of any shape where there is one.

    Source: Kingma and Ba 2014, arXiv:1412.6980, alg. 1.
    """

    def __init__(self, network: nn.Module, lr: Sequence[float], betas: tuple[float, float]) -> None:
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.lr, self.betas, self.count = torch.tensor(lr), betas, 0
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, loss: Tensor, scale: float) -> None:
        """One step down the gradient of `loss`, with learning rates scaled by `scale`."""
        gradients = torch.autograd.grad(loss, self.parameters)
        self.count += 1
        first, second = self.betas
        rate = -scale / (1 - first**self.count) * self.lr
        torch._foreach_lerp_(self.means, gradients, 1 - first)
        torch._foreach_mul_(self.squares, second)
        torch._foreach_addcmul_(self.squares, gradients, gradients, 1 - second)
        spread = torch._foreach_div(self.squares, 1 - second**self.count)
        torch._foreach_sqrt_(spread)
        torch._foreach_add_(spread, 1e-8)
        for p, mean, divisor in zip(self.parameters, self.means, spread, strict=True):
            if len(self.lr) == 1:
                p.addcdiv_(mean, divisor, value=float(rate))
            else:
                p.add_(rate.reshape(-1, *(1,) * (p.ndim - 1)) * (mean / divisor))


def scale_at(settings: Settings, step: int) -> float:
    """What the learning rate is scaled by at `step`: 1, then a linear fall to 0."""
    return min(1.0, (settings.steps - step) / max(settings.fall * settings.steps, 1e-9))


def slope(scores: Tensor, points: Tensor) -> Tensor:
    """|∇_x D(x)|² of each point, (B,), differentiable: scores (B, 1) of points (B, *D) that require a gradient."""
    (gradient,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor, gamma: Tensor, relativistic: bool, weight: float = 1.0) -> Tensor:
    """The critic's loss of each item, (B,); gamma (B,); weight: of the penalties, 0 leaves them out."""
    real, fake = real.detach().requires_grad_(weight > 0), fake.detach().requires_grad_(weight > 0)
    on_real, on_fake = critic(real), critic(fake)
    apart = F.softplus(on_fake - on_real) if relativistic else F.softplus(-on_real) + F.softplus(on_fake)
    if not weight:
        return apart[:, 0]
    return apart[:, 0] + weight * gamma / 2 * (slope(on_real, real) + slope(on_fake, fake))


def generator_loss(critic: nn.Module, real: Tensor, fake: Tensor, relativistic: bool) -> Tensor:
    """The generator's loss of each item, (B,)."""
    on_fake = critic(fake)
    if not relativistic:
        return F.softplus(-on_fake)[:, 0]
    with torch.no_grad():
        on_real = critic(real)
    return F.softplus(on_real - on_fake)[:, 0]


class _Runs:
    """What runs side by side share: a stream of random numbers each, the sum of their mean losses, their loss curves."""

    def __init__(self, settings: Settings) -> None:
        if len(settings.lr) != len(settings.seeds):
            raise ValueError(f"{len(settings.lr)} learning rates for {len(settings.seeds)} seeds: give each run one of both")
        self.settings, self.curve = settings, list[list[float]]()
        self.generators = [torch.Generator().manual_seed(seed) for seed in settings.seeds]
        self.began = time.process_time()

    def each(self, draw: Draw) -> Tensor:
        """A batch of every run, run after run."""
        return torch.cat([draw(self.settings.batch, generator) for generator in self.generators])

    def total(self, losses: Tensor, step: int) -> Tensor:
        """The sum over runs of their means: the gradient of a run is its own."""
        means = losses.reshape(len(self.generators), -1).mean(1)
        if step % max(self.settings.steps // POINTS, 1) == 0:
            self.curve.append([step, *means.tolist()])
        return means.sum()

    def trained(self, average: PowerEMA) -> Trained:
        return Trained(average.network, self.curve, time.process_time() - self.began)


def train_gan(generator: nn.Module, critic: nn.Module, data: Draw, settings: Settings, adversary: Adversary) -> Trained:
    """Train both; the average is the generator's, the curve the critic's loss (log 2 or 2·log 2 where it tells nothing apart)."""
    runs, average = _Runs(settings), PowerEMA(generator, settings.ema, EMA_EVERY)
    down_critic, down_generator = (Adam(network, settings.lr, (0.0, 0.99)) for network in (critic, generator))
    gamma = torch.tensor(adversary.gamma).repeat_interleave(settings.batch)

    def noise() -> Tensor:
        return runs.each(lambda n, source: torch.randn(n, adversary.latent, generator=source))

    for step in range(settings.steps):
        scale, weight = scale_at(settings, step), 0.0 if step % adversary.every else float(adversary.every)
        real = runs.each(data)
        with torch.no_grad():
            fake = generator(noise())
        down_critic.step(runs.total(critic_loss(critic, real, fake, gamma, adversary.relativistic, weight), step), scale)
        fake = generator(noise())
        losses = generator_loss(critic, runs.each(data), fake, adversary.relativistic)
        down_generator.step(losses.mean() * len(settings.seeds), scale)
        average.update(generator, step + 1)
    return runs.trained(average)


def train_denoiser(
    denoiser: Preconditioned, data: Draw, settings: Settings, levels: Sequence[LogNormal], weight: Weight | None = None
) -> Trained:
    """Train the denoiser's network on noise levels of `levels`, one distribution a run; the curve is the denoising loss."""
    network = denoiser.network
    assert isinstance(network, nn.Module)
    runs, average = _Runs(settings), PowerEMA(network, settings.ema, EMA_EVERY)
    down, schedule, count = Adam(network, settings.lr, (0.9, 0.99)), denoiser.process.schedule, settings.batch
    for step in range(settings.steps):
        x0 = runs.each(data)
        noise = torch.cat([torch.randn(count, *x0.shape[1:], generator=source) for source in runs.generators])
        uniform = [stratified(torch.rand(count, generator=source, dtype=torch.float64)) for source in runs.generators]
        t = torch.cat([level.quantile(u, schedule) for level, u in zip(levels, uniform, strict=True)]).float()
        losses = denoising_loss(denoiser, x0, None, t, noise, weight)
        down.step(runs.total(losses, step), scale_at(settings, step))
        average.update(network, step + 1)
    return runs.trained(average)
