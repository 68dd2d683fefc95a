"""Pictures that steer a network of Stable Diffusion: ControlNets, T2I-Adapters, an IP-Adapter, and channels beside the latents.

    ControlNet     residuals of a copy of the encoder, at every step        skips and middle += strength · residual
    guess          the prompt's branch of guidance alone heeds it           residual i of n  *= 10^(i/n − 1), i = 0 … n
    T2I-Adapter    features of the picture alone, once                      encoder levels   += strength · feature
    IP-Adapter     tokens of a reference through keys and values of its own (`looking.py`)
    beside         x ← [x, mask, latents of the masked picture] (9 channels), [x, depth] (5), or [x, a map's latents] (Flux)

`branches.py` makes the first two of their folders; `joint_guides.py` has the ControlNets of Stable Diffusion 3 and Flux.
Sources: Zhang et al. 2023 (ControlNet), arXiv:2302.05543; Mou et al. 2023 (T2I-Adapter), arXiv:2302.08453.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.errors import UserError, shown, unknown
from unfog.interop import union
from unfog.interop.lean import known
from unfog.interop.looking import Look
from unfog.interop.networks import UNet, added
from unfog.modalities.contract import Cond
from unfog.requests import GenerateRequest
from unfog.steer import Hints, hash_of, reference_of
from unfog.wishes import ControlAsked

CONTROLNET, T2I, UNION = "controlnet", "t2i", "union"
INPAINT, DEPTH, MAP = "inpaint", "depth", "map"
OWN = {DEPTH: (DEPTH,), MAP: (MAP, "canny", "depth")}  # what the network's own picture is called; of a map it matters not which


class Follower(nn.Module):
    """One that follows a picture. channels: of what its network is told of the picture, whose sides are multiples of `unit`.
    alone: heeded by the prompt's branch of guidance only, as it says nothing of places. kinds: the names of each kind of picture
    that a union follows."""

    def __init__(self, name: str, kind: str, strength: float, channels: int, alone: bool = False, unit: int = 1,
                 kinds: Sequence[Sequence[str]] = ((),)) -> None:  # fmt: skip
        super().__init__()
        self.name, self.kind, self.strength, self.channels, self.alone = name, kind, strength, channels, alone
        self.unit, self.kinds = unit, kinds

    @property
    def colours(self) -> int:
        """Channels of the picture."""
        return self.channels

    def nothing(self, frame: tuple[int, int]) -> Tensor:
        """What stands for a picture of this frame (width, height) that is not given."""
        return torch.zeros(self.channels, frame[1], frame[0])

    def seen(self, picture: Tensor) -> Tensor:
        """What the network is told of a picture (c, H, W) in [0, 1]."""
        return picture


class Branch(Follower):
    """Of a U-Net; kind: CONTROLNET, UNION or T2I."""

    def __init__(self, name: str, kind: str, strength: float, network: nn.Module, channels: int, alone: bool = False,
                 unit: int = 1, kinds: Sequence[Sequence[str]] = ((),)) -> None:  # fmt: skip
        super().__init__(name, kind, strength, channels, alone, unit, kinds)
        self.network = network if kind == T2I else UNet(network).unet  # so its attention, too, remembers its text
        self.kept: tuple[Tensor, list[Tensor]] | None = None

    def added(self, x: Tensor, level: Tensor, text: Tensor, beside: Any, hint: Tensor, strength: Tensor,
              guess: bool) -> list[Tensor]:  # fmt: skip
        """What is added, one a level or one a skip and the middle's. hint (B, kinds·c, H, W), strength (B, kinds)."""
        amount = strength[:, :1, None, None]
        if self.kind == T2I:
            return [amount * one for one in self.features(hint)]
        x = x.contiguous(memory_format=torch.channels_last)
        if self.kind == UNION:
            found = union.residuals(self.network, x, level, text, beside, hint.split(self.channels, dim=1), strength)
        else:
            hint = hint.contiguous(memory_format=torch.channels_last)
            down, middle = self.network(x, level, text, hint, added_cond_kwargs=beside, return_dict=False)
            found = [amount * one for one in (*down, middle)]
        if not guess or self.alone:
            return found
        return [one * share for one, share in zip(found, torch.logspace(-1, 0, len(found)).tolist(), strict=True)]

    def features(self, hint: Tensor) -> list[Tensor]:
        """Of a T2I-Adapter: one a level; the same picture is looked at once."""
        kept = self.kept
        if kept is None or known(kept[0], hint) is not kept[0]:
            self.kept = kept = hint, list(self.network(hint))
        return kept[1]


class Guided(nn.Module):
    """A U-Net with what steers it. cond, beside the U-Net's own: "control" (B, c, H, W), the pictures of all branches in their
    order, in [0, 1]; "control_strength" (B, K); "guess" (B,), where it is asked for; "image" and "image_mask" of `looking.py`;
    "beside" (B, c, h, w).

    Where no strength differs from 0 the U-Net alone is asked, for what it costs alone.
    """

    def __init__(self, base: UNet, branches: Sequence[Branch] = (), look: Look | None = None) -> None:
        super().__init__()
        self.base, self.look = base, look
        self.branches = nn.ModuleList(branches)
        self.text: Tensor | None = None

    @property
    def unet(self) -> nn.Module:
        return self.base.unet

    def forward(self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        own = ("control", "control_strength", "guess", "image", "image_mask", "beside")
        told: dict[str, Any] = {key: value for key, value in cond.items() if key not in own}
        if "control" in cond:
            told["extra"] = self._added(x, level, cond)
        if "beside" in cond:
            x = torch.cat([x, cond["beside"].to(x.dtype)], dim=1)
        if self.look is None or "image" not in cond or not bool((cond["image_mask"] != 0).any()):
            return self.base(x, level, told)
        with self.look.at(cond["image"], cond["image_mask"]):
            return self.base(x, level, told)

    def _added(self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the branches add, as the U-Net of diffusers is told it."""
        self.text = text = known(self.text, cond["text"])
        sums: dict[str, list[Tensor]] = {}
        branches = [branch for branch in self.branches if isinstance(branch, Branch)]
        hints = cond["control"].split([branch.channels * len(branch.kinds) for branch in branches], dim=1)
        strengths = cond["control_strength"].to(x.dtype).split([len(branch.kinds) for branch in branches], dim=1)
        for branch, hint, strength in zip(branches, hints, strengths, strict=True):
            if not bool((strength != 0).any()):
                continue
            found = branch.added(x, level, text, added(cond), hint.to(x.dtype), strength, "guess" in cond)
            where = T2I if branch.kind == T2I else CONTROLNET
            others = sums.get(where)
            sums[where] = found if others is None else [a + b for a, b in zip(others, found, strict=True)]
        extra: dict[str, Any] = {}
        if CONTROLNET in sums:
            *down, middle = sums[CONTROLNET]
            extra = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
        return extra | ({"down_intrablock_additional_residuals": sums[T2I]} if T2I in sums else {})


@dataclass(frozen=True)
class Steer(Hints):
    """against: what guidance's other branch is told instead. Strengths are as given: the same as in other programs."""

    against: dict[str, Tensor] = field(default_factory=dict)

    def guided(self, scale: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.cond, self.against


@dataclass(frozen=True)
class Guides:
    """What a folder's model can follow. beside: INPAINT, DEPTH or MAP where its network reads more than latents. factor: of the
    autoencoder. latents: of a picture (3, H, W) in [0, 1], for MAP."""

    where: str = "this model"
    branches: Sequence[Follower] = ()
    look: Look | None = None
    beside: str | None = None
    factor: int = 8
    latents: Callable[[Tensor], Tensor] | None = None

    @property
    def places(self) -> list[tuple[Follower, Sequence[str]]]:
        """Each picture that may be followed: by which branch, and, of a union, the names of its kind."""
        return [(branch, words) for branch in self.branches for words in branch.kinds]

    def hints(self, request: GenerateRequest, frame: tuple[int, int], cells: tuple[int, int]) -> Steer | None:
        """What a request is steered by, for a picture of `frame` (width, height) pixels and `cells` (height, width) of latents.

        Raises UserError for a picture that nothing follows, one that is missing, or one that cannot be read.
        """
        cond: dict[str, Tensor] = {}
        against: dict[str, Tensor] = {}
        intervals, told = np.zeros((0, 2)), {}
        own = OWN.get(self.beside or "", ())
        if own and not any(one.kind in own for one in request.control):
            kind = "depth map" if self.beside == DEPTH else "map (edges, depth)"
            raise UserError(f"control: the network of {self.where} reads a {kind}; give one with --control {own[0]}=map.png")
        if request.control:
            cond, against, intervals, told = self._controls(request.control, frame, cells)
        if request.settings.get("guess") == "on":
            heeded = torch.tensor([branch.kind == T2I for branch, _ in self.places])
            if not any((place := self._find(one.kind)) >= 0 and not heeded[place] for one in request.control):
                raise UserError("guess: is a way to heed a ControlNet; give its picture with control, or leave it out")
            against["control_strength"] = against.get("control_strength", cond["control_strength"]) * heeded
            cond["guess"] = torch.ones(1)
        if request.style_image:
            if self.look is None:
                raise UserError(f"style_image: {self.where} looks at no picture; give an IP-Adapter's file and the folder of its "
                                "image encoder with --adapter")  # fmt: skip
            weights = torch.tensor([one.weight for one in request.style_image])
            seen, nothing = self.look.tokens([one.picture for one in request.style_image])
            cond |= {"image": seen, "image_mask": weights[None] * self.look.strength}
            against |= {"image": nothing}
            told = {**told, "style_image": [{"picture": hash_of(reference_of(one.picture, frame)), "weight": float(one.weight)}
                                            for one in request.style_image]}  # fmt: skip
        return Steer(cond, intervals, told, against) if cond else None

    def _controls(self, asked: Sequence[ControlAsked], frame: tuple[int, int], cells: tuple[int, int]) -> tuple[Any, ...]:
        cond: dict[str, Tensor] = {}
        places = self.places
        parts = [branch.nothing(frame) for branch, _ in places]
        strengths, intervals = torch.zeros(len(parts)), np.tile([0.0, 1.0], (len(parts), 1))
        told: list[dict[str, Any]] = []
        taken: list[int] = []
        for one in asked:
            hint = self.hint(one.kind, one.picture, frame)
            told.append({"kind": one.kind, "hint": hash_of(hint), "strength": one.strength, "interval": list(one.interval)})
            place = self._find(one.kind)
            if place in taken:
                raise UserError(f"control: {shown(one.kind)} is given twice; give each one once")
            taken.append(place)
            if place < 0:
                if one.strength != 1.0 or one.interval != (0.0, 1.0):
                    raise UserError("control: the network's own map has no strength or interval; leave them out")
                cond["beside"] = depth_of(hint[None], cells) if self.latents is None else self.latents(hint)[None]
                continue
            branch = places[place][0]
            if frame[0] % branch.unit or frame[1] % branch.unit:
                raise UserError(f"size: {branch.name} reads pictures whose sides are multiples of {branch.unit}, not "
                                f"{frame[0]}x{frame[1]}; give such a size")  # fmt: skip
            parts[place], strengths[place] = branch.seen(hint), one.strength * branch.strength
            intervals[place] = one.interval
        if not parts:
            return cond, {}, intervals, {"control": told}
        cond |= {"control": torch.cat(parts)[None], "control_strength": strengths[None]}
        heeded = torch.tensor([not branch.alone for branch, _ in places])
        against = {} if bool(heeded.all()) else {"control_strength": (strengths * heeded)[None]}
        return cond, against, intervals, {"control": told}

    def hint(self, kind: str, picture: Any, frame: tuple[int, int]) -> Tensor:
        """What is followed of a picture: itself, fitted into the frame, clear as black; (c, height, width) in [0, 1]."""
        from unfog.modalities.image.codec import premultiply
        from unfog.modalities.image.controls import framed

        place = self._find(kind)
        channels = (1 if self.beside == DEPTH else 3) if place < 0 else self.places[place][0].colours
        seen = premultiply(framed(picture, frame, clear=False))[0, :3]
        if channels == 1:
            seen = torch.tensordot(torch.tensor([0.299, 0.587, 0.114]), seen, 1)[None]  # as Pillow makes grey of colours
        return seen

    def _find(self, kind: str) -> int:
        """Which of `places` is meant: by its folder's name (in a union the kind's, or FOLDER/KIND), or a piece that no other
        has; −1: the network's own map."""
        places = self.places
        names = [f"{branch.name}/{words[0]}" if words else branch.name for branch, words in places]
        if kind in OWN.get(self.beside or "", ()) and kind not in names:
            return -1
        if not names:
            raise UserError(f"control: {self.where} follows no picture yet; give a ControlNet's or T2I-Adapter's folder with "
                            "--adapter")  # fmt: skip
        low = kind.lower()
        fits = [i for i, (branch, words) in enumerate(places)
                if kind == branch.name and not words or kind in [f"{branch.name}/{word}" for word in words]]  # fmt: skip
        fits = fits or [i for i, (branch, words) in enumerate(places) if any(low in w for w in words or [branch.name.lower()])]
        if len(fits) > 1:
            raise UserError(f"control: {shown(kind)} fits {names[fits[0]]} and {names[fits[1]]}; write more of the folder's name")
        if not fits:
            raise unknown("control", kind, names)
        return fits[0]


def depth_of(depth: Tensor, cells: tuple[int, int]) -> Tensor:
    """Of a map (B, 1, H, W), near is light: what a depth network reads, (B, 1, *cells) from −1 (farthest) to 1."""
    small = F.interpolate(depth, cells, mode="bicubic", align_corners=False)
    low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    return torch.where(high > low, 2.0 * (small - low) / (high - low).clamp(min=1e-12) - 1.0, 0.0)


def trial(denoiser: Preconditioned, told: Guides, cond: Cond) -> None:
    """Ask once with every branch, on latents of 16 by 16. Raises UserError naming one whose layers do not fit the network's.

    cond: of one item.
    """
    network: Any = denoiser.network
    factor = told.factor
    places = told.places
    for one in told.branches:
        strengths = torch.zeros(1, len(places), device=cond["text"].device)
        strengths[:, next(k for k, (branch, _) in enumerate(places) if branch is one)] = 1.0
        pictures = torch.zeros(1, sum(b.channels for b, _ in places), 16 * factor, 16 * factor, device=cond["text"].device)
        x = torch.zeros(1, int(network.unet.config.out_channels), 16, 16, device=cond["text"].device)
        try:
            with torch.no_grad():
                denoiser.raw(x, 0.5, {**cond, "control": pictures, "control_strength": strengths})
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(f"adapter: {one.name} does not fit this model's network ({reason}); give one made for its "
                            "family") from None  # fmt: skip
