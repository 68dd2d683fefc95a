"""RGBA pictures <-> model space: premultiplied colour, zero mean and unit variance a channel.

    x0 = (p − mean)/std,  p = (α·r, α·g, α·b, α) in [0, 1]

Premultiplied, because the colour of a transparent pixel means nothing and must not be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A faint veil where the picture should be empty, or a faint hole where it should be full, is denoising error:
# alpha below VEIL becomes 0, above 1 − VEIL 1; between them it is kept as it is.
VEIL = 0.04


@dataclass(frozen=True)
class RGBACodec:
    """mean and std of each premultiplied channel, in [0, 1]."""

    mean: tuple[float, ...] = (0.4, 0.35, 0.3, 0.6)
    std: tuple[float, ...] = (0.4, 0.36, 0.34, 0.48)

    @classmethod
    def fit(cls, pictures: np.ndarray, pixels: int | None = None) -> RGBACodec:
        """Measure mean and std on straight RGBA pictures (N, ..., 4) uint8; pixels: how many are none of zeros put behind."""
        pixels = pictures.size // 4 if pixels is None else pixels
        total, squares = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
        for first in range(0, len(pictures), 64):  # in parts: a set may be larger than the memory
            part = torch.from_numpy(pictures[first : first + 64])
            planes = premultiply(part.reshape(len(part), -1, 1, 4)).double()
            total, squares = total + planes.sum((0, 2, 3)), squares + planes.square().sum((0, 2, 3))
        mean = total / pixels
        std = (squares / pixels - mean**2).clamp(min=0).sqrt()
        # an always opaque set has no alpha variance
        return cls(tuple(round(v, 4) for v in mean.tolist()), tuple(round(max(v, 0.05), 4) for v in std.tolist()))

    def encode(self, pictures: Tensor | np.ndarray) -> Tensor:
        """Straight RGBA (B, H, W, 4) uint8 -> x0 (B, 4, H, W) float32, where the pictures are."""
        planes = premultiply(torch.as_tensor(pictures))
        return (planes - self._column(self.mean, planes)) / self._column(self.std, planes)

    def decode(self, x0: Tensor) -> np.ndarray:
        """x0 (B, 4, H, W) -> straight RGBA (B, H, W, 4) uint8 on the host."""
        x0 = x0.detach().float()
        return straight(x0 * self._column(self.std, x0) + self._column(self.mean, x0))

    @property
    def channels(self) -> int:
        """Of an x0."""
        return 4

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Of an x0 of pictures so wide and high."""
        return 4, height, width

    def card(self) -> dict[str, Any]:
        """Plain values for model.json."""
        return {"name": "rgba", "mean": self.mean, "std": self.std}

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]


def premultiply(pictures: Tensor) -> Tensor:
    """Straight RGBA (B, H, W, 4) uint8 -> premultiplied (B, 4, H, W) float32 in [0, 1]."""
    planes = pictures.permute(0, 3, 1, 2).float() / 255
    return torch.cat([planes[:, :3] * planes[:, 3:], planes[:, 3:]], dim=1)


def straight(planes: Tensor) -> np.ndarray:
    """Premultiplied (B, 4, H, W), about [0, 1] -> straight RGBA (B, H, W, 4) uint8 on the host, veils and holes removed."""
    planes = planes.clamp(0, 1)
    alpha = planes[:, 3:]
    colour = torch.where(alpha > VEIL, planes[:, :3] / alpha.clamp(min=VEIL), 0.0).clamp(0, 1)
    clear = torch.where(alpha > VEIL, alpha, 0.0)
    whole = torch.cat([colour, torch.where(alpha < 1 - VEIL, clear, 1.0)], dim=1)
    return (whole * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
