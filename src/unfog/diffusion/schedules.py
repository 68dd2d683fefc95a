"""Schedules: how much data and how much noise there is at time t.

    x_t = α(t)·x0 + σ(t)·ε        logsnr(t) = log(α²/σ²)        t = 0: data, t = 1: noise

`alpha`, `sigma`, `logsnr` and `time` (the inverse of `logsnr`) take a python float, a numpy array or a torch
tensor and give the same kind back. They compute in float64. At an end where α or σ is zero, logsnr is ±inf,
never NaN, and `time` maps it back. Sources stand beside each schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from unfog.checks import call, lookup
from unfog.errors import UserError

REMEMBERED = 4096  # values of a table at single times
Number = TypeVar("Number", bound=float | np.ndarray | Tensor)


class Schedule(Protocol):
    """α, σ and log-SNR as functions of t in [0, 1]."""

    def alpha(self, t: Number) -> Number: ...
    def sigma(self, t: Number) -> Number: ...
    def logsnr(self, t: Number) -> Number: ...  # strictly decreasing
    def time(self, logsnr: Number) -> Number: ...  # its inverse
    def config(self) -> dict[str, Any]: ...  # plain values; `schedule_from_config` reads it


def lift(function: Callable[[Tensor], Tensor], value: Number) -> Number:
    """Apply a torch function in float64 and return the kind that came in (half types come back float32)."""
    given: Any = value
    if isinstance(given, Tensor):
        # Apple's GPU has no float64.
        wide = given.float() if given.device.type == "mps" else given.double()
        keep = given.dtype in (torch.float32, torch.float64)
        result: Any = function(wide).to(given.dtype if keep else torch.float32)
        return result
    result = function(torch.tensor(np.asarray(given, dtype=np.float64))).numpy()
    if not isinstance(given, np.ndarray):
        result = float(result)
    return result


@dataclass(frozen=True)
class Cosine:
    """α = cos(πt/2), σ = sin(πt/2); α(1) = 0. Source: Salimans & Ho 2022, arXiv:2202.00512, §4."""

    def alpha(self, t: Number) -> Number:
        # sin of the complement, so that α(1) is exactly 0.
        return lift(lambda u: torch.sin(0.5 * math.pi * (1.0 - u)), t)

    def sigma(self, t: Number) -> Number:
        return lift(lambda u: torch.sin(0.5 * math.pi * u), t)

    def logsnr(self, t: Number) -> Number:
        half = 0.5 * math.pi
        return lift(lambda u: 2.0 * (torch.log(torch.sin(half * (1.0 - u))) - torch.log(torch.sin(half * u))), t)

    def time(self, logsnr: Number) -> Number:
        return lift(lambda u: torch.atan(torch.exp(-0.5 * u)) * (2.0 / math.pi), logsnr)

    def config(self) -> dict[str, Any]:
        return {"name": "cosine"}


@dataclass(frozen=True)
class Linear:
    """α = 1 − t, σ = t: flow matching, rectified flow.

    Source: Lipman et al. 2022, arXiv:2210.02747, eq. 20–22.
    """

    def alpha(self, t: Number) -> Number:
        return lift(lambda u: 1.0 - u, t)

    def sigma(self, t: Number) -> Number:
        return lift(lambda u: u.clone(), t)

    def logsnr(self, t: Number) -> Number:
        return lift(lambda u: 2.0 * (torch.log1p(-u) - torch.log(u)), t)

    def time(self, logsnr: Number) -> Number:
        return lift(lambda u: torch.sigmoid(-0.5 * u), logsnr)

    def config(self) -> dict[str, Any]:
        return {"name": "linear"}


@dataclass(frozen=True)
class VP:
    """The variance-preserving SDE with β(t) linear: log α = −(β_max − β_min)·t²/4 − β_min·t/2, σ² = 1 − α².

    Source: Song et al. 2020, arXiv:2011.13456, eq. 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_min <= self.beta_max < math.inf:
            raise UserError(f"vp schedule: need 0 < beta_min <= beta_max, got {self.beta_min}, {self.beta_max}")

    def _log_alpha(self, u: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * u * u - 0.5 * self.beta_min * u

    def alpha(self, t: Number) -> Number:
        return lift(lambda u: torch.exp(self._log_alpha(u)), t)

    def sigma(self, t: Number) -> Number:
        return lift(lambda u: torch.sqrt(-torch.expm1(2.0 * self._log_alpha(u))), t)

    def logsnr(self, t: Number) -> Number:
        def value(u: Tensor) -> Tensor:
            double = 2.0 * self._log_alpha(u)
            return double - torch.log(-torch.expm1(double))

        return lift(value, t)

    def time(self, logsnr: Number) -> Number:
        def value(u: Tensor) -> Tensor:
            # log(1 + e^{-u}) without overflow; minus log α is half of it.
            minus = 0.5 * torch.logaddexp(torch.zeros_like(u), -u)
            half = 0.5 * self.beta_min
            # The root of the quadratic in the form that does not cancel for small t.
            out = 2.0 * minus / (half + torch.sqrt(half * half + (self.beta_max - self.beta_min) * minus))
            return torch.where(torch.isinf(minus), minus, out)

        return lift(value, logsnr)

    def config(self) -> dict[str, Any]:
        return {"name": "vp", **asdict(self)}


@dataclass(frozen=True)
class EDM:
    """α = 1, σ from 0 to sigma_max, spaced as EDM spaces sigma_min … sigma_max, then moved so that σ(0) = 0.

        σ(t) = c·(K(t) − K(0)),   K log-linear in t, or K = (σ_min^{1/ρ} + t·(σ_max^{1/ρ} − σ_min^{1/ρ}))^ρ if
        rho is given

    sigma_min is therefore the level below which σ falls linearly; no noise is left at t = 0.
    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5. Deviation: the paper appends σ = 0 to its list
    instead.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min < self.sigma_max < math.inf:
            raise UserError(f"edm schedule: need 0 < sigma_min < sigma_max, got {self.sigma_min}, {self.sigma_max}")
        if self.rho is not None and not self.rho > 0.0:
            raise UserError(f"edm schedule: rho must be positive, got {self.rho}")

    @property
    def _unit(self) -> float:
        return self.sigma_min * self.sigma_max / (self.sigma_max - self.sigma_min)

    def _sigma(self, u: Tensor) -> Tensor:
        ratio = self.sigma_max / self.sigma_min
        if self.rho is None:
            return self._unit * torch.expm1(u * math.log(ratio))
        return self._unit * torch.expm1(self.rho * torch.log1p(u * (ratio ** (1.0 / self.rho) - 1.0)))

    def alpha(self, t: Number) -> Number:
        return lift(torch.ones_like, t)

    def sigma(self, t: Number) -> Number:
        return lift(self._sigma, t)

    def logsnr(self, t: Number) -> Number:
        return lift(lambda u: -2.0 * torch.log(self._sigma(u)), t)

    def time(self, logsnr: Number) -> Number:
        def value(u: Tensor) -> Tensor:
            ratio = self.sigma_max / self.sigma_min
            growth = torch.log1p(torch.exp(-0.5 * u) / self._unit)
            if self.rho is None:
                return growth / math.log(ratio)
            return torch.expm1(growth / self.rho) / (ratio ** (1.0 / self.rho) - 1.0)

        return lift(value, logsnr)

    def config(self) -> dict[str, Any]:
        return {"name": "edm", **asdict(self)}


@dataclass(frozen=True)
class Table:
    """A DDPM table of N betas, read as a continuous schedule: index n = 0 … N−1 stands at t = (n + 1)/N.

        ᾱ_n = Π (1 − β),   α = √ᾱ,   σ = √(1 − ᾱ);   log-SNR is linear in t between two indices

    Below the first index σ/α falls linearly to 0 at t = 0; with zero terminal SNR (last β = 1) α/σ falls
    linearly to 0 at t = 1. Source: Ho et al. 2020, arXiv:2006.11239, eq. 4.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        inner = all(0.0 < beta < 1.0 for beta in self.betas[:-1])
        if len(self.betas) < 3 or not inner or not 0.0 < self.betas[-1] <= 1.0:
            raise UserError("table schedule: need at least 3 betas inside (0, 1); only the last may be 1")

    @staticmethod
    def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Table:
        """β linear in the index. Source: Ho et al. 2020, §4."""
        return Table(tuple(np.linspace(start, end, steps)))

    @staticmethod
    def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Table:
        """√β linear in the index. Source: Rombach et al. 2022, arXiv:2112.10752 (latent diffusion)."""
        return Table(tuple(np.linspace(math.sqrt(start), math.sqrt(end), steps) ** 2))

    @staticmethod
    def cosine(steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> Table:
        """ᾱ = cos²(…), β capped. Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17."""
        bar = np.cos((np.arange(steps + 1) / steps + offset) / (1.0 + offset) * math.pi / 2) ** 2
        return Table(tuple(np.minimum(1.0 - bar[1:] / bar[:-1], beta_max)))

    def zero_terminal_snr(self) -> Table:
        """The same table with √ᾱ moved and stretched so that the last ᾱ is 0.

        Source: Lin et al. 2023, arXiv:2305.08891, Alg. 1.
        """
        root = np.sqrt(np.cumprod(1.0 - np.array(self.betas)))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        bar = root**2
        return Table((1.0 - float(bar[0]), *(1.0 - bar[1:] / bar[:-1])))

    @property
    def count(self) -> int:
        return len(self.betas)

    @cached_property
    def knots(self) -> Tensor:
        """log-SNR at each index, (N,) float64; the last is −inf for zero terminal SNR."""
        with np.errstate(divide="ignore"):
            log_bar = np.cumsum(np.log1p(-np.array(self.betas)))
        return torch.from_numpy(log_bar - np.log(-np.expm1(log_bar)))

    def _logsnr(self, u: Tensor) -> Tensor:
        knots = self.knots.to(u)
        n = self.count
        finite = knots if torch.isfinite(knots[-1]) else knots[:-1]
        place = u * n - 1.0
        left = place.detach().floor().clamp(0, len(finite) - 2).long()
        out = finite[left] + (place - left) * (finite[left + 1] - finite[left])
        out = torch.where(place < 0.0, finite[0] - 2.0 * torch.log(u.clamp_min(0.0) * n), out)
        if len(finite) < n:
            out = torch.where(place > n - 2.0, finite[-1] + 2.0 * torch.log((1.0 - u).clamp_min(0.0) * n), out)
        return out

    @cached_property
    def _found(self) -> dict[tuple[str, float], Any]:
        """What was asked before of single times: a sampling asks of each many times, and the next one of the same."""
        return {}

    def _lifted(self, name: str, function: Callable[[Tensor], Tensor], value: Number) -> Number:
        if type(value) is not float:
            return lift(function, value)
        key = name, float(value)
        found: Number | None = self._found.get(key)
        if found is None:
            found = lift(function, value)
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            self._found[key] = found
        return found

    def alpha(self, t: Number) -> Number:
        return self._lifted("alpha", lambda u: torch.sqrt(torch.sigmoid(self._logsnr(u))), t)

    def sigma(self, t: Number) -> Number:
        return self._lifted("sigma", lambda u: torch.sqrt(torch.sigmoid(-self._logsnr(u))), t)

    def logsnr(self, t: Number) -> Number:
        return self._lifted("logsnr", self._logsnr, t)

    def time(self, logsnr: Number) -> Number:
        def value(u: Tensor) -> Tensor:
            knots = self.knots.to(u)
            n = self.count
            finite = knots if torch.isfinite(knots[-1]) else knots[:-1]
            left = (torch.searchsorted(-finite, -u.detach()) - 1).clamp(0, len(finite) - 2)
            out = (left + 1.0 + (finite[left] - u) / (finite[left] - finite[left + 1])) / n
            out = torch.where(u > finite[0], torch.exp(-0.5 * (u - finite[0])) / n, out)
            if len(finite) < n:
                out = torch.where(u < finite[-1], 1.0 - torch.exp(0.5 * (u - finite[-1])) / n, out)
            return out

        return self._lifted("time", value, logsnr)

    def index(self, t: float | np.ndarray | Tensor) -> Any:
        """The nearest table index in 0 … N−1 of time t: int, int64 array or long tensor, as t is."""
        place = self.place(t)
        if isinstance(place, Tensor):
            return place.round().long()
        out = np.rint(place).astype(np.int64)
        return out if isinstance(t, np.ndarray) else int(out)

    def place(self, t: float | np.ndarray | Tensor) -> Any:
        """Where time t stands between the table's indices, not rounded, within 0 … N−1: float, float64 array or tensor."""
        if isinstance(t, Tensor):
            return (t.double() * self.count - 1.0).clamp(0, self.count - 1)
        return np.clip(np.asarray(t, dtype=np.float64) * self.count - 1.0, 0.0, self.count - 1.0)

    def time_of(self, index: int) -> float:
        """The time at which table index 0 … N−1 stands."""
        if not 0 <= index < self.count:
            raise UserError(f"table schedule: index {index} is outside 0 … {self.count - 1}")
        return (index + 1) / self.count

    def config(self) -> dict[str, Any]:
        return {"name": "table", "betas": list(self.betas)}


@dataclass(frozen=True)
class Shifted:
    """`base` with σ/α multiplied by `shift` at every t: logsnr(t) = base.logsnr(t) − 2·log(shift).

    On `Linear` this is t → s·t/(1 + (s − 1)·t). Source: Esser et al. 2024 (SD3), arXiv:2403.03206, §5.3.2;
    Hoogeboom et al. 2023, arXiv:2301.11093, §3.1.
    """

    base: Any  # a Schedule
    shift: float

    def __post_init__(self) -> None:
        if isinstance(self.base, dict):
            object.__setattr__(self, "base", schedule_from_config(self.base))
        if not 0.0 < self.shift < math.inf:
            raise UserError(f"shifted schedule: shift must be positive, got {self.shift}")

    @property
    def _offset(self) -> float:
        return 2.0 * math.log(self.shift)

    def alpha(self, t: Number) -> Number:
        return lift(lambda u: self.base.alpha(self.base.time(self.base.logsnr(u) - self._offset)), t)

    def sigma(self, t: Number) -> Number:
        return lift(lambda u: self.base.sigma(self.base.time(self.base.logsnr(u) - self._offset)), t)

    def logsnr(self, t: Number) -> Number:
        return lift(lambda u: self.base.logsnr(u) - self._offset, t)

    def time(self, logsnr: Number) -> Number:
        return lift(lambda u: self.base.time(u + self._offset), logsnr)

    def config(self) -> dict[str, Any]:
        return {"name": "shifted", "shift": self.shift, "base": self.base.config()}


def _zero_terminal(kind: str) -> Callable[..., Table]:
    def build(steps: int = 1000) -> Table:
        return {"linear": Table.linear, "scaled_linear": Table.scaled_linear}[kind](steps).zero_terminal_snr()

    return build


SCHEDULES: dict[str, Callable[..., Any]] = {
    "cosine": Cosine,
    "linear": Linear,
    "vp": VP,
    "edm": EDM,
    "table": Table,
    "table_linear": Table.linear,
    "table_scaled_linear": Table.scaled_linear,
    "table_cosine": Table.cosine,
    "table_linear_zero_snr": _zero_terminal("linear"),
    "table_scaled_linear_zero_snr": _zero_terminal("scaled_linear"),
    "shifted": Shifted,
}


def schedule_from_config(config: dict[str, Any]) -> Schedule:
    """The schedule of {"name": a key of SCHEDULES, its options…}; an unknown option is an error."""
    if not isinstance(config, dict) or "name" not in config:
        raise UserError(f"schedule: expected a mapping with a 'name', got {config!r}")
    options = {key: value for key, value in config.items() if key != "name"}
    build = lookup(SCHEDULES, config["name"], "schedule")
    schedule: Schedule = call(build, f"schedule {config['name']!r}", 0, **options)
    return schedule
