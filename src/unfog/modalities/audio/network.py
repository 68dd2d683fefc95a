"""Networks of sounds: the shared U-Net on mel bands that is shown where harmonics lie, and a U-Net on the samples themselves.

On a spectrogram a row is a frequency, so rows are not alike, as those of a picture nearly are: the network sees each row's place,
and, for an item with a pitch f, a comb (a row near k·f is up to 1, k = 1, 2, ...). Both are further channels of its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.modalities.audio.codec import BANDS, mel
from unfog.modalities.audio.sound import RATE
from unfog.networks.layers import Cond, Conditioning, Dropout, zero_
from unfog.networks.unet import Conv, UNet

NUMBERS = 14  # of pitch and of how a training clip was moved
SHOWN = 6  # channels beside the item's own
HARMONICS = 40
PERIODS = (96, 48, 24, 12, 6)  # semitones, of the sines that say a pitch


def _told(cond: Cond | None, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> pitch (B,), whether there is one (B,), how the clip was moved (B, 3); zeros where nothing is said."""
    cond = cond or {}
    zeros = like.new_zeros(len(like), 3, dtype=torch.float32)
    moved = cond.get("told", zeros).to(like.device).float()
    pitch = cond.get("pitch", zeros[:, :2]).to(like.device).float()
    return pitch[:, 0] + pitch[:, 1] * moved[:, 0], pitch[:, 1], moved


def numbers(cond: Cond | None, like: Tensor) -> Tensor:
    """(B, NUMBERS): what the conditioning vector is told of pitch, speed, delay and level."""
    pitch, has, moved = _told(cond, like)
    angles = pitch[:, None] * (2 * math.pi / torch.tensor(PERIODS, device=like.device))
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([has[:, None], has[:, None] * waves, moved], 1)


def comb(cond: Cond | None, like: Tensor) -> Tensor:
    """(B, 2, BANDS): near which rows harmonics of the pitch lie, and which row its fundamental."""
    pitch, has, _ = _told(cond, like)
    order = torch.arange(1, HARMONICS + 1, device=like.device)
    frequency = 440 * 2 ** ((pitch - 69) / 12)[:, None] * order
    spacing = float(mel(torch.tensor(RATE / 2.0))) / (BANDS + 1)
    place = mel(frequency) / spacing - 1  # in rows
    rows = torch.arange(BANDS, device=like.device)
    near = (1 - (place[:, :, None] - rows).abs() / 1.5).clamp(min=0) * (frequency < RATE / 2)[:, :, None]
    return has[:, None, None] * torch.stack([near.amax(1), near[:, 0]], 1)


def _conditioned(cond: Cond | None, like: Tensor) -> Cond:
    told = {key: value for key, value in (cond or {}).items() if key not in ("pitch", "told", "mask")}
    return {**told, "augment": numbers(cond, like)}


class BandsUNet(nn.Module):
    """Mel bands (B, 1, 128, 64), log-SNR (B,), cond -> the same shape. Settings are UNet's."""

    def __init__(self, channels: int = 1, augment: int = NUMBERS, **settings: Any) -> None:
        super().__init__()
        self.channels = channels
        self.unet = UNet(channels=channels + SHOWN, augment=augment, **settings)
        width = self.unet.head.conv.in_channels  # what is shown is read and not drawn
        self.unet.head = Conv(width, channels * self.unet.unshuffle**2)
        zero_(self.unet.head)

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        b, _, height, width = x.shape
        row = torch.linspace(-1, 1, height, device=x.device)
        column = torch.linspace(-1, 1, width, device=x.device)
        rows = torch.stack([row, torch.cos(math.pi * 4 * row), torch.sin(math.pi * 4 * row)])
        places = torch.cat([rows[:, :, None].expand(-1, -1, width), column.expand(1, height, width)])
        lines = comb(cond, x)
        if height != BANDS:  # a smaller network in a test
            lines = F.interpolate(lines, height)
        shown = torch.cat([lines[..., None].expand(-1, -1, -1, width), places.expand(b, -1, -1, -1)], 1)
        return self.unet(torch.cat([x, shown.to(x.dtype)], 1), logsnr, _conditioned(cond, x))


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x)))·(1+scale)+shift)) along time, the inner one with gaps."""

    def __init__(self, width: int, embedding: int, gap: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv_in = nn.Conv1d(width, width, 3, padding=gap, dilation=gap)
        self.conv_out = nn.Conv1d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.dropout = Dropout(dropout)
        zero_(self.conv_out)
        zero_(self.modulation)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        y = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(vector)[..., None].chunk(2, dim=1)
        y = F.silu(self.norm_out(y) * (1 + scale) + shift)
        return x + self.conv_out(self.dropout(y))


class _Level(nn.ModuleList):
    """Blocks one after another, each told the same vector."""

    def forward(self, y: Tensor, vector: Tensor) -> Tensor:
        for block in self:
            y = block(y, vector)
        return y


class WaveUNet(nn.Module):
    """Samples (B, channels, N), log-SNR (B,), cond -> the same shape; N divisible by patch · 4^(levels − 1).

    Args: `patch` samples that become channels; `widths` a level, finest first; `blocks` a level, on the way in and out; the rest
    as UNet's. Levels change by four steps of time to channels and a linear map. Source of the idea: Rouard and Hadjeres 2021,
    arXiv:2106.07431 (a one-dimensional U-Net on drums).
    """

    def __init__(self, channels: int = 1, classes: int = 0, text_dim: int = 0, augment: int = NUMBERS, patch: int = 16,
                 widths: Sequence[int] = (96, 160, 256), blocks: Sequence[int] = (2, 2, 2), embedding: int = 192,
                 dropout: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.patch = channels, patch
        self.conditioning = Conditioning(embedding, text_dim, classes, augment)
        self.stem = nn.Conv1d(channels * patch, widths[0], 7, padding=3)

        def level(i: int) -> _Level:
            return _Level(_Block(widths[i], embedding, 3**k, dropout if i else 0.0) for k in range(blocks[i]))

        self.down = nn.ModuleList(level(i) for i in range(len(widths)))
        self.up = nn.ModuleList(level(i) for i in range(len(widths)))
        pairs = list(zip(widths, widths[1:], strict=False))
        self.shrink = nn.ModuleList(nn.Conv1d(4 * fine, coarse, 1) for fine, coarse in pairs)
        self.grow = nn.ModuleList(nn.Conv1d(coarse, 4 * fine, 1) for fine, coarse in pairs)
        self.norm = nn.GroupNorm(8, widths[0])
        self.head = nn.Conv1d(widths[0], channels * patch, 7, padding=3)
        zero_(self.head)

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        vector = F.silu(self.conditioning(logsnr, _conditioned(cond, x))[0])
        y = self.stem(_folded(x, self.patch))
        skips = []
        for i, level in enumerate(self.down):
            if i:
                y = self.shrink[i - 1](_folded(y, 4))
            y = level(y, vector)
            skips.append(y)
        for i in reversed(range(len(self.up))):
            if i < len(self.up) - 1:
                y = _unfolded(self.grow[i](y), 4) + skips[i]
            y = self.up[i](y, vector)
        return _unfolded(self.head(F.silu(self.norm(y))).float(), self.patch)


def _folded(x: Tensor, by: int) -> Tensor:
    """(B, C, N) -> (B, C·by, N/by)."""
    b, c, n = x.shape
    return x.reshape(b, c, n // by, by).transpose(2, 3).reshape(b, c * by, n // by)


def _unfolded(x: Tensor, by: int) -> Tensor:
    b, c, n = x.shape
    return x.reshape(b, c // by, by, n).transpose(2, 3).reshape(b, c // by, n * by)
