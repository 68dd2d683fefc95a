"""Pictures in looks that no artist drew: filters with numbers drawn at random, the same for all pictures of one look.

A reader of style taught on a few styles alone would learn to tell those apart; among looks without end it has to read numbers:
how dark an outline, how soft an edge, how full a colour. UNSEEN are never taught; they measure whether it does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Filter = Callable[[Tensor, np.random.Generator], Tensor]  # straight RGBA (B, 4, H, W) in [0, 1] -> the same
GREY = (0.299, 0.587, 0.114)


def _colour(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.random(3).astype(np.float32))[:, None, None]


def _grey(x: Tensor) -> Tensor:
    return (x[:, :3] * torch.tensor(GREY)[:, None, None]).sum(1, keepdim=True)


def _with(x: Tensor, colour: Tensor) -> Tensor:
    return torch.cat([colour.clamp(0, 1), x[:, 3:]], 1)


def outline(x: Tensor, rng: np.random.Generator) -> Tensor:
    """A line of one colour, often dark, along the border: 1 to 3 pixels, outside."""
    ink, wide = _colour(rng) * rng.choice([0.15, 1.0], p=[0.7, 0.3]), int(rng.integers(1, 4))
    grown = F.max_pool2d(x[:, 3:], 2 * wide + 1, 1, wide)
    alpha = x[:, 3:]
    colour = (x[:, :3] * alpha + ink * (grown - alpha)) / grown.clamp(min=1e-3)
    return torch.cat([colour.clamp(0, 1), grown], 1)


def ink(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Drawn lines: dark ones of 1 to 3 pixels around it, and a pixel or two inside where its colours change."""
    wide, dark = int(rng.integers(1, 4)), _colour(rng) * 0.2
    colour, alpha = x[:, :3], x[:, 3:]
    near = F.pad(colour, (1, 1, 1, 1), mode="replicate")
    change = F.max_pool2d(near, 3, 1) + F.max_pool2d(-near, 3, 1)  # the range of each channel over a pixel's neighbours
    line = ((change.amax(1, keepdim=True) - float(rng.uniform(0.2, 0.5))) * 8).clamp(0, 1) * alpha
    grown = F.max_pool2d(alpha, 2 * wide + 1, 1, wide)
    inside = (colour * (1 - line) + dark * line) * alpha
    return torch.cat([((inside + dark * (grown - alpha)) / grown.clamp(min=1e-3)).clamp(0, 1), grown], 1)


def flat(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Areas of one colour: each pixel takes the middle value of its neighbours, channel by channel, some times over."""
    colour = x[:, :3]
    for _ in range(int(rng.integers(1, 3))):
        shifted = F.unfold(F.pad(colour, (2, 2, 2, 2), mode="replicate"), 5).unflatten(1, (3, 25))
        colour = shifted.median(2).values.unflatten(-1, x.shape[2:])
    return _with(x, colour)


def rim(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Darker or lighter towards the border, inside."""
    wide = int(rng.integers(1, 5))
    inside = -F.max_pool2d(-x[:, 3:], 2 * wide + 1, 1, wide)
    amount = float(rng.uniform(0.3, 0.9)) * (1 - inside)
    return _with(x, x[:, :3] * (1 - amount) if rng.random() < 0.7 else x[:, :3] + amount * (1 - x[:, :3]))


def posterise(x: Tensor, rng: np.random.Generator) -> Tensor:
    """2 to 5 levels a channel."""
    levels = int(rng.integers(1, 5))
    return _with(x, (x[:, :3] * levels).round() / levels)


def blur(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Colour and border smeared over 3 or 5 pixels."""
    size = int(rng.choice([3, 5]))
    p = F.avg_pool2d(torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1), size, 1, size // 2)
    return torch.cat([(p[:, :3] / p[:, 3:].clamp(min=1e-3)).clamp(0, 1), p[:, 3:]], 1)


def contrast(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Harder, flatter, lighter or darker."""
    gain, lift = float(rng.uniform(0.4, 1.6)), float(rng.uniform(-0.15, 0.2))
    return _with(x, (x[:, :3] - 0.5) * gain + 0.5 + lift)


def saturate(x: Tensor, rng: np.random.Generator) -> Tensor:
    """From grey to twice as full."""
    grey = _grey(x)
    return _with(x, grey + (x[:, :3] - grey) * float(rng.uniform(0, 2)))


def tint(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Everything drawn towards one colour."""
    amount = float(rng.uniform(0.2, 0.6))
    return _with(x, x[:, :3] * (1 - amount) + _colour(rng) * amount)


def shade(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Light from above or below."""
    fall = torch.linspace(1, -1, x.shape[2])[:, None] * float(rng.uniform(-0.4, 0.4))
    return _with(x, x[:, :3] + fall)


def mosaic(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Squares of 2 or 4 pixels."""
    size = int(rng.choice([2, 4]))
    p = F.avg_pool2d(torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1), size)
    p = F.interpolate(p, x.shape[2:], mode="nearest")
    return torch.cat([(p[:, :3] / p[:, 3:].clamp(min=1e-3)).clamp(0, 1), p[:, 3:]], 1)


def duotone(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Dark to one colour, light to another."""
    dark, light = _colour(rng) * 0.5, 0.5 + _colour(rng) * 0.5
    grey = _grey(x)
    return _with(x, dark * (1 - grey) + light * grey)


def sticker(x: Tensor, rng: np.random.Generator) -> Tensor:
    """A white border of 3 pixels with a thin grey one around it."""
    for wide, ink in ((3, 1.0), (1, 0.6)):
        grown = F.max_pool2d(x[:, 3:], 2 * wide + 1, 1, wide)
        colour = (x[:, :3] * x[:, 3:] + ink * (grown - x[:, 3:])) / grown.clamp(min=1e-3)
        x = torch.cat([colour.clamp(0, 1), grown], 1)
    return x


FILTERS: dict[str, Filter] = {
    f.__name__: f for f in (outline, ink, flat, rim, posterise, blur, contrast, saturate, tint, shade, mosaic)
}
LIKELIER = {"ink": 3.0, "flat": 2.0}  # as draughtsmen's looks are more often than a mosaic
UNSEEN: dict[str, Filter] = {"duotone": duotone, "sticker": sticker}


def restyled(pictures: NDArray[np.uint8], seed: int, filters: dict[str, Filter] | None = None) -> NDArray[np.uint8]:
    """Straight RGBA (B, H, W, 4) uint8 in one look that `seed` stands for: one to three of `filters` (FILTERS)."""
    rng, known = np.random.default_rng([seed, 11]), filters or FILTERS
    likely = np.array([LIKELIER.get(name, 1.0) for name in sorted(known)])
    chosen = rng.choice(sorted(known), size=min(int(rng.integers(1, 4)), len(known)), replace=False, p=likely / likely.sum())
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    for name in chosen if filters is None else sorted(known):
        x = known[str(name)](x, rng)
    out = (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    out[out[..., 3] == 0] = 0
    return out
