"""RGBA pictures <-> model space: premultiplied colour, zero mean and unit variance a channel.

    x0 = (p − mean)/std,  p = (α·r, α·g, α·b, α) in [0, 1]

Premultiplied, because the colour of a transparent pixel means nothing and must not be learnt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RGBACodec:
    """mean and std of each premultiplied channel, in [0, 1]."""

    mean: tuple[float, ...] = (0.4, 0.35, 0.3, 0.6)
    std: tuple[float, ...] = (0.4, 0.36, 0.34, 0.48)

    @classmethod
    def fit(cls, pictures: np.ndarray) -> RGBACodec:
        """Measure mean and std on straight RGBA pictures (N, H, W, 4) uint8."""
        planes = _premultiply(pictures)
        std = np.maximum(planes.std((0, 1, 2)), 0.05)  # an always opaque set has no alpha variance
        return cls(tuple(planes.mean((0, 1, 2)).round(4).tolist()), tuple(std.round(4).tolist()))

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Straight RGBA (B, H, W, 4) uint8 -> x0 (B, 4, H, W) float32."""
        planes = (_premultiply(pictures) - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 3, 1, 2), dtype=np.float32))

    def decode(self, x0: Tensor) -> np.ndarray:
        """x0 (B, 4, H, W) -> straight RGBA (B, H, W, 4) uint8; alpha is at least each colour, as premultiplied asks."""
        planes = x0.detach().float().cpu().numpy().transpose(0, 2, 3, 1) * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
        planes = np.clip(planes, 0, 1)
        alpha = planes[..., 3:]
        # a faint veil where the picture should be empty, and a faint hole where it should be full, are denoising error
        alpha = np.clip((alpha - 0.04) / 0.92, 0, 1)
        colour = np.where(alpha > 0, planes[..., :3] / np.maximum(planes[..., 3:], 1 / 255), 0)
        straight = np.concatenate([np.clip(colour, 0, 1), alpha], -1)
        return np.round(straight * 255).astype(np.uint8)


def _premultiply(pictures: np.ndarray) -> np.ndarray:
    planes = pictures.astype(np.float32) / 255
    planes[..., :3] *= planes[..., 3:]
    return planes
