"""Parts that several networks share: the embedding of log-SNR, normalisation, initial values, conditioning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cond = dict[str, Tensor]
# names of the parts around a network's trunk: they are optimised otherwise, and get no low-rank branches unless asked for
OUTER = ("conditioning", "stem", "head", "gate", "modulation", "patch")


def fourier(logsnr: Tensor, dim: int, max_period: float = 40.0) -> Tensor:
    """Sine and cosine features of log-SNR: (B,) -> (B, dim) float32.

    Frequencies are geometric with periods from `max_period` (the whole useful range of log-SNR, about −20 to 20)
    down to `max_period`/1000. Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5.
    """
    half = dim // 2
    frequencies = torch.exp(torch.linspace(0, math.log(1000), half, device=logsnr.device)) * (2 * math.pi / max_period)
    angle = logsnr.float()[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Dropout(nn.Module):
    """Zeroes numbers while training, each with probability `rate`, and scales up the rest.

    With `seeds` (`seed_dropout`) each item's zeros are its own: the same in any batch, part of one or process.
    """

    seeds: list[int] | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate or self.seeds is None:
            return F.dropout(x, self.rate, self.training)
        generator, kept = torch.Generator(x.device), torch.empty_like(x)
        for item, seed in zip(kept, self.seeds, strict=True):
            item.bernoulli_(1 - self.rate, generator=generator.manual_seed(seed))
        return x * kept.div_(1 - self.rate)


def seed_dropout(network: nn.Module, seeds: Sequence[int]) -> None:
    """Draw the zeros of the next call from a seed of each item, in [0, 2^63), other ones in each layer."""
    layers = [module for module in network.modules() if isinstance(module, Dropout) and module.rate]
    for number, layer in enumerate(layers):
        layer.seeds = [seed ^ (number * 0x9E3779B97F4A7C15 & (1 << 63) - 1) for seed in seeds]


def zero_(module: nn.Module) -> nn.Module:
    """Set a module's parameters to zero, so that the branch it ends starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def small(rows: int, columns: int) -> Tensor:
    """First values of an embedding: uniform with a standard deviation of 0.02.

    Not normal ones: on the meta device, where a loaded model is laid out, those make torch load its compiler, for seconds.
    """
    return nn.init.uniform_(torch.empty(rows, columns), -0.02 * 3**0.5, 0.02 * 3**0.5)


class SteadyLinear(nn.Linear):
    """A linear map that, while sampling on a CPU, gives an item the same bits in any batch and on any number of threads.

    For vectors (B, in): the matrix product's sums are ordered otherwise for one row than for seven, so each row goes alone.
    For tokens (B, L, in): long sums are shared among threads, so they are cut where that never happens; and several threads
    share few rows otherwise than many, so that each item goes alone where there are several. Training does none of it.
    """

    CUT, WHOLE = 512, 768  # numbers in a sum: a piece, and the most that stays in one piece (two threads split 1,024)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or x.device.type != "cpu":
            return super().forward(x)
        if len(x) > 1 and (x.ndim == 2 or torch.get_num_threads() > 1):
            return torch.cat([self(item[None].clone()) for item in x])  # a copy: aligned like any other tensor
        if self.in_features <= self.WHOLE:
            return super().forward(x)
        pieces = zip(x.split(self.CUT, dim=-1), self.weight.split(self.CUT, dim=1), strict=True)
        out = reduce(torch.add, (F.linear(part, weight) for part, weight in pieces))
        return out if self.bias is None else out + self.bias


class RMSNorm(nn.Module):
    """x / sqrt(mean x² + eps) · weight over the last axis, in float32. Source: arXiv:1910.07467."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


class Conditioning(nn.Module):
    """One vector a picture from log-SNR, class and the mean text state; the text tokens apart.

    `cond["text"]` (B, T, text_dim), `cond["text_mask"]` (B, T) True where a token is real, `cond["class"]` (B,) long in
    [0, classes], where `classes` itself means "no class"; `cond["augment"]` (B, augment) says how a training picture was
    moved. A key that is absent counts as no text, no class, not moved. (The networks themselves read `cond["perturb"]` (B,)
    bool: items whose picture tokens attend to themselves alone.)
    """

    def __init__(self, width: int, text_dim: int = 0, classes: int = 0, augment: int = 0) -> None:
        super().__init__()
        self.width, self.text_dim, self.classes = width, text_dim, classes
        self.augment = zero_(SteadyLinear(augment, width, bias=False)) if augment else None
        self.time = nn.Sequential(SteadyLinear(width, width), nn.SiLU(), SteadyLinear(width, width))
        self.label = nn.Embedding.from_pretrained(small(classes + 1, width), freeze=False) if classes else None
        self.pooled = SteadyLinear(text_dim, width) if text_dim else None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, logsnr: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """-> vector (B, width), tokens (B, T, text_dim) or None, token mask (B, T) or None."""
        cond = cond or {}
        vector = self.time(fourier(logsnr, self.width).to(self.dtype))
        if self.label is not None:
            label = cond.get("class")
            if label is None:
                label = torch.full((len(logsnr),), self.classes, device=logsnr.device)
            vector = vector + self.label(label)
        if self.augment is not None and "augment" in cond:
            vector = vector + self.augment(cond["augment"].to(self.dtype))
        if "vector" in cond:  # of a reference picture (networks/style.py)
            vector = vector + cond["vector"].to(self.dtype)
        if self.pooled is None or "text" not in cond:
            return vector, None, None
        text = cond["text"].to(self.dtype)
        mask = cond.get("text_mask")
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        weight = mask.to(text.dtype)[..., None]
        vector = vector + self.pooled((text * weight).sum(1) / weight.sum(1).clamp(min=1))
        return vector, text, mask


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x · (1 + scale) + shift, with (B, C) broadcast over the middle of (B, L, C)."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class SwiGLU(nn.Module):
    """W_out(silu(W_gate x) · W_in x). Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = SteadyLinear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)
