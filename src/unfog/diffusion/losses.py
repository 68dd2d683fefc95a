"""The one denoising loss, the weight on it, and the times at which it is asked.

    L = w·|network(x_t) − (x0 − c_skip·x_t)/c_out|²,   x_t = α·x0 + σ·ε,   mean over everything but the batch

With weight 1 this is DDPM's simple loss (eps), v, flow matching (flow) or EDM's weighted loss (edm). As
|x0 error|² = c_out²·|network error|², any loss in another space is a weight:  w = (c_out/c_out′)².
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unfog.checks import lookup
from unfog.diffusion.denoisers import Cond, Preconditioned
from unfog.diffusion.predictions import PREDICTIONS, Prediction
from unfog.diffusion.processes import expand
from unfog.diffusion.schedules import Schedule
from unfog.errors import UserError


class TimeDistribution(Protocol):
    """A distribution of t, given as its quantile function."""

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor: ...  # u (B,) in (0, 1) -> t (B,) in [0, 1]


def _normal_quantile(u: Tensor) -> Tensor:
    wide = u if u.device.type == "mps" else u.double()
    tiny = torch.finfo(wide.dtype).eps
    return torch.special.ndtri(wide.clamp(tiny, 1.0 - tiny))


@dataclass(frozen=True)
class Uniform:
    """t uniform in [low, high]."""

    low: float = 0.0
    high: float = 1.0

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mean + std·z); mean > 0 leans to noise.

    Source: Esser et al. 2024 (SD3), arXiv:2403.03206, eq. 19.
    """

    mean: float = 0.0
    std: float = 1.0

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u)).to(u.dtype)


@dataclass(frozen=True)
class LogNormal:
    """ln(σ/α) = mean + std·z, whatever the schedule (on `linear` the same as LogitNormal).

    Source: Karras et al. 2022, arXiv:2206.00364, table 1 (mean −1.2, std 1.2).
    """

    mean: float = -1.2
    std: float = 1.2

    def quantile(self, u: Tensor, schedule: Schedule) -> Tensor:
        logsnr = -2.0 * (self.mean + self.std * _normal_quantile(u))
        return schedule.time(logsnr).clamp(0.0, 1.0).to(u.dtype)


TIMES: dict[str, Callable[..., TimeDistribution]] = {"uniform": Uniform, "logit_normal": LogitNormal, "log_normal": LogNormal}


def stratified(u: Tensor, start: int = 0, total: int | None = None) -> Tensor:
    """Low-discrepancy u: item i of the batch falls in the i-th of equal strata of (0, 1).

    u (B,) in (0, 1). start, total: this batch's place in a larger one (gradient accumulation, several
    processes). The mean over the batch stays unbiased and its variance falls. Source: Kingma et al. 2021,
    arXiv:2107.00630, app. I.1.
    """
    count = total if total is not None else len(u)
    place = torch.arange(start, start + len(u), device=u.device, dtype=u.dtype)
    # In float32 (n − 1 + u)/n may round to 1.
    return ((place + u) / count).clamp(max=1.0 - torch.finfo(u.dtype).eps / 2)


Weight = Callable[[Prediction, Any, Any], Any]  # (prediction, alpha (B,), sigma (B,)) -> (B,)


@dataclass(frozen=True)
class Space:
    """The loss as if the network predicted `name`: w = (c_out/c_out′)², exactly 1 in the network's own space.

    "x0" weighs the x0 error by 1, "eps" by the SNR, "flow" by (α+σ)²/σ², "v" by (α²+σ²)²/σ².
    limit: upper bound on w.
    """

    name: str
    data_std: float = 1.0
    limit: float = math.inf

    def __post_init__(self) -> None:
        lookup(PREDICTIONS, self.name, "weight")

    def __call__(self, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
        other = Prediction(self.name, self.data_std)
        if prediction.name == self.name and (self.name != "edm" or prediction.data_std == self.data_std):
            return torch.ones_like(sigma).clamp(max=self.limit)
        ratio = _rate(other, alpha, sigma) / _rate(prediction, alpha, sigma)
        return (ratio * ratio).clamp(max=self.limit)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the x0 error, for every prediction: eps min(SNR, γ)/SNR, v min(SNR, γ)/(SNR + 1).

    Source: Hang et al. 2023, arXiv:2303.09556, §3.4.
    """

    gamma: float = 5.0

    def __call__(self, prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
        alpha = alpha.clamp_min(1e-15)  # at pure noise eps would be 0/0; the limit is 1
        rate = _rate(prediction, alpha, sigma)  # c_out = σ/rate; σ cancels against the SNR's 1/σ²
        return torch.minimum(alpha * alpha, self.gamma * sigma * sigma) / (rate * rate)


def _rate(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """g = p·σ − q·α = σ/c_out, which has no 0/0 at σ = 0."""
    _, _, p, q = prediction.affine(alpha, sigma)
    return p * sigma - q * alpha


WEIGHTS: dict[str, Weight | None] = {
    "network": None,
    **{name: Space(name) for name in PREDICTIONS},
    "snr": Space("eps"),
    "min_snr": MinSNR(),
}


def masked_mean(error: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all but the batch, (B,), of error (B, *D), counting only where mask is true.

    mask: bool, of error's number of dimensions (and broadcast), or of its leading dimensions, such as (B, N)
    for (B, N, C).
    """
    if mask is None:
        return error.flatten(1).mean(1)
    if mask.ndim > error.ndim:
        raise UserError(f"cond['mask'] has {mask.ndim} dimensions, the data only {error.ndim}")
    mask = mask.reshape(*mask.shape, *(1,) * (error.ndim - mask.ndim)).expand(error.shape)
    kept = torch.where(mask, error, torch.zeros_like(error)).flatten(1)  # where, as NaN·0 is NaN in padding
    return kept.sum(1) / mask.flatten(1).sum(1).clamp_min(1)


def denoising_loss(
    denoiser: Preconditioned, x0: Tensor, cond: Cond | None, t: Tensor, noise: Tensor, weight: str | Weight | None = None
) -> Tensor:
    """The loss of each item, (B,) float32.

    x0, noise (B, *D); t (B,) in [0, 1]; cond["mask"], if there, marks what is data and not padding.
    weight: a key of WEIGHTS, a function (prediction, alpha, sigma) -> (B,), or None for 1.
    """
    chosen = lookup(WEIGHTS, weight, "weight") if isinstance(weight, str) else weight
    dtype = torch.float64 if x0.dtype == torch.float64 else torch.float32
    x0, noise = (denoiser.projected(y.to(dtype), cond) for y in (x0, noise))
    schedule = denoiser.process.schedule
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x_t = denoiser.process.mix(x0, noise, t)
    target = denoiser.prediction.target(x0, noise, alpha, sigma)
    error = (denoiser.raw(x_t, t, cond) - target) ** 2
    loss = masked_mean(error, None if cond is None else cond.get("mask"))
    return loss if chosen is None else loss * expand(chosen(denoiser.prediction, alpha, sigma), loss)
