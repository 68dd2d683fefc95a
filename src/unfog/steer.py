"""Pictures that steer a sampling: hints that it follows where and while they act.

    progress p = share of the steps that are done;  a hint of interval (a, b) acts while a ≤ p < b

`networks/control.py` says what a hint does to the network, `modalities/image/controls.py` what it is of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from unfog.adapters import Adapter, recorded
from unfog.errors import UserError, shown, unknown
from unfog.files import sha256
from unfog.requests import GenerateRequest
from unfog.wishes import ControlAsked, StyleAsked

if TYPE_CHECKING:
    from unfog.diffusion.denoisers import Cond, Denoiser
    from unfog.diffusion.processes import Process
    from unfog.script import Asked, Item

SHIPPED = Path(__file__).parent / "pretrained"


@dataclass(frozen=True)
class Hints:
    """What steers a request. cond: of one item; intervals: when each control acts, (K, 2); told: what a picture's recipe says of
    them."""

    cond: dict[str, Tensor]
    intervals: np.ndarray
    told: dict[str, Any] = field(default_factory=dict)

    def guided(self, scale: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the prompted branch of guidance is told, and what of it the other is told instead.

        A control is the prompted branch's alone. Told to both, it leaves guidance the difference that the prompt makes beyond
        it, which is also the prompt's own idea of where things lie: lines were followed by an F1 of .84 instead of .93, and the
        prompt found no more often.

        Of a style what names say is pushed away from its absence, as a name is; the rest is in both, else a style that the model
        has never drawn turns into speckles.
        """
        cond, instead = dict(self.cond), {}
        if "control_strength" in cond and scale > 1.0:
            instead["control_strength"] = torch.zeros_like(cond["control_strength"])
        if "image_named" in cond:
            instead["image_named"] = torch.zeros_like(cond["image_named"])
        return cond, instead

    def beside(self, asked: Asked, told: Callable[[dict[str, Tensor]], dict[str, Tensor]], scale: float, items: Sequence[Item],
               negative: Any) -> tuple[Cond, Cond]:  # fmt: skip
        """What `asked` says of items and of guidance's other branch, and the hints to both. told: puts them on the model."""
        (cond, other), (steer, instead) = asked(items, negative), map(told, self.guided(scale))
        rows = {key: value.expand(len(items), *value.shape[1:]) for key, value in steer.items()}
        return {**cond, **rows}, {**other, **steer, **instead}


def hints_of(request: GenerateRequest, model: Any) -> Hints:
    """The hints of what was asked of a model that has what they are followed by.

    Raises UserError for a kind of control that is unknown, not learned by its branch, or asked for twice; for a picture that
    cannot be read; for a style by name beside one by picture.
    """
    frame = model.frame(request.aspect)
    found = controls_of(request.control, model.controls, frame, model.name) if request.control else Hints({}, np.zeros((0, 2)))
    if not request.style_image:
        return found
    if request.style is not None:
        raise UserError(f"style: {request.style} and a style's picture are two styles; leave one out")
    pictures = torch.stack([reference_of(one.picture, frame) for one in request.style_image])
    weights = torch.tensor([one.weight for one in request.style_image])
    told = [{"picture": hash_of(picture), "weight": float(one.weight)}
            for picture, one in zip(pictures, request.style_image, strict=True)]  # fmt: skip
    styled = {"image": pictures[None], "image_mask": weights[None], "image_named": torch.ones(1)}
    if model.styles:
        styled["image_kinds"] = kinds_of(pictures, model)[None]
    return Hints({**found.cond, **styled}, found.intervals, {**found.told, "style_image": told})


def kinds_of(image: Tensor, model: Any) -> Tensor:
    """How likely references (R, 4, H, W), premultiplied, are of each style that a model knows by name: (R, K).

    By the model's own errors, so that it reads every style that it draws; between those that its reader of looks was taught, that
    one has its say too.
    """
    from unfog.diffusion.classify import classify
    from unfog.modalities.image.codec import straight

    x0 = model.codec.encode(torch.from_numpy(straight(image))).to(model.device)
    with torch.inference_mode():
        found = classify(model.denoiser, x0, [model.condition([""], [style]) for style in model.styles])
        card = next(adapter.card for adapter in model.adapters if adapter.card.kind == "style")
        held = (card.training.get("recipe") or {}).get("held_style")
        taught = torch.tensor([style != held for style in model.styles])
        looks = model.denoiser.network.style.likely(image.to(model.device, model.dtype)).float().cpu()
        both = found * looks * taught
        return torch.where(
            taught, both / both.sum(1, keepdim=True).clamp_min(1e-12) * (found * taught).sum(1, keepdim=True), found
        )


def reference_of(picture: Any, frame: tuple[int, int]) -> Tensor:
    """A reference, premultiplied RGBA (4, height, width). Raises UserError where it cannot be read."""
    from unfog.modalities.image.codec import premultiply
    from unfog.modalities.image.controls import framed

    return premultiply(framed(picture, frame))[0]


def controls_of(asked: Sequence[ControlAsked], known: Mapping[str, int], frame: tuple[int, int], where: str) -> Hints:
    """The hints of controls alone."""
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
        if one.kind in [other["kind"] for other in told]:
            raise UserError(f"control: {one.kind} is given twice; give each kind once")
        parts[place] = of_picture(one.kind, one.picture, frame)
        strengths[place], intervals[place] = one.strength, one.interval
        told.append({"kind": one.kind, "hint": hash_of(parts[place]), "strength": one.strength, "interval": list(one.interval)})
    return Hints({"control": torch.cat(parts)[None], "control_strength": strengths[None]}, intervals, {"control": told})


def told_of(adapters: Sequence[Any], control: Sequence[ControlAsked], style: Sequence[StyleAsked],
            hints: Hints | None) -> dict[str, Any]:  # fmt: skip
    """What a recipe says of the adapters that were used, and of what steered; guides that nothing was asked of are not named."""
    asked_for = {"control": bool(control), "style": bool(style)}
    used = [adapter for adapter in adapters if asked_for.get(adapter.card.kind, True)]
    return {**({"adapters": recorded(used)} if used else {}), **(hints.told if hints else {})}


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
        first, last = self.hints.intervals.T
        return (first <= done) & ((done < last) | (last == 1.0))  # 1 is done where a way into noise begins

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """x0 (B, *D)."""
        told = dict(cond or {})
        if "control_strength" in told:
            strength = told["control_strength"]
            first = float(t.flatten()[0]) if isinstance(t, Tensor) else float(t)
            told["control_strength"] = strength * torch.from_numpy(self.acting(first)).to(strength)
        return self.denoiser(x_t, t, told)


def steered(network: nn.Module, adapters: Sequence[Adapter]) -> nn.Module:
    """The network with the branch and the reader of style among the adapters beside it; without any the network itself.

    Raises UserError where there are two of a kind, or one does not fit.
    """
    from unfog.networks.control import ControlBranch
    from unfog.networks.steered import Steered
    from unfog.networks.style import StyleReader
    from unfog.networks.unet import UNet

    base, parts = network.base if isinstance(network, Steered) else network, {}
    for kind in ("control", "style"):
        found = [adapter for adapter in adapters if adapter.card.kind == kind]
        if len(found) > 1:
            raise UserError(f"adapter: {found[0].folder} and {found[1].folder} are both for {kind}; give one")
        for adapter in found:
            if not isinstance(base, UNet):
                raise UserError(f"adapter: {adapter.folder} is made for a network of the kind unet; give its own model")
            part: nn.Module = (
                ControlBranch(base, list(adapter.card.controls.values())) if kind == "control" else StyleReader(base)
            )
            try:
                part.load_state_dict(adapter.tensors)
            except RuntimeError as error:
                reason = str(error).strip().split("\n")[-1].strip()[:120]
                raise UserError(f"{adapter.folder}: does not fit this network ({reason}); give its own model") from None
            first = next(base.parameters())
            part = part.to(first.device, first.dtype).requires_grad_(False)
            # (ignore: as in model.py)
            parts[kind] = part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Steered(base, **parts).eval() if parts and isinstance(base, UNet) else network


def shipped(name: str, kind: str) -> Path:
    """The add-on of a kind that is shipped for a model of this name. Raises UserError where there is none."""
    folder = SHIPPED / f"{name}-{kind}"
    if not (folder / "adapter.json").is_file():
        raise UserError(f"{kind}: {name} has no branch for it; train one and give it as an adapter (docs/control.md)")
    return folder


def like_style(where: str, recipe: object, asked: Sequence[StyleAsked], frame: tuple[int, int]) -> list[StyleAsked]:
    """The style's pictures that remake a picture, at its own weights, in the order in which they were given.

    Raises UserError where they are other ones, fewer or more.
    """
    if not isinstance(recipe, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("weight"), (int, float)) for entry in recipe
    ):
        raise UserError(f"{where}: its recipe is damaged; give a PNG that unfog made and no other program changed")
    hashes = [hash_of(reference_of(one.picture, frame)) for one in asked]
    if hashes != [entry.get("picture") for entry in recipe]:
        raise UserError(f"{where}: was made in the style of {len(recipe)} pictures, not of these; give those with --style-image")
    return [one.model_copy(update={"weight": float(entry["weight"])}) for one, entry in zip(asked, recipe, strict=True)]


def like(where: str, recipe: object, asked: Sequence[ControlAsked], frame: tuple[int, int],
         hint: Callable[[str, Any, tuple[int, int]], Tensor] | None = None) -> list[ControlAsked]:  # fmt: skip
    """The controls that remake a picture, at its own strengths, found among the ones given.

    recipe: what `Hints.told` wrote there, from a stranger perhaps. hint: what a kind is of a picture in a frame, where the
    kinds are not our own. Raises UserError naming the one that is missing, another one, or too many.
    """
    from unfog.modalities.image.controls import of_picture

    seen = hint or of_picture

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
        if hash_of(seen(one.kind, one.picture, frame)) != entry["hint"]:
            raise UserError(f"{where}: was made with another {one.kind} than {shown(str(one.picture))}; give that one")
        chosen.append(restored(one, entry))
    for kind in given:
        raise UserError(f"{where}: was made without control {kind}; leave it out")
    return chosen


def restored(one: ControlAsked, entry: Mapping[str, Any]) -> ControlAsked:
    """The same picture with the strength and interval of a recipe."""
    return one.model_copy(update={"strength": float(entry["strength"]), "interval": tuple(map(float, entry["interval"]))})
