"""DiT: a transformer over picture patches, with text and register tokens in the same stream.

    x ← x + g₁·attention((1 + s₁)·norm(x) + b₁);   x ← x + g₂·mlp((1 + s₂)·norm(x) + b₂)

(s₁, b₁, g₁, s₂, b₂, g₂) = one shared map of the conditioning vector + offsets that each block learns.
Sources: Peebles & Xie 2022, arXiv:2212.09748; Chen et al. 2023, arXiv:2310.00426, sec. 2.3 (shared adaptive norm);
Bao et al. 2022, arXiv:2209.12152 (text as tokens, long skips; here a skip is added through a linear map, which costs half
of their concatenation); Darcet et al. 2023, arXiv:2309.16588 (registers); Li & He 2025, arXiv:2511.13720 (bottleneck
patch embedding); Dehghani et al. 2023, arXiv:2302.05442 (normalised queries and keys).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.errors import UserError
from unfog.networks.attention import attend, perturbed
from unfog.networks.layers import Cond, Conditioning, Dropout, RMSNorm, SteadyLinear, SwiGLU, modulate, small, zero_
from unfog.networks.rotary import grid_angles, rotate


class Stem(nn.Module):
    """Picture and text to one stream of tokens: patches row by row, then registers, then text."""

    def __init__(self, patch_dim: int, bottleneck: int, width: int, text_dim: int, registers: int) -> None:
        super().__init__()
        # through few numbers: pictures fill a small part of pixel space, and noise is not worth carrying
        self.patch = nn.Sequential(nn.Linear(patch_dim, bottleneck, bias=False), nn.Linear(bottleneck, width))
        self.text = nn.Linear(text_dim, width) if text_dim else None
        self.registers = nn.Parameter(small(registers, width))

    def forward(self, patches: Tensor, text: Tensor | None) -> Tensor:
        parts = [self.patch(patches), self.registers.expand(len(patches), -1, -1)]
        if self.text is not None and text is not None:
            parts.append(self.text(text))
        return torch.cat(parts, dim=1)


class Attention(nn.Module):
    """Attention of all tokens (B, L, C) to all; queries and keys are normalised, then turned by their place."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor | None) -> Tensor:
        b, length, width = x.shape
        q, k, v = (y.reshape(b, length, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        y = attend(rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles), v, mask)
        return self.out(y.transpose(1, 2).reshape(b, length, width))


class Block(nn.Module):
    """Attention and a gated feed-forward layer, both modulated and gated; starts as the identity."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = SwiGLU(width, hidden)
        self.offsets = nn.Parameter(torch.zeros(6 * width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, shared: Tensor, angles: Tensor, mask: Tensor | None) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = (shared + self.offsets).chunk(6, dim=-1)
        y = self.attention(modulate(self.norm_attention(x), scale1, shift1), angles, mask)
        x = x + gate1[:, None] * self.dropout(y)
        y = self.mlp(modulate(self.norm_mlp(x), scale2, shift2))
        return x + gate2[:, None] * self.dropout(y)


class Head(nn.Module):
    """Tokens (B, L, C) to patches, modulated by the conditioning vector; starts at zero."""

    def __init__(self, width: int, patch_dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.modulation = SteadyLinear(width, 2 * width)
        self.out = nn.Linear(width, patch_dim)
        zero_(self.modulation)
        zero_(self.out)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.modulation(vector).to(x.dtype).chunk(2, dim=-1)
        return self.out(modulate(self.norm(x), scale, shift))


class DiT(nn.Module):
    """Picture (B, C, H, W), log-SNR (B,), cond -> (B, C, H, W); H and W divisible by `patch`, any number of patches.

    Args: `channels` of the picture; `size` pixels a side in training, which sets how fast positions turn; `patch` pixels
    a side of a token; `width` of a token; `depth` blocks; `heads` of attention; `text_dim` 0 or the text state's width;
    `classes` number of classes; `dropout` in [0, 1); `registers` extra tokens; `bottleneck` numbers a patch passes through;
    `augment` numbers that say how a picture was moved.
    Raises: UserError where these do not fit together.
    """

    def __init__(
        self,
        channels: int = 4,
        size: int = 64,
        patch: int = 4,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        text_dim: int = 384,
        classes: int = 0,
        dropout: float = 0.0,
        registers: int = 4,
        bottleneck: int = 128,
        augment: int = 0,
    ) -> None:
        super().__init__()
        if width % (4 * heads):
            raise UserError(f"network 'dit': width {width} must be a multiple of 4 x heads = {4 * heads}; change either")
        if size % patch:
            raise UserError(f"network 'dit': size {size} must be a multiple of patch {patch}; change either")
        self.patch, self.side, self.head_dim = patch, size // patch, width // heads
        hidden = round(width * 8 / 3 / 32) * 32  # as many weights as a plain layer of 4·width, in whole vector registers
        self.conditioning = Conditioning(width, text_dim, classes, augment)
        self.stem = Stem(channels * patch**2, bottleneck, width, text_dim, registers)
        self.modulation = SteadyLinear(width, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth // 2))
        self.head = Head(width, channels * patch**2)
        zero_(self.modulation)

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        patches = F.pixel_unshuffle(x, self.patch)
        rows, columns = patches.shape[2:]
        vector, text, text_mask = self.conditioning(logsnr, cond)
        vector = F.silu(vector)
        y = self.stem(patches.flatten(2).transpose(1, 2), text)
        angles = grid_angles(rows, columns, self.head_dim, self.side, x.device)
        # Registers and text stand unturned in the picture's centre: word order is in the text states already, and a
        # place common to all is what tells a patch where in the frame it is, which distances between patches do not
        angles = F.pad(angles, (0, 0, 0, y.shape[1] - len(angles)))
        mask = None
        if text_mask is not None:
            mask = F.pad(text_mask, (y.shape[1] - text_mask.shape[1], 0), value=True)
        if cond is not None and "perturb" in cond:
            keys = torch.ones(y.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            mask = perturbed(keys, cond["perturb"], rows * columns)
        shared = self.modulation(vector)
        kept: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            last = len(self.blocks) - 1 - i
            if i > last:
                y = y + self.skips[last](kept[last])
            y = block(y, shared, angles, mask)
            if i < last:
                kept.append(y)
        y = self.head(y[:, : rows * columns], vector)
        return F.pixel_shuffle(y.transpose(1, 2).unflatten(2, (rows, columns)).float(), self.patch)
