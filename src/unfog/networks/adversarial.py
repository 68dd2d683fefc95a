"""Generator and critic of a small convolutional GAN: residual blocks without normalisation, one the mirror image of the other.

    block(x) = x + conv(lrelu(conv(lrelu x))), the last convolution zero at the start

Source: Huang et al. 2024 (R3GAN), arXiv:2501.05441, sec. 4 (no normalisation, no tricks). Deviation: plain 3×3 convolutions, and
the finest work at half resolution, since none of our networks works on single pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.layers import zero_


class Block(nn.Module):
    """A residual block on (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = zero_(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))


def _coarsest(size: int, unshuffle: int, levels: int) -> int:
    """Pixels a side of the coarsest level."""
    return size // unshuffle // 2 ** (levels - 1)


class Generator(nn.Module):
    """Noise (B, latent) -> pictures (B, channels, size, size); `widths` finest first, as in the U-Net."""

    def __init__(
        self, latent: int = 64, size: int = 32, channels: int = 4, unshuffle: int = 2, widths: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        side = _coarsest(size, unshuffle, len(widths))
        layers: list[nn.Module] = [nn.Linear(latent, widths[-1] * side**2), nn.Unflatten(1, (widths[-1], side, side))]
        for i in reversed(range(len(widths))):
            layers.append(Block(widths[i]))
            if i:  # repeated, not shuffled: what is fine starts smooth
                layers += [nn.Conv2d(widths[i], widths[i - 1], 1), nn.Upsample(scale_factor=2)]
        # the last doubling is smooth, too: shuffled channels of one pixel start as noise, and leave a chequered pattern
        fine = [nn.LeakyReLU(0.2), nn.Upsample(scale_factor=unshuffle), nn.Conv2d(widths[0], widths[0] // 2, 3, padding=1)]
        self.layers = nn.Sequential(*layers, *fine, nn.LeakyReLU(0.2), nn.Conv2d(widths[0] // 2, channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Critic(nn.Module):
    """Pictures (B, channels, size, size) -> a score each, (B, 1)."""

    def __init__(self, size: int = 32, channels: int = 4, unshuffle: int = 2, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        side = _coarsest(size, unshuffle, len(widths))
        layers: list[nn.Module] = [nn.PixelUnshuffle(unshuffle), nn.Conv2d(channels * unshuffle**2, widths[0], 3, padding=1)]
        for i in range(len(widths)):
            if i:
                layers += [nn.AvgPool2d(2), nn.Conv2d(widths[i - 1], widths[i], 1)]
            layers.append(Block(widths[i]))
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(widths[-1] * side**2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
