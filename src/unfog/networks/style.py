"""A style reference: how pictures look, read apart from the text, and without saying what they show.

    y = softmax(q kᵀ/√d) v  +  w · softmax(q k′ᵀ/√d + ln ρ) v′,     k′, v′ from the references' tokens, v′ zero at first

and w · a map of their mean beside the text's in the conditioning vector, as the levels without attention hear of it there.
A reference is numbers about its looks (`modalities/image/looks.py`): one token each group. Several references stand side by
side; w is the largest weight, ρ each one's share of it.
Source: Ye et al. 2023, arXiv:2308.06721 (keys and values of their own for the picture's tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from unfog.networks.attention import TextAttention
from unfog.networks.layers import Cond, zero_
from unfog.networks.unet import UNet


def layers_of(base: nn.Module) -> list[TextAttention]:
    """The layers that may read references, in the network's own order."""
    return [module for module in base.modules() if isinstance(module, TextAttention)]


class StyleReader(nn.Module):
    """Looks to what the network reads: keys and values for each layer that attends, and a part of the conditioning vector.

    `cond["image"]` (B, R, ΣG) standardised looks of R references in groups of `groups` numbers; `cond["image_mask"]` (B, R) the
    weight of each, at least 0.
    """

    def __init__(self, base: UNet, groups: Sequence[int], width: int = 128) -> None:
        super().__init__()
        self.groups, vector = list(groups), base.conditioning.width
        self.tokens = nn.ModuleList(nn.Linear(size, width) for size in self.groups)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)
        inner = [layer.heads * layer.head_dim for layer in layers_of(base)]
        self.keys = nn.ModuleList(nn.Linear(width, size, bias=False) for size in inner)
        self.values = nn.ModuleList(zero_(nn.Linear(width, size, bias=False)) for size in inner)
        self.pooled = nn.Sequential(nn.Linear(sum(self.groups), vector), nn.SiLU(), zero_(nn.Linear(vector, vector)))
        number_layers(base)

    def forward(self, cond: Cond) -> Cond:
        """`cond` with what the network reads of the references in place of the references."""
        dtype = self.norm.weight.dtype
        looks, weight = cond["image"].to(dtype), cond["image_mask"].to(dtype)  # (B, R, ΣG), (B, R)
        most = weight.amax(dim=1)  # (B,)
        share = weight / most.clamp(min=1e-6)[:, None]
        parts = zip(self.tokens, looks.split(self.groups, dim=-1), strict=True)
        tokens = torch.stack([layer(part) for layer, part in parts], dim=2)  # (B, R, G, width)
        tokens = self.norm(tokens + self.mix(tokens)).flatten(1, 2)
        # a reference that is not there is not read; where there is none, nothing is (most = 0), whatever was read
        gone = torch.where(most[:, None] > 0, share.clamp(min=1e-6).log().masked_fill(share <= 0, float("-inf")), 0.0)
        bias = gone.repeat_interleave(len(self.groups), dim=1)
        pairs = [(key(tokens), value(tokens) * most[:, None, None], bias)
                 for key, value in zip(self.keys, self.values, strict=True)]  # fmt: skip
        pooled = (self.pooled(looks) * share[..., None]).sum(1) / share.sum(1, keepdim=True).clamp(min=1e-6)
        rest = {key: value for key, value in cond.items() if key not in ("image", "image_mask")}
        return {**rest, "image_kv": pairs, "vector": pooled * most[:, None]}


def number_layers(base: nn.Module) -> None:
    """Tell each layer that reads references which of the pairs is its own."""
    for place, layer in enumerate(layers_of(base)):
        layer.place = place
