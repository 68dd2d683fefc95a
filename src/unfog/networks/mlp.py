"""A plain multi-layer perceptron over vectors; several of them, independent of each other, run as one batch of matrix products.

    h_0 = [x, sin(2^k·π/4·x), cos(2^k·π/4·x), features of log-SNR];   h_i = f(W_i·h_(i−1) + b_i);   out = W·h + b

Networks this small spend their time on starting operations, not on arithmetic: five runs side by side cost little more than one.
Source of the position features: Tancik et al. 2020, arXiv:2006.10739 (without them the shape of narrow modes is learned slowly).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.layers import Cond, fourier


class MLP(nn.Module):
    """Vectors (R·B, inputs), run after run -> (R·B, outputs); run r of `runs` = R has weights of its own.

    Args: `width` and number `depth` of hidden layers; `bands` octaves of position features; `time` features of log-SNR (0: it
    is not asked for); `smooth` for silu, not the leaky ReLU, which costs less; `seeds`, one a run, of the first weights, so
    that a run starts alike in any company.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        seeds: list[int],
        width: int = 64,
        depth: int = 3,
        bands: int = 0,
        time: int = 0,
        smooth: bool = False,
    ) -> None:
        super().__init__()
        self.runs, self.bands, self.time, self.smooth = len(seeds), bands, time, smooth
        wide = [inputs * (1 + 2 * bands) + time, *(width,) * depth, outputs]
        self.shapes = list(zip(wide, wide[1:], strict=False))
        self.sizes = [size for a, b in self.shapes for size in (a * b, b)]
        # one row holds all of a run's weights: an optimiser then needs one operation where it would need one a layer
        self.weights = nn.Parameter(torch.stack([self._first(torch.Generator().manual_seed(seed)) for seed in seeds]))

    def _first(self, generator: torch.Generator) -> Tensor:
        """First weights of one run, (P,): normal of variance 2/fan-in inside, 1/fan-in at the end; no bias."""
        rows = []
        for i, (a, b) in enumerate(self.shapes):
            gain = 1.0 if i == len(self.shapes) - 1 else 2.0
            rows += [torch.randn(a * b, generator=generator) * math.sqrt(gain / a), torch.zeros(b)]
        return torch.cat(rows)

    def forward(self, x: Tensor, logsnr: Tensor | None = None, cond: Cond | None = None) -> Tensor:
        parts = [x]
        if self.bands:
            angle = (x[..., None] * (2.0 ** torch.arange(self.bands, device=x.device) * (math.pi / 4))).flatten(1)
            parts += [angle.sin(), angle.cos()]
        if self.time:
            assert logsnr is not None, "this network wants the noise level"
            parts.append(fourier(logsnr, self.time).to(x.dtype))
        h = torch.cat(parts, -1).reshape(self.runs, -1, self.shapes[0][0])
        pieces = self.weights.split(self.sizes, dim=1)
        for i, (a, b) in enumerate(self.shapes):
            if i:
                h = F.silu(h) if self.smooth else F.leaky_relu(h, 0.2)
            h = torch.baddbmm(pieces[2 * i + 1][:, None], h, pieces[2 * i].reshape(self.runs, a, b))
        return h.flatten(0, 1)
