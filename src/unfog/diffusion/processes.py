"""Forward processes: how clean data becomes noisy data.

    x_t = α(t)·x0 + σ(t)·ε        (Gaussian)

A process knows its schedule, how to mix, and how wide its prior is; nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unfog.diffusion.schedules import Schedule, schedule_from_config
from unfog.errors import UserError


class Process(Protocol):
    """What samplers, denoisers and losses need to know of a forward process."""

    @property
    def schedule(self) -> Schedule: ...
    def mix(self, x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor: ...
    def prior_std(self, t: float = 1.0) -> float: ...
    def prior(self, eps: Tensor, t: float = 1.0) -> Tensor: ...


def expand(value: float | Tensor, like: Tensor) -> Any:
    """A number stays; a (B,) tensor becomes (B, 1, …, 1) of the dtype and device of `like` (B, *D)."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(device=like.device, dtype=like.dtype)
    if value.ndim == 0:
        return value
    if value.shape != like.shape[:1]:
        raise ValueError(f"expected one value an item, shape ({like.shape[0]},), got {tuple(value.shape)}")
    return value.reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Gaussian:
    """x_t = α(t)·x0 + σ(t)·ε with ε standard normal.

    data_std: standard deviation of x0 in model space (codecs aim at 1); it sets the width of the prior.
    """

    schedule: Schedule
    data_std: float = 1.0

    def __post_init__(self) -> None:
        if not self.data_std > 0.0:
            raise UserError(f"gaussian process: data_std must be positive, got {self.data_std}")

    def mix(self, x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
        """x_t (B, *D) of x0 (B, *D), eps (B, *D) at t: a float or (B,) in [0, 1]."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return expand(alpha, x0) * x0 + expand(sigma, x0) * eps

    def prior_std(self, t: float = 1.0) -> float:
        """Standard deviation of x_t: √(α²·data_std² + σ²). Sampling starts from this times unit noise."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return float((alpha * alpha * self.data_std**2 + sigma * sigma) ** 0.5)

    def prior(self, eps: Tensor, t: float = 1.0) -> Tensor:
        """Where sampling starts: eps (B, *D), unit normal, widened to the marginal at time t."""
        return torch.mul(eps, self.prior_std(t))

    def config(self) -> dict[str, Any]:
        """Plain values; `process_from_config` reads them."""
        return {"name": "gaussian", "data_std": self.data_std, "schedule": self.schedule.config()}


def process_from_config(config: dict[str, Any]) -> Gaussian:
    """The process that `config` states."""
    if not isinstance(config, dict) or config.get("name") != "gaussian":
        raise UserError(f"process: expected a mapping with name 'gaussian', got {config!r}")
    unknown = set(config) - {"name", "data_std", "schedule"}
    if unknown or "schedule" not in config:
        raise UserError(f"process: 'schedule' is required and {sorted(unknown)} is not an option")
    return Gaussian(schedule_from_config(config["schedule"]), float(config.get("data_std", 1.0)))
