"""How like a picture its reconstruction is: PSNR and SSIM, over premultiplied RGBA as the codecs see it.

    PSNR = −10·log₁₀ mean (p − q)²        SSIM = (2·μp·μq + c₁)(2·σpq + c₂) / ((μp² + μq² + c₁)(σp² + σq² + c₂)), windows averaged

p, q in [0, 1], all four channels alike; each a number a picture. Source: Wang et al. 2004 (SSIM; 11×11 Gaussian windows,
c₁ = 0.01², c₂ = 0.03²).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unfog.modalities.image.codec import premultiply

HIGHEST = 70.0  # dB: what is the same to the byte
BLOCK = 32  # pictures at once
Pictures = NDArray[np.uint8]


def psnr(pictures: Pictures, made: Pictures) -> NDArray[np.float64]:
    """In dB, of each of straight RGBA (N, H, W, 4) against what was made of it."""
    return _each(lambda p, q: -10 * (p - q).square().mean((1, 2, 3)).clamp(min=10 ** (-HIGHEST / 10)).log10(), pictures, made)


def ssim(pictures: Pictures, made: Pictures) -> NDArray[np.float64]:
    """In [−1, 1], of each of straight RGBA (N, H, W, 4) against what was made of it; H and W at least 11."""
    x = torch.arange(11, dtype=torch.float32) - 5
    bell = torch.exp(-x.square() / (2 * 1.5**2))
    bell = bell / bell.sum()

    def blurred(planes: Tensor) -> Tensor:
        flat = planes.reshape(-1, 1, *planes.shape[2:])
        return F.conv2d(F.conv2d(flat, bell[None, None, :, None]), bell[None, None, None]).reshape(len(planes), -1)

    def likeness(p: Tensor, q: Tensor) -> Tensor:
        mean_p, mean_q = blurred(p), blurred(q)
        var_p, var_q = blurred(p * p) - mean_p**2, blurred(q * q) - mean_q**2
        shared = blurred(p * q) - mean_p * mean_q
        c1, c2 = 0.01**2, 0.03**2
        return ((2 * mean_p * mean_q + c1) * (2 * shared + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))).mean(1)

    return _each(likeness, pictures, made)


def _each(measure: Callable[[Tensor, Tensor], Tensor], pictures: Pictures, made: Pictures) -> NDArray[np.float64]:
    if pictures.shape != made.shape:
        raise ValueError(f"pictures of {pictures.shape} and made of {made.shape}: give one made of each")
    found = [measure(premultiply(torch.from_numpy(pictures[i : i + BLOCK])), premultiply(torch.from_numpy(made[i : i + BLOCK])))
             for i in range(0, len(pictures), BLOCK)]  # fmt: skip
    return torch.cat(found).double().numpy()
