"""Pictures with transparency, straight RGBA. What the contract asks; training has richer readers of its own (`PictureSet`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from unfog.errors import UserError
from unfog.modalities.contract import Items, Modality, Options

if TYPE_CHECKING:
    from PIL.Image import Image

    from unfog.modalities.image.place import Placed
    from unfog.modalities.image.space import PictureSpace


class PictureOptions(Options):
    size: int = Field(64, ge=8, le=1024, description="pixels a side")


def _open(path: Path, options: PictureOptions) -> Items:
    from unfog.modalities.image.data import PictureSet

    data = PictureSet.open(path)
    rows = [(data.load(i, options.size), record) for i, record in enumerate(data.records)]
    return Items(path, [pixels for pixels, _ in rows], [record.name or record.text for _, record in rows],
                 [record.split for _, record in rows], [record.file_name for _, record in rows])  # fmt: skip


def _fit(items: Items, options: PictureOptions) -> PictureSpace:
    from unfog.modalities.image.codec import RGBACodec

    codec = RGBACodec.fit(np.stack([items.raw[i] for i in items.split("train")]))
    return _space({"size": options.size, "styles": [], "codec": {"mean": codec.mean, "std": codec.std}})


def _space(card: dict[str, Any]) -> PictureSpace:
    from unfog.modalities.image.space import PictureSpace

    return PictureSpace(card)


def _render(raw: Sequence[Any], labels: Sequence[str]) -> Image:
    from unfog.modalities.image.show import contact_sheet

    return contact_sheet([_image(item) for item in raw], list(labels))


def _image(raw: Any) -> Image:
    from PIL import Image

    return Image.fromarray(raw) if isinstance(raw, np.ndarray) else raw


def _to_bytes(raw: Any, recipe: Mapping[str, Any]) -> bytes:
    from unfog.modalities.image.show import png_bytes

    return png_bytes(_image(raw), recipe)


def _from_bytes(data: bytes, name: str) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    import io

    from PIL import Image

    from unfog.modalities.image.data import LARGEST, UNREADABLE, unreadable
    from unfog.modalities.image.show import recipe_of

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > LARGEST:
                raise UserError(f"{name}: has {image.width}x{image.height} pixels; shrink it below 64 million")
            pixels = np.asarray(image.convert("RGBA"))
            return pixels, recipe_of(image)
    except UNREADABLE as error:
        raise unreadable(name, error) from None


def _keep(space: PictureSpace, raw: NDArray[np.uint8], spec: str) -> NDArray[np.bool_]:
    """spec: a picture of the same size, white where the picture may change."""
    from unfog.modalities.image.place import stays

    held = stays(raw, spec)
    channels, height, width = space.codec.shape(held.shape[1], held.shape[0])
    # a latent stays where all of its cell does; what of a changed cell was to stay is put back by `_paste`
    cells = held.reshape(height, len(held) // height, width, held.shape[1] // width).all((1, 3))
    return np.broadcast_to(cells, (channels, height, width)).copy()


def _paste(space: PictureSpace, made: NDArray[np.uint8], raw: NDArray[np.uint8], spec: str) -> NDArray[np.uint8]:
    from unfog.modalities.image.place import stays

    return np.where(stays(raw, spec)[..., None], raw, made)


def _place(space: PictureSpace, raw: Any, spec: str | None, canvas: tuple[int, int, int, int] | None) -> Placed:
    from unfog.modalities.image.place import Placed

    # a picture as `Model.generate` gives it is one too
    return Placed(space, raw if isinstance(raw, np.ndarray) else np.asarray(raw.convert("RGBA")), spec, canvas)


MODALITY = Modality(
    name="image",
    about="pictures, with transparency",
    open=_open,
    fit=_fit,
    space=_space,
    presets={},  # training/presets.py has them, with what each costs
    measure=None,  # evaluation measures pictures by readers, an independent scorer and a detector of copies
    render=_render,
    suffix=".png",
    to_bytes=_to_bytes,
    from_bytes=_from_bytes,
    options=PictureOptions,
    keep=_keep,
    paste=_paste,
    place=_place,
)
