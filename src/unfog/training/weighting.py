"""A weight for each noise level that is learned beside the network.

    L' = L / exp(u(logsnr)) + u(logsnr)

The least is at u = ln E[L at that level], so that every level's gradient counts as if its loss were 1, whatever it is now.
Source: Karras et al. 2023 (EDM2), arXiv:2312.02696, eq. 21 and appendix B.2 (after Kendall et al. 2018, arXiv:1705.07115).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unfog.networks.layers import fourier


class LearnedWeight(nn.Module):
    """u of log-SNR: Fourier features and one linear map, zero at the start, where the loss is what it was."""

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        self.features = features
        self.linear = nn.Linear(features, 1, bias=True)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def u(self, logsnr: Tensor) -> Tensor:
        """The log of the loss that is expected at these levels, (B,) -> (B,)."""
        # the range of log-SNR is two periods wide at the least, as what lies 40 apart must not be one
        return self.linear(fourier(logsnr, self.features, max_period=80.0) / math.sqrt(self.features))[:, 0]

    def forward(self, loss: Tensor, logsnr: Tensor) -> Tensor:
        """The loss of each item (B,), weighed."""
        with torch.autocast(loss.device.type, enabled=False):
            u = self.u(logsnr)
        return loss / u.exp() + u
