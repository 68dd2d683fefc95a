"""Plain modules that know no diffusion: `network(x_t, logsnr, cond)` gives a tensor of x_t's shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def unet(**settings: Any) -> nn.Module:
    """A convolutional U-Net (`networks/unet.py`)."""
    from unfog.networks.unet import UNet

    return UNet(**settings)


def dit(**settings: Any) -> nn.Module:
    """A diffusion transformer (`networks/dit.py`)."""
    from unfog.networks.dit import DiT

    return DiT(**settings)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": unet, "dit": dit}
