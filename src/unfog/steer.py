"""Pictures that steer a sampling: hints that it follows where and while they act.

    progress p = share of the steps that are done;  a hint of interval (a, b) acts while a ≤ p < b

`networks/control.py` says what a hint does to the network, `modalities/image/controls.py` what it is of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from unfog.adapters import Adapter
from unfog.errors import UserError, shown, unknown
from unfog.files import sha256
from unfog.wishes import ControlAsked

if TYPE_CHECKING:
    from unfog.diffusion.denoisers import Cond, Denoiser
    from unfog.diffusion.processes import Process

SHIPPED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Hints:
    """What steers a request. cond: of one item, both for guidance's branches; intervals: when each kind acts, (K, 2);
    told: what a picture's recipe says of them."""

    cond: dict[str, Tensor]
    intervals: np.ndarray
    told: list[dict[str, Any]]


def hints_of(asked: Sequence[ControlAsked], known: Mapping[str, int], frame: tuple[int, int], where: str) -> Hints:
    """The hints of what was asked, for a frame (width, height) of a branch that knows these kinds.

    Raises UserError for a kind that is unknown, not learned by this branch, or asked for twice; for a picture that cannot be
    read.
    """
    from unfog.modalities.image.controls import CONTROLS, of_picture

    parts, strengths = [torch.zeros(count, frame[1], frame[0]) for count in known.values()], torch.zeros(len(known))
    intervals, kinds = np.tile([0.0, 1.0], (len(known), 1)), list(known)
    told: list[dict[str, Any]] = []
    for one in asked:
        if one.kind not in known:
            if one.kind in CONTROLS:
                raise UserError(f"control: {where} has not learned {one.kind}; it knows {', '.join(kinds)}")
            raise unknown("control", one.kind, known)
        place = kinds.index(one.kind)
        if strengths[place] or one.kind in [other["kind"] for other in told]:
            raise UserError(f"control: {one.kind} is given twice; give each kind once")
        parts[place] = of_picture(one.kind, one.picture, frame)
        strengths[place], intervals[place] = one.strength, one.interval
        told.append({"kind": one.kind, "hint": hash_of(parts[place]), "strength": one.strength, "interval": list(one.interval)})
    return Hints({"control": torch.cat(parts)[None], "control_strength": strengths[None]}, intervals, told)


def hash_of(hint: Tensor) -> str:
    """By which a hint is known again: of its values as bytes."""
    return sha256((hint.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes())[:16]


class Timed:
    """A denoiser whose hints act in their intervals only. times: all at which a plan asks, rising or falling."""

    def __init__(self, denoiser: Denoiser, hints: Hints, times: np.ndarray) -> None:
        self.denoiser, self.hints, self.times = denoiser, hints, np.asarray(times, np.float64)

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def acting(self, t: float) -> np.ndarray:
        """Which kinds act at t, (K,)."""
        done = float((self.times > t).mean())
        return (self.hints.intervals[:, 0] <= done) & (done < self.hints.intervals[:, 1])

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """x0 (B, *D)."""
        told = dict(cond or {})
        if "control_strength" in told:
            strength = told["control_strength"]
            first = float(t.flatten()[0]) if isinstance(t, Tensor) else float(t)
            told["control_strength"] = strength * torch.from_numpy(self.acting(first)).to(strength)
        return self.denoiser(x_t, t, told)


def steered(network: nn.Module, adapters: Sequence[Adapter]) -> nn.Module:
    """The network with the branch among the adapters beside it; without one the network itself.

    Raises UserError where there are two, or it does not fit.
    """
    found = [adapter for adapter in adapters if adapter.card.kind == "control"]
    if not found:
        return network
    if len(found) > 1:
        raise UserError(f"adapter: {found[0].folder} and {found[1].folder} are both for control; give one")
    from unfog.networks.control import ControlBranch
    from unfog.networks.steered import Steered
    from unfog.networks.unet import UNet

    base = network.base if isinstance(network, Steered) else network
    if not isinstance(base, UNet):
        raise UserError(f"adapter: {found[0].folder} is made for a network of the kind unet; give its own model")
    first = next(base.parameters())
    branch = ControlBranch(base, list(found[0].card.controls.values()))
    try:
        branch.load_state_dict(found[0].tensors)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1].strip()[:120]
        raise UserError(f"{found[0].folder}: does not fit this network ({reason}); give the model it was made for") from None
    branch = branch.to(first.device, first.dtype).eval().requires_grad_(False)
    # (ignore: as in model.py)
    return Steered(base, branch.to(memory_format=torch.channels_last)).eval()  # type: ignore[call-overload]


def shipped(name: str, kind: str) -> Path | None:
    """The add-on of a kind that is shipped for a model of this name."""
    folder = SHIPPED / f"{name}-{kind}"
    return folder if (folder / "adapter.json").is_file() else None


def like(where: str, recipe: object, asked: Sequence[ControlAsked], frame: tuple[int, int]) -> list[ControlAsked]:
    """The controls that remake a picture, at its own strengths, found among the ones given.

    recipe: what `Hints.told` wrote there, from a stranger perhaps. Raises UserError naming the one that is missing, another
    one, or too many.
    """
    from unfog.modalities.image.controls import of_picture

    keys: dict[str, Any] = {"kind": str, "hint": str, "strength": (int, float), "interval": list}
    if not isinstance(recipe, list) or not all(
        isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in keys.items()) for entry in recipe
    ):
        raise UserError(f"{where}: its recipe is damaged; give a PNG that unfog made and no other program changed")
    given, chosen = {one.kind: one for one in asked}, []
    for entry in recipe:
        told = f"{entry['kind'][:20]} at strength {entry['strength']:g}"
        if entry["kind"] not in given:
            raise UserError(
                f"{where}: was made with control {told}; give its picture with --control {entry['kind'][:20]}=PICTURE"
            )
        one = given.pop(entry["kind"])
        if hash_of(of_picture(one.kind, one.picture, frame)) != entry["hint"]:
            raise UserError(f"{where}: was made with another {one.kind} than {shown(str(one.picture))}; give that one")
        chosen.append(restored(one, entry))
    for kind in given:
        raise UserError(f"{where}: was made without control {kind}; leave it out")
    return chosen


def restored(one: ControlAsked, entry: Mapping[str, Any]) -> ControlAsked:
    """The same picture with the strength and interval of a recipe."""
    return one.model_copy(update={"strength": float(entry["strength"]), "interval": tuple(map(float, entry["interval"]))})
