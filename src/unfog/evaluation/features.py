"""EfficientNet-lite0: a convolutional network that already knows photographs, as a fixed reader of pictures.

    block: x ↦ [x +] W₂·relu6(depthwise(relu6(W₁·x + b₁)) + b) + b₂

The batch normalisations are folded into the weights (w ← w·γ/√(v+ε), b ← β − m·γ/√(v+ε)), and the ImageNet
classifier is left out. It was trained on ImageNet photographs and never on what a generator of ours learns from.
Source: Tan and Le 2019, arXiv:1905.11946; the "lite" variant (no squeeze-and-excite, ReLU6), TensorFlow TPU models, 2020.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (repeats, kernel, stride, expansion, channels out) of the seven stages; the stem and the head frame them.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280
NORM_EPS = 1e-3  # of the folded batch normalisations, as they were trained


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: with stride 2 the odd pixel is added right and below."""

    def forward(self, x: Tensor) -> Tensor:
        k, s = self.kernel_size[0], self.stride[0]
        if s == 1:
            return F.conv2d(x, self.weight, self.bias, 1, k // 2, 1, self.groups)
        rows, columns = (max(0, (-(-n // s) - 1) * s + k - n) for n in x.shape[-2:])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, s, 0, 1, self.groups)


class Block(nn.Module):
    """An inverted residual block: widen, filter each channel alone, narrow."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.expand = SameConv(inner, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, outer, 1)
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Lite0(nn.Module):
    """Pictures (B, 3, H, W) in [−1, 1] to features: the means of three stages and of the head, (B, 1752) in all."""

    # The last block of the stages with 40, 112 and 320 channels: strokes, parts, things.
    TAPS = (4, 10, 15)
    WIDTH = 40 + 112 + 320 + HEAD

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM, 3, 2)
        blocks, inner = [], STEM
        for repeats, kernel, stride, expansion, outer in STAGES:
            for i in range(repeats):
                blocks.append(Block(inner, outer, kernel, stride if i == 0 else 1, expansion))
                inner = outer
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(inner, HEAD, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        means = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.TAPS:
                means.append(x.mean((2, 3)))
        means.append(F.relu6(self.head(x)).mean((2, 3)))
        return torch.cat(means, 1).float()


def folded(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `Lite0` from a checkpoint in the efficientnet-lite-pytorch naming, normalisations folded in.

    Args: checkpoint, `_conv_stem`, `_bn0`, `_blocks.i._expand_conv` ...; the classifier `_fc` is ignored.
    Raises: KeyError where a tensor is missing.
    """

    def fold(conv: str, norm: str) -> tuple[Tensor, Tensor]:
        gain = checkpoint[f"{norm}.weight"] / (checkpoint[f"{norm}.running_var"] + NORM_EPS).sqrt()
        weight = checkpoint[f"{conv}.weight"] * gain.view(-1, 1, 1, 1)
        return weight, checkpoint[f"{norm}.bias"] - checkpoint[f"{norm}.running_mean"] * gain

    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for i in range(sum(stage[0] for stage in STAGES)):
        if i > 0:  # the first block does not widen
            pairs[f"blocks.{i}.expand"] = (f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0")
        pairs[f"blocks.{i}.depthwise"] = (f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1")
        pairs[f"blocks.{i}.project"] = (f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2")
    weights = {}
    for name, (conv, norm) in pairs.items():
        weights[f"{name}.weight"], weights[f"{name}.bias"] = fold(conv, norm)
    return weights
