"""U-Net: an encoder and a decoder of residual convolutions with skips, attention at the coarse levels.

Source: Ronneberger et al. 2015, arXiv:1505.04597; Dhariwal & Nichol 2021, arXiv:2105.05233 (adaptive group norm). Two
deviations: the input is pixel-unshuffled first, so that no work is done at full resolution, and a skip is merged by a
1×1 convolution before its block, so that decoder blocks are as cheap as encoder blocks (arXiv:2301.11093 puts the
compute at the 16×16 level for the same reason).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.attention import TextAttention2d
from unfog.networks.layers import Cond, Conditioning, zero_


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x)))·(1+scale)+shift)), scale and shift from the conditioning vector."""

    def __init__(self, channels: int, out_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.norm_out = norm(channels), norm(out_channels)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        zero_(self.conv_out)
        zero_(self.modulation)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        y = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(vector)[:, :, None, None].chunk(2, dim=1)
        y = F.silu(torch.addcmul(shift, self.norm_out(y), 1 + scale))
        return self.skip(x) + self.conv_out(self.dropout(y))


class Stage(nn.Module):
    """One residual block, with attention behind it at the levels that have it; a decoder's first merges a skip."""

    def __init__(self, c_in: int, c_out: int, width: int, text_dim: int, attention: bool, dropout: float, skip: int = 0):
        super().__init__()
        self.merge = nn.Conv2d(c_in + skip, c_out, 1) if skip else None
        self.block = ResBlock(c_out if skip else c_in, c_out, width, dropout)
        self.attention = TextAttention2d(c_out, text_dim) if attention else None

    def forward(self, x: Tensor, skip: Tensor | None, vector: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.merge is not None and skip is not None:
            x = self.merge(torch.cat([x, skip], dim=1))
        x = self.block(x, vector)
        return x if self.attention is None else self.attention(x, text, mask)


class UNet(nn.Module):
    """Picture (B, C, H, W), log-SNR (B,), cond -> (B, C, H, W); H and W divisible by unshuffle · 2^(levels − 1).

    Args: `channels` of the picture; `widths` a level, finest first; `blocks` encoder blocks a level (the decoder has one
    more); `attention` whether a level attends; `text_dim` 0 or the text state's width; `classes` number of classes.
    """

    def __init__(
        self,
        channels: int = 4,
        unshuffle: int = 2,
        widths: Sequence[int] = (64, 192, 256),
        blocks: Sequence[int] = (1, 2, 2),
        attention: Sequence[bool] = (False, True, True),
        embedding: int = 384,
        text_dim: int = 384,
        classes: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channels, self.unshuffle = channels, unshuffle
        self.conditioning = Conditioning(embedding, text_dim, classes)
        self.stem = nn.Conv2d(channels * unshuffle**2, widths[0], 3, padding=1)
        common = (embedding, text_dim)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = widths[0], [widths[0]]
        for level, (width, count, attends) in enumerate(zip(widths, blocks, attention, strict=True)):
            stages = nn.ModuleList()
            for _ in range(count):
                stages.append(Stage(current, width, *common, attends, dropout if level else 0.0))
                current = width
                skips.append(width)
            self.down.append(stages)
            if level < len(widths) - 1:
                skips.append(width)
        self.middle = Stage(current, current, *common, True, dropout)
        for level in reversed(range(len(widths))):
            stages = nn.ModuleList()
            for _ in range(blocks[level] + 1):
                stages.append(Stage(current, widths[level], *common, attention[level], dropout if level else 0.0, skips.pop()))
                current = widths[level]
            self.up.append(stages)
        self.norm = norm(current)
        self.head = nn.Conv2d(current, channels * unshuffle**2, 3, padding=1)
        zero_(self.head)

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        vector, text, mask = self.conditioning(logsnr, cond)
        vector = F.silu(vector)
        y = self.stem(F.pixel_unshuffle(x, self.unshuffle).contiguous(memory_format=torch.channels_last))
        skips = [y]
        for level, stages in enumerate(self.down):
            for stage in stages:  # type: ignore[union-attr]
                y = stage(y, None, vector, text, mask)
                skips.append(y)
            if level < len(self.down) - 1:
                y = F.avg_pool2d(y, 2)
                skips.append(y)
        y = self.middle(y, None, vector, text, mask)
        for level, stages in enumerate(self.up):
            for stage in stages:  # type: ignore[union-attr]
                y = stage(y, skips.pop(), vector, text, mask)
            if level < len(self.up) - 1:
                y = F.interpolate(y, scale_factor=2, mode="nearest")
        y = self.head(F.silu(self.norm(y)))
        return F.pixel_shuffle(y.float(), self.unshuffle)
