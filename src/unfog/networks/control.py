"""A branch that steers a frozen U-Net by pictures: a trainable copy of its encoder that also sees hints.

    h = stem′(x_t) + hints(g ⊙ c),   skip_i ← skip_i + s·Z_i·h_i,   s = maxₖ sₖ,  gₖ = sₖ/s

c are the hints of all kinds side by side, sₖ the strength of kind k (0 = not given); Z_i are linear maps that start at zero, so
that at first, and at strength 0 for ever, the network is what it was, to the bit. One branch for all kinds: its trunk is nine
tenths of the weights and the same work for each (pictures' edges, areas and colours at the same places), kinds that are asked
for together are seen together instead of being summed by chance, and several cost no more time than one.
Source: Zhang et al. 2023, arXiv:2302.05543 (copy of the encoder, zero-initialised outputs). Deviations: one branch for all
kinds, hints enter at full strength at first, and the conditioning vector is the frozen network's own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.layers import Cond, zero_
from unfog.networks.unet import Conv, UNet


class Hints(nn.Module):
    """Hints (B, C, H, W), C channels of all kinds, and a share (B, K) of each kind, to features (B, H/u, W/u, width)."""

    which: Tensor

    def __init__(self, channels: Sequence[int], unshuffle: int, width: int) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        kinds = torch.repeat_interleave(torch.arange(len(channels)), torch.tensor(list(channels), dtype=torch.long))
        self.register_buffer("which", kinds, persistent=False)
        self.stem = Conv(len(kinds) * unshuffle**2, width)
        self.kinds = nn.Linear(len(channels), width, bias=False)
        self.conv = Conv(width, width)

    def forward(self, hints: Tensor, share: Tensor) -> Tensor:
        x = hints * share[:, self.which][..., None, None]
        y = self.stem(F.pixel_unshuffle(x, self.unshuffle).permute(0, 2, 3, 1).contiguous())
        return self.conv(F.silu(y + self.kinds(share)[:, None, None]))


class ControlBranch(nn.Module):
    """What is added to each skip and to the middle of `base`. channels: of the hint of each kind, in the order of cond.

    `cond["control"]` (B, ΣC, H, W) in [0, 1], `cond["control_strength"]` (B, K) at least 0.
    """

    def __init__(self, base: UNet, channels: Sequence[int]) -> None:
        super().__init__()
        self.stem, self.middle = copy.deepcopy(base.stem), copy.deepcopy(base.middle)
        self.down, self.shrink = copy.deepcopy(base.down), copy.deepcopy(base.shrink)
        self.requires_grad_(True)
        widths = [base.norm.normalized_shape[0]]  # of each skip, in the order in which they are made
        for level, stages in enumerate(base.down):
            width = stages[0].block.norm_in.normalized_shape[0]  # type: ignore[index]
            widths += [width] * (len(stages) + (level > 0))  # type: ignore[arg-type]
        self.hints = Hints(channels, base.unshuffle, widths[0])
        self.out = nn.ModuleList(zero_(nn.Linear(width, width)) for width in [*widths, widths[-1]])

    def forward(self, base: UNet, x: Tensor, logsnr: Tensor, cond: Cond) -> list[Tensor]:
        """What to add to the skips, first made first, and to the middle: (B, h, w, width) each."""
        vector, *read = base.conditioning(logsnr, cond)
        text, vector = (*read, cond.get("perturb")), F.silu(vector)
        dtype = vector.dtype
        strength = cond["control_strength"].to(dtype)
        most = strength.amax(dim=1)
        share = strength / most.clamp(min=1e-6)[:, None]
        y = self.stem(F.pixel_unshuffle(x, base.unshuffle).permute(0, 2, 3, 1).contiguous())
        y = y + self.hints(cond["control"].to(dtype), share)
        found = [y]
        for level, stages in enumerate(self.down):
            if level:
                y = self.shrink[level - 1](y)
                found.append(y)
            for stage in stages:  # type: ignore[attr-defined]
                y = stage(y, None, vector, *text)
                found.append(y)
        found.append(self.middle(y, None, vector, *text))
        return [most[:, None, None, None] * out(y) for out, y in zip(self.out, found, strict=True)]
