"""Stable Diffusion XL's hand-over: its network makes most of the way, the refiner's, a folder of its own, the rest.

    D(x_t, t) = the base's where its table index is at least round(N·(1 − share)), below it the refiner's

One plan, one schedule, one space of latents: a sampler sees one denoiser, whose network changes on the way, and keeps what it
remembers. Source: Podell et al. 2023, arXiv:2307.01952, §2.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.schedules import Table
from unfog.errors import UserError
from unfog.interop.space import LatentSpace
from unfog.modalities.contract import Cond

LATE = "late_"  # what the refiner is told, beside what the base is told
SHARE = 0.8


class HandOver(nn.Module):
    """network(x_t, place in the table, cond): the base's from `below` upwards, the refiner's under it."""

    def __init__(self, base: nn.Module, late: nn.Module, below: int) -> None:
        super().__init__()
        self.base, self.late, self.below = base, late, below

    @property
    def unet(self) -> nn.Module:
        """The base's own, to which a LoRA is added."""
        inner: nn.Module = self.base.unet  # type: ignore[assignment]
        return inner

    def forward(self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        told = {key: value for key, value in cond.items() if not key.startswith(LATE)}
        after = {key.removeprefix(LATE): value for key, value in cond.items() if key.startswith(LATE)}
        early = level > self.below - 0.01  # places are indices, but for rounding
        if bool(early.all()):
            first: Tensor = self.base(x, level, told)
            return first
        if not bool(early.any()):
            last: Tensor = self.late(x, level, after)
            return last
        out = torch.empty_like(x)
        for network, which, part in ((self.base, early, told), (self.late, ~early, after)):
            out[which] = network(x[which], level[which], {key: value[which] for key, value in part.items()})
        return out


class Refined(LatentSpace):
    """The base's space, in which the refiner is told the prompt, too."""

    def __init__(self, base: LatentSpace, late: LatentSpace) -> None:
        vars(self).update(vars(base))
        self.late = late

    def both(self, prompts: Sequence[Any], negative: Any, settings: Mapping[str, Any]) -> tuple[Cond, Cond]:
        pairs = zip(super().both(prompts, negative, settings), self.late.both(prompts, negative, settings), strict=True)
        cond, other = ({**told, **{LATE + key: value for key, value in late.items()}} for told, late in pairs)
        return cond, other


def handed(where: Path, share: float, space: LatentSpace, denoiser: Preconditioned, late: LatentSpace,
           after: Preconditioned) -> tuple[LatentSpace, Preconditioned]:  # fmt: skip
    """Base and refiner as one; share: of the way, the base's. Raises UserError where they are not made for each other."""
    table: Any = denoiser.process.schedule
    if not 0.0 < share < 1.0:
        raise UserError(f"adapter: {where}: a refiner's number is the base's share of the way, between 0 and 1, got {share:g}")
    if not space.micro or not late.micro:
        raise UserError(f"adapter: {where}: a refiner goes with Stable Diffusion XL only; leave it out")
    same = after.process.schedule.config() == table.config() and after.prediction == denoiser.prediction
    if not same or late.codec.channels != space.codec.channels or not isinstance(table, Table):
        raise UserError(f"adapter: {where}: has another noise schedule or prediction than the model; give its own refiner")
    base, last = denoiser.network, after.network
    assert isinstance(base, nn.Module) and isinstance(last, nn.Module)
    late.size = space.size
    network = HandOver(base, last, round(table.count - share * table.count))
    return Refined(space, late), Preconditioned(network, denoiser.process, denoiser.prediction, "place", denoiser.sigma_min)
