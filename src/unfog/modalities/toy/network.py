"""A small network for points: layers that the noise level and the class scale and shift."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.modalities.contract import Cond
from unfog.networks.layers import Conditioning


class PointNet(nn.Module):
    """Points (B, 2), log-SNR (B,), cond -> (B, 2). width of the layers, their number depth, classes, dropout (none is used)."""

    def __init__(self, classes: int = 0, width: int = 128, depth: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.conditioning = Conditioning(width, 0, classes)
        self.first, self.out = nn.Linear(10, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.told = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        vector = F.silu(self.conditioning(logsnr, cond)[0])
        angle = (x[..., None] * torch.tensor([math.pi / 2, math.pi], device=x.device, dtype=x.dtype)).flatten(1)
        h = self.first(torch.cat([x, angle.sin(), angle.cos()], 1))
        for layer, told in zip(self.layers, self.told, strict=True):
            scale, shift = told(vector).chunk(2, -1)
            h = h + F.silu(layer(h) * (1 + scale) + shift)
        return self.out(h)
