"""A transformer over atoms with a stream of pairs: bonds are predicted from pairs, positions move along the lines between atoms.

    h_i  ← h_i + attention(h; bias from e) + mlp(h_i)           atoms
    e_ij ← e_ij + mlp(e_ij, h_i + h_j, h_i·h_j, |x_i − x_j|)    pairs, the same both ways
    x_i  ← x_i + Σ_j w(e_ij)·(x_i − x_j)/(|x_i − x_j| + 1)      positions: turn and mirror with the input

The order of the atoms does not matter, and a turned molecule gives a turned answer. With `equivariant` off, positions are plain
numbers that an atom begins with and ends in, and turns are learned from training's random ones.
Sources: Satorras et al. 2021, arXiv:2102.09844 (positions); Vignac et al. 2023 (MiDi), arXiv:2302.09048 (atoms and pairs);
Peebles & Xie 2022, arXiv:2212.09748 (modulation by the noise level).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.errors import UserError
from unfog.networks.layers import Cond, Dropout, RMSNorm, SteadyLinear, SwiGLU, fourier, modulate, zero_

RADII, REACH = 20, 5.0  # Gaussians over distances from 0 to REACH (in standard deviations of the positions)
ORDERS = 3  # single, double, triple


def distances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (B, N, 3) -> differences x_i − x_j (B, N, N, 3), lengths (B, N, N, 1)."""
    apart = x[:, :, None] - x[:, None]
    return apart, (apart.square().sum(-1, keepdim=True) + 1e-8).sqrt()


def felt(length: Tensor) -> Tensor:
    """Lengths (B, N, N, 1) as numbers that a linear map can use: (B, N, N, RADII + 2)."""
    centres = torch.linspace(0.0, REACH, RADII, device=length.device, dtype=length.dtype)
    bumps = torch.exp(-(((length - centres) * (RADII / REACH)) ** 2) / 2)
    return torch.cat([bumps, length / REACH, 1 / (1 + length)], dim=-1)


class Block(nn.Module):
    """Atoms read each other, then pairs read their two atoms and their distance, then atoms move."""

    def __init__(self, width: int, pair: int, heads: int, moves: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.moves = heads, moves
        self.norm_attention, self.norm_mlp, self.norm_atoms = RMSNorm(width), RMSNorm(width), RMSNorm(width)
        self.norm_pair, self.norm_bias = RMSNorm(pair), RMSNorm(pair)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.bias = nn.Linear(pair, heads, bias=False)
        self.read = nn.Parameter(torch.empty(heads * pair, width // heads).uniform_(-(pair**-0.5), pair**-0.5))
        self.out = nn.Linear(width, width)
        self.mlp = SwiGLU(width, 2 * width)
        self.sums, self.products = nn.Linear(width, 2 * pair, bias=False), nn.Linear(width, pair, bias=False)
        self.inner = nn.Linear(pair + RADII + 2, 2 * pair)
        self.product = nn.Linear(pair, 2 * pair, bias=False)
        self.pair_out = zero_(nn.Linear(2 * pair, pair))
        self.head = zero_(nn.Linear(2 * pair, 1)) if moves else None
        self.offsets = nn.Parameter(torch.zeros(6 * width))
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor, e: Tensor, x: Tensor, shared: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, width = h.shape
        scale1, shift1, gate1, scale2, shift2, gate2 = (shared + self.offsets).chunk(6, dim=-1)
        y = modulate(self.norm_attention(h), scale1, shift1)
        q, k, v = (z.reshape(b, n, self.heads, -1).transpose(1, 2) for z in self.qkv(y).chunk(3, dim=-1))
        known = self.norm_bias(e)
        scores = self.q_norm(q) @ self.k_norm(k).transpose(-1, -2) * (width // self.heads) ** -0.5
        scores = scores + self.bias(known).permute(0, 3, 1, 2)
        weights = scores.masked_fill(~mask[:, None, None], -1e9).softmax(dim=-1)
        # what a head reads of pairs: first the mean of pairs by its weights, then a map of its own, which is cheap
        pairs = weights.transpose(1, 2).reshape(b * n, self.heads, n) @ known.reshape(b * n, n, -1)
        seen = weights @ v + torch.einsum("bihp,hpd->bhid", pairs.unflatten(0, (b, n)), self.read.unflatten(0, (self.heads, -1)))
        h = h + gate1[:, None] * self.dropout(self.out(seen.transpose(1, 2).reshape(b, n, width)))
        h = h + gate2[:, None] * self.dropout(self.mlp(modulate(self.norm_mlp(h), scale2, shift2)))

        y = self.norm_atoms(h)
        apart, length = distances(x)
        one, both = self.sums(y), self.products(y)
        z = self.inner(torch.cat([self.norm_pair(e), felt(length)], dim=-1))
        z = F.silu(z + one[:, :, None] + one[:, None] + self.product(both[:, :, None] * both[:, None]))
        e = e + self.pair_out(z)
        if self.head is not None:
            push = self.head(z) * mask[:, None, :, None] / (1 + length)
            x = x + (push * apart).sum(2)
        return h, e, x


class MoleculeNet(nn.Module):
    """x (B, N, 3 + types + counts + 3·N), log-SNR (B,), cond -> the same shape.

    cond["mask"] (B, N) bool: places that hold an atom. cond["numbers"] (B, 2·numbers): properties asked for, then 1 where each is
    given. Args: `atoms` N; `types` of atoms; `counts` of hydrogens an atom may have (0: hydrogens are atoms); `numbers`
    properties; `width` of an atom, `pair` of a pair, `depth` blocks, `heads`, `dropout` of atoms.
    """

    def __init__(
        self, atoms: int, types: int, counts: int, numbers: int = 0, width: int = 160, pair: int = 48, depth: int = 6,
        heads: int = 5, equivariant: bool = True, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise UserError(f"network 'molecule': width {width} must be a multiple of heads {heads}; change either")
        self.atoms, self.kinds, self.numbers, self.width, self.equivariant = atoms, types + counts, numbers, width, equivariant
        self.conditioning = nn.Sequential(SteadyLinear(width, width), nn.SiLU(), SteadyLinear(width, width))
        self.asked = nn.Linear(2 * numbers, width, bias=False) if numbers else None
        self.stem = nn.Linear(self.kinds + (0 if equivariant else 3), width)
        self.stem_pair = nn.Linear(ORDERS + RADII + 2, pair)
        self.modulation = zero_(SteadyLinear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, pair, heads, equivariant, dropout) for _ in range(depth))
        self.norm, self.norm_pair = RMSNorm(width), RMSNorm(pair)
        self.head = zero_(nn.Linear(width, self.kinds + (0 if equivariant else 3)))
        self.head_pair = zero_(nn.Linear(pair, ORDERS))
        self.head_scale = zero_(SteadyLinear(width, 2))

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        b, n, _ = x.shape
        mask = (cond or {}).get("mask")
        if mask is None:
            mask = torch.ones(b, n, dtype=torch.bool, device=x.device)
        place, kinds, orders = x[..., :3], x[..., 3 : 3 + self.kinds], x[..., 3 + self.kinds :].unflatten(-1, (n, ORDERS))
        vector = self.conditioning(fourier(logsnr, self.width).to(x.dtype))
        if self.asked is not None and cond is not None and "numbers" in cond:
            vector = vector + self.asked(cond["numbers"].to(x.dtype))
        vector = F.silu(vector)
        start = self.head_scale(vector)[:, None]
        h = self.stem(kinds if self.equivariant else torch.cat([kinds, place], dim=-1))
        e = self.stem_pair(torch.cat([orders, felt(distances(place)[1])], dim=-1))
        shared, moved = self.modulation(vector), place * (1 + start[..., :1])
        for block in self.blocks:
            h, e, moved = block(h, e, moved, shared, mask)
        out, pairs = self.head(self.norm(h)), self.head_pair(self.norm_pair(e))
        if not self.equivariant:
            moved, out = moved + out[..., self.kinds :], out[..., : self.kinds]
        here = mask[..., None].to(x.dtype)
        both = here[:, :, None] * here[:, None]
        return torch.cat([moved * here, out * here, (pairs * both).flatten(2)], dim=-1).float()
