"""U-Net: an encoder and a decoder of residual convolutions with skips, attention at the coarse levels.

Source: Ronneberger et al. 2015, arXiv:1505.04597; Dhariwal & Nichol 2021, arXiv:2105.05233 (adaptive norm). Deviations,
each measured on CPUs: feature maps are channels-last (B, H, W, C) and normalised over channels a pixel, because group
norm over channels-last maps costs ten times as much; pictures are pixel-unshuffled, so that no work is done at full
resolution; levels change by space-to-depth and a linear map; a skip is merged before its block, by a linear map. With `gated`
the noisy picture itself is taken where the network says so, number by number: what normalised features cannot hand through is
nearly right there once little noise is left.

    out = head(h) + gate(h) ⊙ x_t,   h = silu(norm(y)),   gate zero at first
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.attention import TextAttention
from unfog.networks.layers import Cond, Conditioning, Dropout, zero_


class _Trained(torch.autograd.Function):
    """3×3 convolution whose weight's gradient is a matrix product, (9·c_in, B·H·W) by (B·H·W, c_out), chunk by chunk.

    From 128 channels on it takes 0.5 to 0.9 of the time of the library's own in float32; what is left is the library's.
    """

    CHUNK = 2**20  # numbers in one chunk's left matrix: those of several pictures, in the processor's cache

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # x (B, C, H, W)
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        one, wanted = [1, 1], [ctx.needs_input_grad[0], False, False]
        to_x = torch.ops.aten.convolution_backward(grad, x, weight, None, one, one, one, False, [0, 0], 1, wanted)[0]
        b, c, h, w = x.shape
        rows = grad.permute(0, 2, 3, 1)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        taps, count = x.new_zeros(9 * c, len(weight)), max(_Trained.CHUNK // (9 * c * h * w), 1)
        for some, out in zip(padded.split(count), rows.split(count), strict=True):
            near = torch.cat([some[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], dim=-1)
            taps.addmm_(near.reshape(-1, 9 * c).T, out.reshape(-1, len(weight)))
        to_weight = taps.reshape(3, 3, c, -1).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        return to_x, to_weight, rows.sum((0, 1, 2))


class Conv(nn.Module):
    """3×3 convolution on (B, H, W, C)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.conv.weight.data = self.conv.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = x.permute(0, 3, 1, 2), self.conv.weight
        own = x.device.type == "cpu" and weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if own and self.training and x.shape[1] >= 128 and weight.requires_grad and torch.is_grad_enabled():
            return _Trained.apply(x, weight, self.conv.bias).permute(0, 2, 3, 1)
        return self.conv(x).permute(0, 2, 3, 1)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x)))·(1+scale)+shift)), scale and shift from the conditioning vector."""

    def __init__(self, c_in: int, c_out: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(c_in), nn.LayerNorm(c_out)
        self.conv_in, self.conv_out = Conv(c_in, c_out), Conv(c_out, c_out)
        self.modulation = nn.Linear(width, 2 * c_out)
        self.skip = nn.Linear(c_in, c_out) if c_in != c_out else nn.Identity()
        self.dropout = Dropout(dropout)
        zero_(self.conv_out)
        zero_(self.modulation)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        y = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(vector)[:, None, None].chunk(2, dim=-1)
        y = F.silu(torch.addcmul(shift, self.norm_out(y).to(shift.dtype), 1 + scale))
        return self.skip(x) + self.conv_out(self.dropout(y))


class Stage(nn.Module):
    """A residual block, with attention behind it at the levels that attend; in the decoder a skip is merged first."""

    def __init__(self, c_in: int, c_out: int, width: int, text_dim: int, attends: bool, dropout: float, skip: int = 0):
        super().__init__()
        self.merge = nn.Linear(skip, c_in) if skip else None
        self.block = ResBlock(c_in, c_out, width, dropout)
        self.attention = TextAttention(c_out, text_dim) if attends else None

    def forward(self, x: Tensor, skip: Tensor | None, vector: Tensor, *text: Tensor | None) -> Tensor:
        """text: what TextAttention takes beside x."""
        if self.merge is not None and skip is not None:
            x = x + self.merge(skip)
        x = self.block(x, vector)
        if self.attention is None:
            return x
        return self.attention(x.flatten(1, 2), *text).reshape(x.shape)


class Down(nn.Module):
    """Halve height and width: each 2×2 square becomes one pixel."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        squares = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3)
        return self.linear(squares.reshape(b, h // 2, w // 2, 4 * c))


class Up(nn.Module):
    """Double height and width: each pixel becomes a 2×2 square."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, 4 * c_out)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        squares = self.linear(x).reshape(b, h, w, 2, 2, -1).transpose(2, 3)
        return squares.reshape(b, 2 * h, 2 * w, -1)


class UNet(nn.Module):
    """Picture (B, C, H, W), log-SNR (B,), cond -> (B, C, H, W); H and W divisible by unshuffle · 2^(levels − 1).

    Args: `channels` of the picture; `unshuffle` pixels a side that become channels; `widths` a level, finest first;
    `blocks` encoder blocks a level (the decoder has one more); `attention` whether a level attends; `embedding` width of
    the conditioning vector; `text_dim` 0 or the text state's width; `classes` number of classes; `dropout` in [0, 1);
    `augment` numbers that say how a picture was moved; `gated` whether its input may be a part of its output.
    """

    def __init__(
        self,
        channels: int = 4,
        unshuffle: int = 4,
        widths: Sequence[int] = (128, 192, 256),
        blocks: Sequence[int] = (2, 2, 1),
        attention: Sequence[bool] = (False, True, True),
        embedding: int = 256,
        text_dim: int = 384,
        classes: int = 0,
        dropout: float = 0.0,
        augment: int = 0,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.unshuffle = channels, unshuffle
        self.conditioning = Conditioning(embedding, text_dim, classes, augment)
        self.stem = Conv(channels * unshuffle**2, widths[0])
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))

        def stage(level: int, skip: int = 0) -> Stage:
            rate = dropout if level else 0.0  # the finest level only copies detail
            return Stage(widths[level], widths[level], embedding, text_dim, attention[level], rate, skip)

        for level in range(len(widths)):
            self.down.append(nn.ModuleList(stage(level) for _ in range(blocks[level])))
            # a decoder block for each encoder block, and one for what entered the level
            self.up.insert(0, nn.ModuleList(stage(level, widths[level]) for _ in range(blocks[level] + 1)))
        for fine, coarse in zip(widths, widths[1:], strict=False):
            self.shrink.append(Down(fine, coarse))
            self.grow.insert(0, Up(coarse, fine))
        self.middle = Stage(widths[-1], widths[-1], embedding, text_dim, True, dropout)
        self.norm = nn.LayerNorm(widths[0])
        self.head = Conv(widths[0], channels * unshuffle**2)
        self.gate = zero_(Conv(widths[0], channels * unshuffle**2)) if gated else None
        zero_(self.head)

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        cond = cond or {}
        vector, *read = self.conditioning(logsnr, cond)
        text = (*read, cond.get("perturb"), cond.get("image_kv"))
        vector = F.silu(vector)
        given = F.pixel_unshuffle(x, self.unshuffle).permute(0, 2, 3, 1).contiguous()
        y = self.stem(given)
        skips = [y]
        for level, stages in enumerate(self.down):
            if level:
                y = self.shrink[level - 1](y)
                skips.append(y)
            for stage in stages:  # type: ignore[attr-defined]
                y = stage(y, None, vector, *text)
                skips.append(y)
        y = self.middle(y, None, vector, *text)
        if "added" in cond:  # of a control: a tensor each skip, and one for the middle
            *more, last = cond["added"]
            skips, y = [skip + part for skip, part in zip(skips, more, strict=True)], y + last
        for level, stages in enumerate(self.up):
            if level:
                y = self.grow[level - 1](y)
            for stage in stages:  # type: ignore[attr-defined]
                y = stage(y, skips.pop(), vector, *text)
        y = F.silu(self.norm(y))
        y = self.head(y) if self.gate is None else torch.addcmul(self.head(y), self.gate(y), given)
        return F.pixel_shuffle(y.permute(0, 3, 1, 2).float(), self.unshuffle)
