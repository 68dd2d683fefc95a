"""Attention over picture tokens that also reads text tokens: softmax(q kᵀ / √d) v, keys from both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.layers import zero_

NARROW, MANY = 16, 32_768  # on a CPU, heads narrower than that, of at least as many scores each, are filled up with zeros


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v by PyTorch's fused kernel: q (B, H, L, D), k and v (B, H, S, D), mask as that takes it.

    The kernel's matrix products are slow where D is below 16: 8 heads of D = 8 over 1,024 keys took 30 ms, and 20 ms with zeros
    appended up to 16, which change no score and no value. Such products are no faster in bf16, so float32 it is.
    """
    width = q.shape[-1]
    if q.device.type != "cpu" or width >= NARROW or q.shape[-2] * k.shape[-2] < MANY:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    precision = torch.promote_types(q.dtype, torch.float32)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(precision)
    wide_q, wide_k, wide_v = (F.pad(x.to(precision), (0, NARROW - width)) for x in (q, k, v))
    y = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, attn_mask=mask, scale=width**-0.5)
    return y[..., :width].to(q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: q (B, H, L, D), k and v (B, H, S, D), mask (B, S) or (B, L, S), True = may be read."""
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return fused(q, k, v, mask)
    # PyTorch's fused CPU kernel has a backward 10-30 times slower than plain matrix products in bf16
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


def attend_biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The same over few keys, with a bias (B, S) on the scores; an item may have -inf for some, not for all, of its keys."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias[:, None, None].to(q.dtype)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def perturbed(mask: Tensor, perturb: Tensor, length: int) -> Tensor:
    """mask (B, S), but in the items of `perturb` (B,) each of the first `length` tokens reads none of them but itself.

    That makes self-attention the identity, and leaves what is read of the text: (B, L, S), L all S tokens or `length`
    of them, as the caller's queries are the first of its keys. Source: Ahn et al. 2024, arXiv:2403.17377, eq. 11.
    """
    own = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device)
    own[:length, :length] = torch.eye(length, dtype=torch.bool, device=mask.device)
    return mask[:, None] & (own | ~perturb.to(mask.device)[:, None, None])


class TextAttention(nn.Module):
    """Residual attention on tokens (B, L, C); queries are pixels, keys are pixels and text tokens.

    Q and K are layer-normalised (Dehghani et al. 2023, arXiv:2302.05442), which keeps bf16 training stable; the output
    projection starts at zero.
    """

    def __init__(self, channels: int, text_dim: int, head_dim: int = 64) -> None:
        super().__init__()
        self.heads, self.head_dim = max(channels // head_dim, 1), head_dim
        self.place = 0  # among the network's layers of this kind
        inner = self.heads * head_dim
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.text_kv = nn.Linear(text_dim, 2 * inner, bias=False) if text_dim else None
        self.q_norm = nn.LayerNorm(head_dim, bias=False)
        self.k_norm = nn.LayerNorm(head_dim, bias=False)
        self.out = nn.Linear(inner, channels)
        zero_(self.out)

    def forward(
        self,
        x: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
        perturb: Tensor | None = None,
        image: Sequence[tuple[Tensor, Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """image: for each such layer of the network keys and values (B, S, heads·head_dim) of reference pictures' tokens,
        which are read apart from the text, and a bias (B, S) on how much each is read (`networks/style.py`)."""
        b, length, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.reshape(b, -1, self.heads, self.head_dim).transpose(1, 2)

        q, k, v = (split(y) for y in self.qkv(self.norm(x)).chunk(3, dim=-1))
        mask = None
        if self.text_kv is not None and text is not None and text_mask is not None:
            text_k, text_v = (split(y) for y in self.text_kv(text).chunk(2, dim=-1))
            k, v = torch.cat([k, text_k], dim=2), torch.cat([v, text_v], dim=2)
            mask = torch.cat([text_mask.new_ones(b, length), text_mask], dim=1)
        if perturb is not None:
            keys = torch.ones(b, k.shape[2], dtype=torch.bool, device=x.device) if mask is None else mask
            mask = perturbed(keys, perturb, length)[:, :length]
        q = self.q_norm(q).to(v.dtype)
        y = attend(q, self.k_norm(k).to(v.dtype), v, mask)
        if image is not None:
            own_k, own_v, bias = image[self.place]
            y = y + attend_biased(q, self.k_norm(split(own_k)).to(v.dtype), split(own_v), bias)
        return x + self.out(y.transpose(1, 2).reshape(b, length, -1))
