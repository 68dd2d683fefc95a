"""A style reference: how pictures look, read apart from the text, and without saying what they show.

    y = softmax(q kᵀ/√d) v  +  w · softmax(q k′ᵀ/√d + ln ρ) v′,     k′, v′ from the references' tokens, v′ zero at first

and w times two vectors beside the text's in the conditioning vector, as the levels without attention hear of it there: what the
names of the known styles say, each as far as the reference is likely to be of it, and a map of its looks that is learned with the
values. How likely, the network itself says where it was asked (steer.py), else a map of the looks (training/styling.py).
A reference is its looks alone: mean and spread over the pixels of the channels of a small convolutional reader, a token a layer,
and of the colours at four distances from its border; where things lie is gone.
Several references stand side by side; w is the largest weight, ρ each one's share of it.
Sources: Ye et al. 2023, arXiv:2308.06721 (keys and values of their own for the picture's tokens); Gatys et al. 2016,
arXiv:1505.07376 (style as statistics over space).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.networks.attention import TextAttention
from unfog.networks.layers import Cond, zero_
from unfog.networks.unet import UNet


def layers_of(base: nn.Module) -> list[TextAttention]:
    """The layers that may read references, in the network's own order."""
    return [module for module in base.modules() if isinstance(module, TextAttention)]


class Looks(nn.Module):
    """Premultiplied RGBA (B, 4, H, W) in [0, 1] to numbers that say how it is drawn, in groups: (B, sum of GROUPS).

    mean, spread: of each number over the training pictures, before it is learned what they say (training/styling.py).
    """

    mean: Tensor
    spread: Tensor

    WIDTHS, BANDS = (24, 32, 48), 4
    GROUPS = (BANDS * 6, *(2 * width for width in WIDTHS))

    def __init__(self) -> None:
        super().__init__()
        before = (4, *self.WIDTHS)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 1 if a == 4 else 2, 1) for a, b in zip(before, self.WIDTHS, strict=False))
        self.register_buffer("mean", torch.zeros(sum(self.GROUPS)))
        self.register_buffer("spread", torch.ones(sum(self.GROUPS)))

    def forward(self, x: Tensor) -> Tensor:
        colour, weights, inside = x[:, :3], [], x[:, 3:]
        for _ in range(self.BANDS - 1):  # a ring of a pixel each, and what is left
            inner = -F.max_pool2d(-inside, 3, 1, 1)
            weights.append((inside - inner).clamp(min=0))
            inside = inner
        found = []
        for weight in (*weights, inside):
            total = weight.sum((2, 3)).clamp(min=1e-2)
            mean = (colour * weight).sum((2, 3)) / total
            spread = ((colour - mean[..., None, None]).square() * weight).sum((2, 3)) / total
            found += [mean, (spread + 1e-6).sqrt()]
        y = x - 0.5
        for layer in self.layers:
            y = F.silu(layer(y))
            found += [y.mean((2, 3)), (y.var((2, 3), correction=0) + 1e-6).sqrt()]
        return (torch.cat(found, 1) - self.mean) / self.spread


class StyleReader(nn.Module):
    """Looks to what the network reads: keys and values for each layer that attends, and a part of the conditioning vector.

    `cond["image"]` (B, R, 4, H, W) R references, premultiplied RGBA in [0, 1]; `cond["image_mask"]` (B, R) the weight of each, at
    least 0. Where given: `cond["image_kinds"]` (B, R, K) how likely each is of each known style; `cond["image_named"]` (B,) the
    weight of what is said by names of styles, beside the others.
    """

    names: Tensor

    def __init__(self, base: UNet, width: int = 128) -> None:
        super().__init__()
        self.looks = Looks()
        self.groups, vector = list(Looks.GROUPS), base.conditioning.width
        self.tokens = nn.ModuleList(nn.Linear(size, width) for size in self.groups)
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)
        inner = [layer.heads * layer.head_dim for layer in layers_of(base)]
        self.keys = nn.ModuleList(nn.Linear(width, size, bias=False) for size in inner)
        self.values = nn.ModuleList(zero_(nn.Linear(width, size, bias=False)) for size in inner)
        self.more = nn.Sequential(nn.Linear(sum(self.groups), vector), nn.SiLU(), zero_(nn.Linear(vector, vector)))
        known = 0 if base.conditioning.label is None else base.conditioning.label.num_embeddings - 1
        self.kinds = nn.Sequential(nn.Linear(sum(self.groups), vector), nn.SiLU(), zero_(nn.Linear(vector, known)))
        self.register_buffer("names", torch.zeros(known, vector))
        for part in (self.looks, self.kinds):  # what names are read off must stay as it was
            part.requires_grad_(False)
        number_layers(base)

    def likely(self, pictures: Tensor) -> Tensor:
        """How likely pictures (R, 4, H, W) are of each known style by their looks: (R, K)."""
        return self.kinds(self.looks(pictures)).softmax(-1)

    def named(self, looks: Tensor) -> Tensor:
        """What the names of styles would add to the conditioning vector, (..., ΣG) -> (..., vector): of a look like no known one
        a mixture of theirs, and nothing else."""
        return self.kinds(looks).softmax(-1) @ self.names

    def forward(self, cond: Cond) -> Cond:
        """`cond` with what the network reads of the references in place of the references."""
        dtype = self.norm.weight.dtype
        pictures, weight = cond["image"].to(dtype), cond["image_mask"].to(dtype)
        looks = self.looks(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])  # (B, R, ΣG)
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
        more = self.more(looks)
        if "image_kinds" in cond:
            kinds = cond["image_kinds"].to(dtype)
            named = kinds @ self.names
            more = more * (1.0 - kinds.amax(-1, keepdim=True))  # what a name says for sure needs nothing more
        else:
            named = self.named(looks)
        if "image_named" in cond:
            named = named * cond["image_named"].to(dtype)[:, None, None]
        pooled = ((named + more) * share[..., None]).sum(1) / share.sum(1, keepdim=True).clamp(min=1e-6)
        own = ("image", "image_mask", "image_kinds", "image_named")
        rest = {key: value for key, value in cond.items() if key not in own}
        return {**rest, "image_kv": pairs, "vector": pooled * most[:, None]}


def number_layers(base: nn.Module) -> None:
    """Tell each layer that reads references which of the pairs is its own."""
    for place, layer in enumerate(layers_of(base)):
        layer.place = place
