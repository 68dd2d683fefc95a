"""Items larger than a model makes, and items without edges: one estimate out of those of overlapping windows.

    D(x_t)_p = Σ_w g_w(p)·D_w(x_t restricted to w)_p / Σ_w g_w(p)

The windows' mean is what agrees best with all of them. On a torus (`wrap`) the windows reach over the edges, so nothing marks
where an edge is, and the result tiles. Source: Bar-Tal et al. 2023 (MultiDiffusion), arXiv:2302.08113, eq. 5 and 7. Deviations:
x0 is averaged, not x_{t−1}, so that any sampler can run it (the same for first-order ones, whose steps are affine in x0); g
falls towards a window's edges, where the network sees least, instead of being 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.processes import Process
from unfog.errors import UserError

AT_ONCE = 16  # windows of an item in one call of the network


def places(total: int, size: int, wrap: bool = False, overlap: float = 0.5) -> list[int]:
    """Where windows of `size` begin that cover `total`, evenly, each lying over at least `overlap` of its neighbour."""
    if total < size:
        raise UserError(f"windows: {total} is less than a window of {size}")
    stride = max(int(size * (1.0 - overlap)), 1)
    if wrap:
        count = -(-total // stride)
        return [round(k * total / count) for k in range(count)]
    count = -(-(total - size) // stride) + 1
    return [round(k * (total - size) / max(count - 1, 1)) for k in range(count)]


class Windows:
    """A denoiser of x (B, C, H, W) made of one of windows (B, C, *size); wrap: of x on a torus.

    The inner denoiser is called with several windows of each item, item by item, and with cond repeated alike.
    """

    def __init__(self, denoiser: Denoiser, size: Sequence[int], wrap: bool = False) -> None:
        self.denoiser, self.size, self.wrap = denoiser, (int(size[0]), int(size[1])), wrap

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def _bump(self, length: int) -> Tensor:
        """g along one axis: rises and falls in a line, nowhere 0."""
        k = torch.arange(length, dtype=torch.float32)
        return (torch.minimum(k, length - 1 - k) + 0.5) / length

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """x0 (B, C, H, W)."""
        batch, _, high, wide = x_t.shape
        h, w = self.size
        if (high, wide) == self.size and not self.wrap:
            return self.denoiser(x_t, t, cond)
        g = (self._bump(h)[:, None] * self._bump(w)).to(x_t)
        total, weight = torch.zeros_like(x_t), x_t.new_zeros(high, wide)
        rows = [torch.arange(p, p + h, device=x_t.device) % high for p in places(high, h, self.wrap)]
        columns = [torch.arange(p, p + w, device=x_t.device) % wide for p in places(wide, w, self.wrap)]
        windows = [(r[:, None], c) for r in rows for c in columns]
        for first in range(0, len(windows), AT_ONCE):
            some = windows[first : first + AT_ONCE]
            views = torch.stack([x_t[:, :, r, c] for r, c in some], dim=1).flatten(0, 1)
            told = cond if cond is None else {key: v.repeat_interleave(len(some), 0) for key, v in cond.items()}
            times = t.repeat_interleave(len(some)) if isinstance(t, Tensor) and t.ndim else t
            x0 = self.denoiser(views, times, told).unflatten(0, (batch, len(some)))
            for k, (r, c) in enumerate(some):
                total[:, :, r, c] += g * x0[:, k]
                weight[r, c] += g
        return total / weight
