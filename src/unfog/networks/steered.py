"""A network with what steers it: a control branch, a reader of reference pictures, or both; without their keys the network."""

from __future__ import annotations

from torch import Tensor, nn

from unfog.networks.control import ControlBranch
from unfog.networks.layers import Cond
from unfog.networks.style import StyleReader
from unfog.networks.unet import UNet


class Steered(nn.Module):
    """`base`, asked with what the branch says of `cond["control"]` and the reader of `cond["image"]`.

    Where neither key is there, or no strength is above 0, the base alone is asked, for what it costs alone.
    """

    def __init__(self, base: UNet, control: ControlBranch | None = None, style: StyleReader | None = None) -> None:
        super().__init__()
        self.base, self.control, self.style = base, control, style

    def forward(self, x: Tensor, logsnr: Tensor, cond: Cond | None = None) -> Tensor:
        told = dict(cond or {})
        if self.style is not None and "image" in told and bool((told["image_mask"] > 0).any()):
            told = self.style(told)
        if self.control is not None and "control" in told and bool((told["control_strength"] > 0).any()):
            told["added"] = self.control(self.base, x, logsnr, told)
        return self.base(x, logsnr, told)
