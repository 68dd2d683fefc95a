"""A convolutional autoencoder: pictures (B, C, H, W) <-> a small grid of latents (B, latent, H/factor, W/factor).

    encode   x ↦ μ, ln σ²        z = μ + σ·ε        decode   z ↦ x̂        preview   z ↦ x̂ at a quarter of the size

Source: Kingma & Welling 2013, arXiv:1312.6114; Rombach et al. 2021, arXiv:2112.10752 (as the first stage of a diffusion model).
Deviations, each for CPUs: the picture is pixel-unshuffled at once, so that all but the decoder's last blocks work at the
latents' resolution; normalisation is over the channels of a pixel. With that and without attention a latent sees only what
lies within `reach` of it, and a picture of any size may be worked through in tiles that overlap by as much: the result is the
untiled one, to rounding. Both ways have a straight linear path beside the blocks, which alone is a patch-wise transform.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.layers import zero_
from unfog.networks.unet import Conv, Up

LOG_VARIANCE = (-12.0, 4.0)  # of a latent: beyond lies only rounding, or nothing learnt
FIRST = -5.0  # of it before the first step: σ = 0.08, or noise would hide what there is to learn
TILE = 64  # latents a side, without the overlap


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x))))) on (B, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.conv_in, self.conv_out = Conv(width, width), Conv(width, width)
        zero_(self.conv_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_in(F.silu(self.norm_in(x)))
        return x + self.conv_out(F.silu(self.norm_out(y)))


class Encoder(nn.Module):
    """(B, C, H, W) -> mean and logarithm of the variance of the latents, each (B, latent, H/factor, W/factor)."""

    def __init__(self, channels: int, factor: int, latent: int, width: int, blocks: int) -> None:
        super().__init__()
        self.factor = factor
        self.stem = Conv(channels * factor**2, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = Conv(width, 2 * latent)
        self.straight = nn.ModuleDict({"head": nn.Linear(channels * factor**2, latent)})
        zero_(self.head)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = F.pixel_unshuffle(x, self.factor).permute(0, 2, 3, 1).contiguous()
        y = self.head(F.silu(self.norm(self.blocks(self.stem(patches)))))
        mean, spread = y.permute(0, 3, 1, 2).float().chunk(2, dim=1)
        mean = mean + self.straight["head"](patches).permute(0, 3, 1, 2).float()
        return mean, (spread + FIRST).clamp(*LOG_VARIANCE)


class Decoder(nn.Module):
    """(B, latent, h, w) -> (B, C, h·factor, w·factor); the last `fine` blocks work at twice the latents' resolution."""

    def __init__(self, channels: int, factor: int, latent: int, width: int, blocks: int, fine_width: int, fine: int) -> None:
        super().__init__()
        self.factor = factor
        self.stem = Conv(latent, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.grow = Up(width, fine_width) if fine else nn.Identity()
        self.fine = nn.Sequential(*(Block(fine_width) for _ in range(fine)))
        last, self.left = (fine_width, factor // 2) if fine else (width, factor)
        self.norm = nn.LayerNorm(last)
        self.head = Conv(last, channels * self.left**2)
        self.straight = nn.ModuleDict({"head": nn.Linear(latent, channels * factor**2)})
        zero_(self.head)

    def forward(self, z: Tensor) -> Tensor:
        latents = z.permute(0, 2, 3, 1).contiguous()
        y = self.fine(self.grow(self.blocks(self.stem(latents))))
        y = F.pixel_shuffle(self.head(F.silu(self.norm(y))).permute(0, 3, 1, 2).float(), self.left)
        return y + F.pixel_shuffle(self.straight["head"](latents).permute(0, 3, 1, 2).float(), self.factor)


class Preview(nn.Module):
    """Latents to a picture of a quarter of the size (or the latents' own, if that is larger) by one linear map."""

    def __init__(self, channels: int, factor: int, latent: int) -> None:
        super().__init__()
        self.grows = max(factor // 4, 1)
        self.head = nn.Linear(latent, channels * self.grows**2)

    def forward(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(self.head(z.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), self.grows)


class Autoencoder(nn.Module):
    """Pictures (B, channels, H, W), H and W divisible by `factor`, <-> latents (B, latent, H/factor, W/factor).

    Args: `factor` 2, 4 or 8; `latent` channels of the latents; `width` and `encoder`, `decoder` blocks at their resolution;
    `fine_width` and `fine` blocks at twice that.
    """

    def __init__(
        self,
        channels: int = 4,
        factor: int = 4,
        latent: int = 8,
        width: int = 96,
        encoder: int = 2,
        decoder: int = 3,
        fine_width: int = 48,
        fine: int = 1,
    ) -> None:
        super().__init__()
        self.channels, self.factor, self.latent = channels, factor, latent
        self.encoder = Encoder(channels, factor, latent, width, encoder)
        self.decoder = Decoder(channels, factor, latent, width, decoder, fine_width, fine)
        self.preview = Preview(channels, factor, latent)
        # latents that touch a latent or a picture's patch: one a convolution, half as much at twice the resolution
        self.reach = {"encode": 2 + 2 * encoder, "decode": 2 + 2 * decoder + fine + (1 if fine else 0)}

    def begin(self, patches: Tensor) -> None:
        """First values of the straight paths and the preview: the principal axes of patches (N, channels · factor²)."""
        mean = patches.double().mean(0)
        values, axes = torch.linalg.eigh((patches.double() - mean).T @ (patches.double() - mean) / len(patches))
        axes, scale = axes[:, -self.latent :].flip(1), values[-self.latent :].flip(0).clamp(min=1e-6).sqrt()
        into: Any = self.encoder.straight["head"]
        back: Any = self.decoder.straight["head"]
        with torch.no_grad():
            into.weight.copy_((axes / scale).T)
            into.bias.copy_(-(axes / scale).T @ mean)
            back.weight.copy_(axes * scale)
            back.bias.copy_(mean)
            # of the preview: the means of that over the pixels that become one
            left = self.factor // self.preview.grows
            rows = torch.arange(len(mean)).reshape(-1, self.preview.grows, left, self.preview.grows, left).transpose(2, 3)
            rows = rows.reshape(-1, left * left)
            self.preview.head.weight.copy_(back.weight[rows].mean(1))
            self.preview.head.bias.copy_(back.bias[rows].mean(1))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-> mean and logarithm of the variance of the latents."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """x and back, by the mean of its latents."""
        return self.decode(self.encode(x)[0])


def tiled(work: Callable[[Tensor], Tensor], x: Tensor, into: int, out: int, reach: int, tile: int = TILE) -> Tensor:
    """work(x) of a large x, tile by tile: each with `reach` cells around it, which are cut off again.

    into, out: numbers a side of a cell in x and in what `work` makes of it. x (B, C, h·into, w·into) -> (B, C', h·out, w·out),
    the same as work(x) to rounding where no cell sees further than `reach`.
    """
    height, width = x.shape[-2] // into, x.shape[-1] // into
    rows = []
    for top in range(0, height, tile):
        above, below = max(top - reach, 0), min(top + tile + reach, height)
        row = []
        for left in range(0, width, tile):
            before, behind = max(left - reach, 0), min(left + tile + reach, width)
            part = work(x[..., above * into : below * into, before * into : behind * into])
            down, along = slice((top - above) * out, (min(top + tile, height) - above) * out), \
                slice((left - before) * out, (min(left + tile, width) - before) * out)  # fmt: skip
            row.append(part[..., down, along])
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)
