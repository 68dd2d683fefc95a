"""A network over windows of series: an encoder reads what is known, a small denoiser writes what is not.

    patches of 8 steps; attention over time, and over the variates of a table where it has several;
    state = encoder(steps, row)   (the same at every noise level: `prepare` computes it once for all samples);
    output = denoiser(x_t at the patches that hold anything unknown, state, log-SNR)

Sources: Nie et al. 2023, arXiv:2211.14730 (patches); Tashiro et al. 2021, arXiv:2107.03502 (attention over time and variates of
what is known beside noise); Peebles & Xie 2022, arXiv:2212.09748 (modulated blocks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.attention import attend
from unfog.networks.layers import Cond, RMSNorm, SwiGLU, fourier, modulate, zero_


class Attention(nn.Module):
    """Residual attention of tokens (B, L, C) among themselves; mask (B, L) True where a token is one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = zero_(nn.Linear(width, width))

    def forward(self, x: Tensor, mask: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        b, length, width = x.shape
        y = self.norm(x)
        y = y if scale is None or shift is None else modulate(y, scale, shift)
        q, k, v = (t.reshape(b, length, self.heads, -1).transpose(1, 2) for t in self.qkv(y).chunk(3, dim=-1))
        keys = mask | ~mask.any(1, keepdim=True)  # a row of nothing reads itself: no 0/0
        return x + self.out(attend(q, k, v, keys).transpose(1, 2).reshape(b, length, width))


class Block(nn.Module):
    """Attention over time, over variates, and a feed-forward layer; modulated by a vector (R, cond_width) if there is one."""

    def __init__(self, width: int, heads: int, dropout: float, cond_width: int = 0) -> None:
        super().__init__()
        self.time, self.across = Attention(width, heads), Attention(width, heads)
        self.norm = RMSNorm(width)
        self.mlp = SwiGLU(width, 2 * width)
        zero_(self.mlp.out)
        self.dropout = nn.Dropout(dropout)  # rows are no items, so each item's own zeros are not to be had
        self.modulation = zero_(nn.Linear(cond_width, 4 * width)) if cond_width else None

    def forward(self, x: Tensor, mask: Tensor, tables: Tables, vector: Tensor | None = None) -> Tensor:
        scale1 = shift1 = scale2 = shift2 = None
        if self.modulation is not None and vector is not None:
            scale1, shift1, scale2, shift2 = self.modulation(vector).chunk(4, dim=-1)
        x = self.time(x, mask, scale1, shift1)
        if tables.several:
            x = tables.joined(self.across, x, mask)
        y = self.norm(x)
        y = y if scale2 is None or shift2 is None else modulate(y, scale2, shift2)
        return x + self.dropout(self.mlp(y))


class Tables:
    """Which rows are variates of one table: real (B, V) -> rows (R,) of those that are."""

    def __init__(self, real: Tensor) -> None:
        self.real = real
        self.at = real.nonzero(as_tuple=True)
        self.many = real.sum(1) > 1
        self.several = bool(self.many.any())
        if self.several:
            self.rows = self.many[self.at[0]].nonzero()[:, 0]
            number = torch.cumsum(self.many.long(), 0) - 1
            self.place = (number[self.at[0][self.rows]], self.at[1][self.rows])

    def joined(self, attention: Attention, x: Tensor, mask: Tensor) -> Tensor:
        """x (R, L, C) after attention among the variates of each table, token by token."""
        count, variates, (_, length, width) = int(self.many.sum()), self.real.shape[1], x.shape
        wide = x.new_zeros(count, variates, length, width)
        wide[self.place] = x[self.rows]
        there = mask.new_zeros(count, variates, length)
        there[self.place] = mask[self.rows]
        wide = attention(wide.transpose(1, 2).flatten(0, 1), there.transpose(1, 2).flatten(0, 1))
        wide = wide.unflatten(0, (count, length)).transpose(1, 2)
        return x.index_copy(0, self.rows, wide[self.place])


class Stem(nn.Module):
    """What is known and what is noisy, patch by patch, to tokens; each patch has its place."""

    def __init__(self, steps: int, row: int, patches: int, patch: int, width: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(nn.Linear(steps * patch, width), nn.SiLU(), nn.Linear(width, width))
        self.row = nn.Sequential(nn.Linear(row, width), nn.SiLU(), nn.Linear(width, width))
        self.noisy = nn.Linear(3 * patch, width)
        self.place = nn.Parameter(torch.zeros(patches, width))


class SeriesNetwork(nn.Module):
    """x_t (B, V, L), log-SNR (B,), cond -> (B, V, L).

    cond: steps (B, V, L, steps), row (B, V, row), given, and known and mask (B, V, L), where a value is told and where one is to
    be found; state (B, V, L/patch, width) instead of steps and row where `prepare` has been called. `length` L is divisible by
    `patch`; `depth` blocks of the encoder, `blocks` of the denoiser, `width`, `heads` and `dropout` of both.
    """

    def __init__(self, steps: int, row: int, length: int, patch: int = 8, width: int = 128, depth: int = 3, blocks: int = 3,
                 heads: int = 4, dropout: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.width = patch, width
        self.stem = Stem(steps, row, length // patch, patch, width)
        self.encoder = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.state_norm = RMSNorm(width)
        self.conditioning = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.token = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, width) for _ in range(blocks))
        self.norm = RMSNorm(width)
        self.modulation = zero_(nn.Linear(width, 2 * width))
        self.head = zero_(nn.Linear(width, patch))

    def prepare(self, cond: Cond) -> Tensor:
        """The state (B, V, L/patch, width) of what is known: it does not depend on noise."""
        real = cond["known"] | cond["mask"]
        tables = Tables(real.any(2))
        steps, row = cond["steps"][tables.at], cond["row"][tables.at]
        mask = real[tables.at].unflatten(1, (-1, self.patch)).any(2)
        x = self.stem.steps(steps.unflatten(1, (-1, self.patch)).flatten(2)) + self.stem.row(row)[:, None] + self.stem.place
        for block in self.encoder:
            x = block(x, mask, tables)
        state = x.new_zeros(*tables.real.shape, *x.shape[1:])
        state[tables.at] = self.state_norm(x)
        return state

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        assert cond is not None, "series need to be told what is known"
        state = cond["state"] if "state" in cond else self.prepare(cond)
        tables = Tables((cond["known"] | cond["mask"]).any(2))
        known, unknown = cond["known"][tables.at], cond["mask"][tables.at]
        noisy = torch.stack([x[tables.at] * unknown, cond["given"][tables.at].to(x.dtype), known.to(x.dtype)], 1)
        noisy = noisy.unflatten(2, (-1, self.patch)).transpose(1, 2).flatten(2)
        wanted = unknown.unflatten(1, (-1, self.patch)).any(2)
        wanted = _together(wanted, tables)
        most = max(int(wanted.sum(1).max()), 1)
        order = (~wanted).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        mask = wanted.gather(1, order)

        def take(values: Tensor) -> Tensor:
            return values.gather(1, order[..., None].expand(-1, -1, values.shape[2]))

        vector = F.silu(self.conditioning(fourier(logsnr, 64).to(x.dtype)))[tables.at[0]]
        y = self.stem.noisy(take(noisy)) + self.token(take(state[tables.at])) + self.stem.place[order]
        for block in self.blocks:
            y = block(y, mask, tables, vector)
        y = self.head(modulate(self.norm(y), *self.modulation(vector).chunk(2, dim=-1)))
        whole = y.new_zeros(*wanted.shape, self.patch).scatter(1, order[..., None].expand_as(y), y * mask[..., None])
        out = torch.zeros_like(x)
        out[tables.at] = (whole.flatten(1) * unknown).to(out.dtype)
        return out


def _together(wanted: Tensor, tables: Tables) -> Tensor:
    """The same patches for all variates of a table, so that a token meets its own time in the others."""
    whole = wanted.new_zeros(*tables.real.shape, wanted.shape[1])
    whole[tables.at] = wanted
    return whole.any(1)[tables.at[0]]
