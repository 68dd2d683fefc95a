"""Classifier-free guidance: move from what the model says without the condition past what it says with it.

    D = D_uncond + scale·(D_cond − D_uncond)        scale 1 = off

On x0 this equals guidance on eps, v or flow, as all are affine in x0. Inside `interval` of log-SNR only, if
given; items whose scale is 1 at this t cost one evaluation, all others two, in one call of the network where
shapes allow.
Sources: Ho & Salimans 2022, arXiv:2207.12598; Kynkäänniemi et al. 2024, arXiv:2404.07724 (interval).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.processes import Process, expand
from unfog.errors import UserError


@dataclass(frozen=True)
class Pair:
    """The two results for the items that are guided, and where they were made: (B′, *D), t float or (B′,)."""

    process: Process
    x_t: Tensor
    t: float | Tensor
    with_cond: Tensor
    without: Tensor
    scale: Any  # (B′, 1, …, 1)

    @property
    def level(self) -> tuple[Any, Any]:
        """α and σ at t."""
        return self.process.schedule.alpha(self.t), self.process.schedule.sigma(self.t)


Combine = Callable[[Pair], Tensor]


def plain(pair: Pair) -> Tensor:
    """D_uncond + scale·(D_cond − D_uncond)."""
    return pair.without + pair.scale * (pair.with_cond - pair.without)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ of each item, (B, 1, …, 1)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *(1,) * (a.ndim - 1))


class ClassifierFree:
    """A guided denoiser.

    scale: a number, or (B,) for each item. uncond: the empty or negative condition, with the keys of cond;
    tensors of batch B, or of batch 1 for all items. interval: (low, high) in log-SNR, or in t with
    interval_in="t", outside which scale is 1. batched: both conditions in one call. combine: how the two become
    one; rescale.py, zero_star.py and apg.py give others. A scale of 0 is the negative condition alone with any of them.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Tensor,
        uncond: Cond,
        interval: tuple[float, float] | None = None,
        interval_in: str = "logsnr",
        batched: bool = True,
        combine: Combine = plain,
    ) -> None:
        if interval_in not in ("logsnr", "t"):
            raise UserError(f"guidance 'cfg': interval_in must be 'logsnr' or 't', got {interval_in!r}")
        if interval is not None and not interval[0] <= interval[1]:
            raise UserError(f"guidance 'cfg': interval must be (low, high), got {interval}")
        values = torch.as_tensor(scale, dtype=torch.float64)
        if values.ndim > 1 or not torch.isfinite(values).all():
            raise UserError("guidance 'cfg': scale must be a finite number, or one for each item")
        self.denoiser = denoiser
        self.scale = values.cpu()
        self.uncond = uncond
        self.interval = interval
        self.interval_in = interval_in
        self.batched = batched
        self.combine = combine

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def scales(self, t: float | Tensor, batch: int) -> Tensor:
        """The scale of each item at t, (batch,) float64 on the CPU."""
        if self.scale.ndim == 1 and len(self.scale) != batch:
            raise ValueError(f"guidance has {len(self.scale)} scales for {batch} items")
        scales = self.scale.expand(batch)
        if self.interval is None:
            return scales
        times = torch.as_tensor(t, dtype=torch.float64).cpu()
        place = times if self.interval_in == "t" else self.process.schedule.logsnr(times)
        inside = (place >= self.interval[0]) & (place <= self.interval[1])
        return torch.where(inside, scales, torch.ones_like(scales))

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Guided x0 (B, *D)."""
        batch = x_t.shape[0]
        scales = self.scales(t, batch)
        if bool((scales == 1.0).all()):
            return self.denoiser(x_t, t, cond)
        if cond is None or set(cond) != set(self.uncond):
            raise UserError("guidance 'cfg': cond and uncond must have the same keys")
        uncond = {key: value.expand(batch, *value.shape[1:]) for key, value in self.uncond.items()}
        if bool((scales == 0.0).all()):
            return self.denoiser(x_t, t, uncond)
        chosen = torch.nonzero(scales != 1.0).flatten().to(x_t.device)
        some = len(chosen) < batch
        second_x, second_t = x_t, t
        if some:
            second_x = x_t[chosen]
            second_t = t[chosen] if isinstance(t, Tensor) and t.ndim else t
            uncond = {key: value[chosen] for key, value in uncond.items()}
        with_cond, without = self._both(x_t, t, cond, second_x, second_t, uncond)
        picked = with_cond[chosen] if some else with_cond
        pair = Pair(self.process, second_x, second_t, picked, without, expand(scales[chosen.cpu()], without))
        if not some:
            return self.combine(pair)
        out = with_cond.clone()
        out[chosen] = self.combine(pair)
        return out

    def _both(
        self, x: Tensor, t: float | Tensor, cond: Cond, other_x: Tensor, other_t: float | Tensor, other: Cond
    ) -> tuple[Tensor, Tensor]:
        same = all(cond[key].shape[1:] == other[key].shape[1:] and cond[key].dtype == other[key].dtype for key in cond)
        if not (self.batched and same):
            return self.denoiser(x, t, cond), self.denoiser(other_x, other_t, other)
        times = t
        if isinstance(t, Tensor) and t.ndim:
            times = torch.cat([t, torch.as_tensor(other_t)])
        both = {key: torch.cat([cond[key], other[key]]) for key in cond}
        out = self.denoiser(torch.cat([x, other_x]), times, both)
        return out[: len(x)], out[len(x) :]
