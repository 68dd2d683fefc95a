"""How far one picture is from another once shift, size, softness and colour are taken out: the tangent distance.

    min over q, c, M   | y + Σ_j q_j·∂_j y + c·∇²y − M·(p, a, 1, pp) |² + λ·|(M − M₀)·(p, ...)|²        at 16×16, then at 32×32

y is a sample over grey; p and a are a known picture's premultiplied colour and its alpha, pp the products of two channels. The
∂_j move and scale y; Gauss and Newton's steps warp it by what they find. M is a recolouring, held near M₀ (no change); in it, the
alpha and the constant stand for any background. Source: Simard, LeCun and Denker 1993, "Efficient pattern recognition using a
new transformation distance"; Lucas and Kanade 1981 (the steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

SIDE = 32
CELLS, BINS = 8, 8  # of the descriptor
WIDTH = CELLS * CELLS * BINS
BACK = 0.5  # the grey that transparency is shown over
OPAQUE = 0.98  # alpha from which on a picture has a background of its own
KEEP = 0.01  # λ: what a recolouring costs beside a difference that none explains
BENT = 0.03  # the same of each product: curves, clipping, turns of hue
FAR, WIDE = 0.3, 0.12  # the largest move and the largest change of size, in half sides
LUMA = torch.tensor([0.3, 0.55, 0.15]).view(1, 3, 1, 1)
PAIRS = [(i, j) for i in range(3) for j in range(i, 3)]  # products of two channels
ROWS = 5 + len(PAIRS)
COLOURS = [0, 1, 2, *range(5, ROWS)]  # the rows that are colours, not background


def planes(pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
    """Straight-alpha RGBA pictures (H, W, 4) uint8 of any shapes as premultiplied planes (N, 4, 32, 32) uint8.

    By area means; what is not square stands in the middle of a transparent square.
    """
    made = torch.empty(len(pictures), 4, SIDE, SIDE, dtype=torch.uint8)
    if isinstance(pictures, np.ndarray) or len({p.shape for p in pictures}) == 1:
        for i in range(0, len(pictures), 256):
            made[i : i + 256] = _planes(np.asarray(pictures[i : i + 256]))
        return made
    for i, picture in enumerate(pictures):
        made[i] = _planes(picture[None])[0]
    return made


def _planes(pictures: NDArray[np.uint8]) -> Tensor:
    if pictures.ndim != 4 or pictures.shape[-1] != 4 or pictures.dtype != np.uint8 or 0 in pictures.shape[1:3]:
        raise ValueError(f"planes needs uint8 (N, H, W, 4), got {pictures.dtype} {pictures.shape}")
    x = torch.from_numpy(np.ascontiguousarray(pictures)).float()
    x = torch.cat([x[..., :3] * x[..., 3:] / 255, x[..., 3:]], -1).permute(0, 3, 1, 2)
    high, wide = x.shape[-2:]
    if high != wide:
        more = abs(high - wide)
        pad = (more // 2, more - more // 2)
        x = F.pad(x, (*pad, 0, 0) if high > wide else (0, 0, *pad))
    x = F.interpolate(x, (SIDE, SIDE), mode="area") if x.shape[-1] >= SIDE else F.interpolate(x, (SIDE, SIDE), mode="bilinear")
    return x.round().clamp(0, 255).to(torch.uint8)


def shown(x: Tensor) -> Tensor:
    """Planes (B, 4, H, W) in [0, 1] over grey (B, 3, H, W)."""
    return x[:, :3] + (1 - x[:, 3:]) * BACK


def blur(x: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) under a Gaussian of `sigma` pixels, the edges repeated."""
    reach, channels = math.ceil(3 * sigma), x.shape[1]
    k = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma**2))
    k = (k / k.sum()).to(x)
    x = F.pad(x, (reach,) * 4, mode="replicate")
    x = F.conv2d(x, k.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(x, k.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def slopes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """∂x/∂column, ∂x/∂row and ∇²x of (B, C, H, W), a pixel."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    left, right, above, below = p[..., 1:-1, :-2], p[..., 1:-1, 2:], p[..., :-2, 1:-1], p[..., 2:, 1:-1]
    return (right - left) / 2, (below - above) / 2, left + right + above + below - 4 * x


def describe(colours: Tensor) -> Tensor:
    """Unit vectors (B, 512) of pictures over grey (B, 3, 32, 32): how much edge runs which way, in 8×8 overlapping cells.

    Colour, background and mild blur change it little, a shift of a few pixels no more. Source: Dalal and Triggs 2005
    (histograms of oriented gradients), of the strongest channel, roots taken.
    """
    across, down, _ = slopes(blur(colours, 0.7))
    strength = across.square() + down.square()
    which = strength.argmax(1, keepdim=True)
    across, down, strength = (v.gather(1, which)[:, 0] for v in (across, down, strength))
    size = strength.sqrt() * 2
    place = torch.atan2(down, across) / math.pi * BINS % BINS  # an edge and its reverse are one: backgrounds differ
    low = place.floor()
    part, low = place - low, low.long() % BINS
    votes = torch.zeros(len(colours), BINS, *size.shape[1:])
    votes.scatter_add_(1, low[:, None], (size * (1 - part))[:, None])
    votes.scatter_add_(1, (low[:, None] + 1) % BINS, (size * part)[:, None])
    step = SIDE // CELLS
    tent = 1 - (torch.arange(-step + 0.5, step).abs() / step)
    cell = tent[:, None] * tent[None]
    votes = F.conv2d(votes.flatten(0, 1)[:, None], (cell / cell.sum())[None, None], stride=step, padding=step // 2)
    return F.normalize(votes.reshape(len(colours), -1).sqrt(), dim=1)


class Fit(NamedTuple):
    """What aligning found of pairs (B): the warp, the squared distance a pixel, and what is left."""

    warp: Tensor  # (B, 6): move and change of size, in half sides
    energy: Tensor  # (B,)
    residual: Tensor  # (B, 3, S, S)
    moved: Tensor  # (B, 3, S, S): the sample, aligned
    recolour: Tensor  # (B, 3, S, S): by how much the known picture's colours were changed
    softened: Tensor  # (B,): c


def inside(side: int) -> Tensor:
    """1 but for the outermost 1/16, where a shift has brought in what the other picture cannot show."""
    edge = side // 16
    weight = torch.zeros(side, side)
    weight[edge:-edge, edge:-edge] = 1
    return weight


def align(samples: Tensor, known: Tensor, opaque: Tensor, warp: Tensor, steps: int, motions: int) -> Fit:
    """Fit pairs of samples over grey (B, 3, S, S) and known planes (B, 4, S, S) in [0, 1], beginning at `warp`.

    Args: opaque (B,), samples whose background is unknown; steps, Gauss-Newton steps; motions, 2 (moves) or 6 (and sizes).
    """
    count, side = len(samples), samples.shape[-1]
    weight = inside(side).flatten()
    rows = _rows(known)
    weighted = rows * weight
    gram = weighted @ rows.transpose(1, 2)
    ridge, prior = _prior(gram, opaque, weight.sum())
    inverse = torch.linalg.inv((gram + ridge).double()).float()
    before = prior.transpose(1, 2) @ rows  # as it is, over the sample's background
    at = (torch.arange(side) - (side - 1) / 2) / (side / 2)
    down_at, across_at = torch.meshgrid(at, at, indexing="ij")
    best: tuple[Tensor, Tensor] | None = None
    for step in range(steps + 1):
        moved = _warped(samples, warp)
        across, down, round_ = slopes(moved)
        ways = [across, down, across * across_at, across * down_at, down * across_at, down * down_at][:motions]
        v = torch.stack([moved.flatten(2) - before, *(w.flatten(2) * (side / 2) for w in ways), round_.flatten(2)], 2)
        explained = torch.einsum("brp,bcnp->bcrn", weighted, v)
        a = torch.einsum("bcnp,bcmp->bnm", v * weight, v)
        a = a - torch.einsum("bcrn,brk,bckm->bnm", explained, inverse, explained)
        steep, towards = a[:, 1:, 1:], a[:, 1:, 0]
        damping = torch.diag_embed(0.02 * torch.diagonal(steep, dim1=1, dim2=2) + 1e-4 * weight.sum())
        change = torch.linalg.solve(steep + damping, -towards)
        energy = a[:, 0, 0] + 2 * (towards * change).sum(1) + torch.einsum("bn,bnm,bm->b", change, steep, change)
        if best is None:
            best = energy, warp
        else:
            better = energy < best[0]
            best = torch.where(better, energy, best[0]), torch.where(better[:, None], warp, best[1])
        if step < steps:
            warp = warp.clone()
            warp[:, :motions] += change[:, :motions]
            warp = torch.cat([warp[:, :2].clamp(-FAR, FAR), warp[:, 2:].clamp(-WIDE, WIDE)], 1)
    assert best is not None
    coefficients = torch.einsum("brk,bckm->bcrm", inverse, explained)
    along = torch.cat([torch.ones(count, 1), change], 1)
    reached = torch.einsum("bcmp,bm->bcp", v, along)
    new = torch.einsum("bcrm,bm->bcr", coefficients, along)
    residual = reached - new @ rows
    recolour = new[:, :, COLOURS] @ rows[:, COLOURS]
    shape = (count, 3, side, side)
    return Fit(best[1], best[0].clamp(min=0) / weight.sum(), residual.reshape(shape), (reached + before).reshape(shape),
               recolour.reshape(shape), change[:, -1])  # fmt: skip


def _rows(known: Tensor) -> Tensor:
    """p, a, 1 and the products pp of planes (B, 4, S, S), as (B, 11, S·S)."""
    products = torch.stack([known[:, i] * known[:, j] for i, j in PAIRS], 1)
    return torch.cat([known, torch.ones_like(known[:, :1]), products], 1).flatten(2)


def _prior(gram: Tensor, opaque: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """What departures from M₀ cost (B, 11, 11), and M₀ (B, 11, 3): a background over which nothing is known costs nothing."""
    ridge = torch.zeros_like(gram)
    ridge[:, :3, :3] = KEEP * gram[:, :3, :3]
    known = 1 - opaque.float()
    ridge[:, 3, 3] = gram[:, 3, 3] * known
    ridge[:, 4, 4] = gram[:, 4, 4] * known * 0.05
    bent = torch.arange(5, ROWS)
    ridge[:, bent, bent] = BENT * gram[:, bent, bent]
    prior = torch.zeros(len(gram), ROWS, 3)
    prior[:, :3] = torch.eye(3)
    prior[:, 3], prior[:, 4] = (-BACK * known)[:, None], (BACK * known)[:, None]
    return ridge + torch.eye(ROWS) * 1e-4 * total, prior


def _warped(x: Tensor, warp: Tensor) -> Tensor:
    """(B, C, S, S) read at place + (d + A·place), edges repeated."""
    rows = [torch.stack([1 + warp[:, 2], warp[:, 3], warp[:, 0]], 1), torch.stack([warp[:, 4], 1 + warp[:, 5], warp[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def readings(fit: Fit) -> dict[str, Any]:
    """What is read off aligned pairs at 32×32, each (B,) and positive: differences, where they are, and what was changed."""
    weight = inside(fit.residual.shape[-1])
    total = weight.sum()

    def power(x: Tensor) -> Tensor:
        return (x.square().sum(1) * weight).sum((1, 2)) / total

    def spread(x: Tensor) -> Tensor:
        return power(x - (x * weight).sum((2, 3), keepdim=True) / total)

    luma = LUMA.to(fit.residual)
    left = (fit.residual * luma).sum(1, keepdim=True)
    tint = fit.residual - left
    sample = (fit.moved * luma).sum(1, keepdim=True)
    original = sample - left
    soft, soft_tint = blur(left, 1.0), blur(tint, 1.5)
    edges = [slopes(part)[:2] for part in (original, blur(sample, 0.7))]
    local = [F.avg_pool2d((a.square() + b.square()) * weight, 5, 2).flatten(1) for a, b in edges]
    worst = F.avg_pool2d((soft.square() + 0.3 * soft_tint.square().sum(1, keepdim=True)) * weight, 5, 2).flatten(1)
    expected = local[0] + local[1]
    changed = (fit.recolour * luma).sum(1, keepdim=True)
    return {
        "l0": power(left),
        "l1": power(soft),
        "l2": power(blur(left, 2.0)),
        "c1": power(soft_tint),
        "c0": power(tint),
        "edges": power(torch.cat(edges[0], 1)),
        "structure": spread(original),
        "colour": spread(fit.moved - fit.residual - original),
        "worst": worst.max(1).values,
        "odd": (worst / (expected + 1e-4)).max(1).values,
        "odd_strong": (worst / (expected + 2e-3)).max(1).values,
        "odd_many": (worst / (expected + 5e-4)).topk(12, 1).values.mean(1),
        "brightness": spread(changed),
        "hue": spread(fit.recolour - changed),
        "soft": fit.softened.square() + 1e-3,
        "size": fit.warp[:, 2:].square().sum(1) + 1e-5,
        "move": fit.warp[:, :2].square().sum(1) + 1e-4,
    }
