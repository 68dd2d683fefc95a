"""Counter-based noise: item i is a function of (seed i, stream, shape) alone.

    raw = Philox4x64(key = (seed, domain), counter = (0, stream, kind, 0));   z = √(−2·ln u₁)·(cos θ, sin θ),
    θ uniform

Batch size, order, device, number of processes, the steps before and numpy's own distributions change nothing:
the 64-bit integers of Philox are fixed by its definition, and the transform uses only IEEE-exact operations
(+ − × ÷ √, power-of-two scaling), never a library's log or sin, whose last bits differ between processors.
Sources: Salmon et al. 2011 (Philox), doi:10.1145/2063384.2063405; Box & Muller 1958.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unfog.errors import UserError

_DOMAIN = 0x756E666F67  # separates our streams from any other use of Philox with the same seed
_NORMAL, _UNIFORM = 0, 1

# ln m = 2·artanh((m − 1)/(m + 1)); with m in [√½, √2] twelve terms reach float64.
_LOG = [2.0 / (2 * k + 1) for k in range(12)]
# Taylor series of cos θ and sin θ/θ in θ², |θ| ≤ π/4.
_COS = [(-1.0) ** k / math.factorial(2 * k) for k in range(10)]
_SIN = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(10)]


class NoiseSource(Protocol):
    """What a sampler draws from."""

    def normal(
        self, shape: Sequence[int], stream: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor: ...


def _polynomial(x: np.ndarray, coefficients: list[float]) -> np.ndarray:
    out = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        out *= x
        out += coefficient
    return out


def _log(u: np.ndarray) -> np.ndarray:
    """Natural logarithm of u in (0, 1], from exact operations only."""
    mantissa, exponent = np.frexp(u)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return (exponent - low) * math.log(2.0) + s * _polynomial(s * s, _LOG)


def _circle(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cos, sin) of 2πu − π/4 for u in [0, 1): a quarter turn is exact, the rest a short series."""
    quarter = np.floor(4.0 * u)
    theta = (4.0 * u - quarter - 0.5) * (0.5 * math.pi)
    square = theta * theta
    cos, sin = _polynomial(square, _COS), theta * _polynomial(square, _SIN)
    odd = (quarter == 1.0) | (quarter == 3.0)
    first, second = np.where(odd, sin, cos), np.where(odd, cos, sin)
    return (
        np.where((quarter == 1.0) | (quarter == 2.0), -first, first),
        np.where((quarter == 2.0) | (quarter == 3.0), -second, second),
    )


class Noise:
    """Noise for a batch, one seed an item.

    seeds: integers, 0 ≤ seed < 2⁶³. By convention stream 0 is the starting noise and stream 1 + i belongs to
    step i.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        checked = []
        for seed in seeds:
            if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
                raise UserError(f"seed: expected an integer from 0 to 2**63 - 1, got {seed!r}")
            checked.append(int(seed))
        self.seeds = tuple(checked)

    def _raw(self, count: int, stream: int, kind: int) -> np.ndarray:
        if not 0 <= stream < 2**63:
            raise ValueError(f"stream must lie in 0 … 2**63 - 1, got {stream}")
        rows = np.empty((len(self.seeds), count), dtype=np.uint64)
        for row, seed in zip(rows, self.seeds, strict=True):
            key = np.array([seed, _DOMAIN], dtype=np.uint64)
            counter = np.array([0, stream, kind, 0], dtype=np.uint64)
            row[:] = np.random.Philox(key=key, counter=counter).random_raw(count)
        return rows

    def normal(
        self, shape: Sequence[int], stream: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normal (len(seeds), *shape), made in float64 on the CPU, then converted."""
        count = math.prod(shape)
        pairs = (count + 1) // 2
        raw = self._raw(2 * pairs, stream, _NORMAL) >> np.uint64(11)
        first, second = raw[:, 0::2].astype(np.float64), raw[:, 1::2].astype(np.float64)
        radius = np.sqrt(-2.0 * _log((first + 1.0) * 2.0**-53))
        cos, sin = _circle(second * 2.0**-53)
        out = np.empty((len(self.seeds), 2 * pairs))
        out[:, 0::2], out[:, 1::2] = radius * cos, radius * sin
        return torch.from_numpy(out[:, :count]).reshape(len(self.seeds), *shape).to(dtype).to(device)

    def uniform(
        self, shape: Sequence[int], stream: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Uniform in the open interval (0, 1), (len(seeds), *shape)."""
        raw = self._raw(math.prod(shape), stream, _UNIFORM) >> np.uint64(11)
        values = torch.from_numpy((raw.astype(np.float64) + 0.5) * 2.0**-53).to(dtype)
        # Rounding to a narrow type must not reach 1.
        values = values.clamp(max=1.0 - torch.finfo(dtype).eps / 2)
        return values.reshape(len(self.seeds), *shape).to(device)
