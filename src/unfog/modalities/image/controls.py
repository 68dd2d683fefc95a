"""Hints by which a picture steers another: what each kind of control sees of it, one function a kind, one registry.

    draw(pictures (B, H, W, 4) straight RGBA uint8) -> (B, c, H, W) in [0, 1]

Training draws hints from its own pictures; `of_picture` makes one of anybody's, whatever its size: a sketch on paper stays the
sketch that it is, from a photograph or a drawing the hint is derived.
Sources: Canny 1986 (thinned maxima of the gradient); Di Zenzo 1986 (the gradient of several channels together).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unfog.errors import UserError, unknown
from unfog.modalities.image.codec import premultiply
from unfog.modalities.image.data import LARGEST, UNREADABLE, _fit, unreadable

WEAKEST, STRONGEST = 0.12, 0.35  # steps of colour or alpha, per pixel, between which a line grows from nothing to full ink
INK = 0.4  # how much darker than both its sides a stroke is
BLOCKS, COARSE = 8, 4  # blocks a side of a palette; pixels a side of one of low resolution
PAPER = 0.55  # share of a sketch that is bare


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Size and direction (an angle, modulo π) of the steepest change over all channels together: (B, H, W) each."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across = (x[..., 2:] - x[..., :-2]) / 2
    down = (x[..., 2:, :] - x[..., :-2, :]) / 2
    across = (across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]) / 4
    down = (down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]) / 4
    xx, yy, xy = (across.square().sum(1), down.square().sum(1), (across * down).sum(1))
    spread = ((xx - yy).square() + 4 * xy.square()).sqrt()
    return ((xx + yy + spread) / 2).clamp(min=0).sqrt(), torch.atan2(2 * xy, xx - yy) / 2


def lineart(pictures: Tensor) -> Tensor:
    """Lines as a pen would draw them, one pixel wide and 1 on them: outlines, borders of areas, and strokes as one line."""
    x = premultiply(pictures)
    size, angle = gradient(x)
    # thinned: a pixel stays where none of its two neighbours across the edge is steeper
    turn = ((angle / (torch.pi / 4)).round().long() % 4)[None]
    padded = F.pad(size[:, None], (1, 1, 1, 1))[:, 0]
    h, w = size.shape[-2:]
    sides = ((0, 1), (1, 1), (1, 0), (1, -1))  # rows and columns to one neighbour, by quarter turns

    def beside(sign: int) -> Tensor:
        shifted = torch.stack([padded[:, 1 + sign * i : 1 + sign * i + h, 1 + sign * j : 1 + sign * j + w] for i, j in sides])
        return shifted.gather(0, turn)[0]

    ridge = (size >= beside(1)) & (size > beside(-1))
    edges = ((size - WEAKEST) / (STRONGEST - WEAKEST)).clamp(0, 1) * ridge
    # strokes of a dark pen: what a closing of 5 x 5 fills, and nothing beside them, where their two edges are
    light = 1 - x[:, 3:] + x[:, :3].amax(1, keepdim=True)
    closed = -F.max_pool2d(-F.max_pool2d(light, 5, 1, 2), 5, 1, 2)
    stroke = ((closed - light - INK / 2) / (INK / 2)).clamp(0, 1)
    near = F.max_pool2d((stroke > 0.5).float(), 5, 1, 2)
    return torch.maximum(stroke, edges[:, None] * (1 - near))


def softedge(pictures: Tensor) -> Tensor:
    """Edges as a soft ridge some three pixels wide, the stronger the brighter."""
    size, _ = gradient(premultiply(pictures))
    soft = F.avg_pool2d(F.pad(size[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (soft / STRONGEST).clamp(0, 1)


def silhouette(pictures: Tensor) -> Tensor:
    """Where there is something: alpha."""
    return pictures[..., 3][:, None].float() / 255


def _blocks(pictures: Tensor, rows: int, columns: int, mode: str) -> Tensor:
    x = premultiply(pictures)
    small = F.adaptive_avg_pool2d(x, (max(rows, 1), max(columns, 1)))
    return F.interpolate(small, x.shape[-2:], mode=mode, **({} if mode == "nearest" else {"align_corners": False}))


def palette(pictures: Tensor) -> Tensor:
    """Which colours lie about where: premultiplied RGBA, the mean of each of 8 by 8 blocks."""
    return _blocks(pictures, BLOCKS, BLOCKS, "nearest")


def lowres(pictures: Tensor) -> Tensor:
    """The picture at a quarter of its size, grown again: premultiplied RGBA."""
    height, width = pictures.shape[1:3]
    return _blocks(pictures, height // COARSE, width // COARSE, "bilinear")


@dataclass(frozen=True)
class Control:
    """A kind of control. channels of its hint; draw: of pictures; about: in words; given: the picture is the hint itself, as
    nothing here could derive it."""

    about: str
    channels: int
    draw: Callable[[Tensor], Tensor]
    given: bool = False


def _shade(pictures: Tensor) -> Tensor:
    x = premultiply(pictures)
    return x[:, :3].mean(1, keepdim=True)


CONTROLS: dict[str, Control] = {
    "lineart": Control("lines on paper: a sketch, or the lines of a picture", 1, lineart),
    "softedge": Control("soft edges of a picture", 1, softedge),
    "silhouette": Control("the outline filled: what is something and what is background", 1, silhouette),
    "palette": Control("coarse blocks of colour", 4, palette),
    "lowres": Control("a small or blurred picture", 4, lowres),
    "depth": Control("a depth map, near is light, black is nothing", 1, _shade, given=True),
    "normals": Control("a map of normals as colours, black is nothing", 3, lambda p: premultiply(p)[:, :3], given=True),
}


def kind_of(name: str) -> Control:
    """The control of this name. Raises UserError naming the nearest."""
    if name not in CONTROLS:
        raise unknown("control", name, CONTROLS)
    return CONTROLS[name]


def as_drawn(name: str, pictures: Tensor) -> Tensor:
    """Hints (B, c, H, W) that pictures (B, H, W, 4) straight RGBA uint8 are themselves: lines dark on light, else maps."""
    x, control = premultiply(pictures), kind_of(name)
    if name == "lineart":
        return x[:, 3:] - x[:, :3].mean(1, keepdim=True)
    return x[:, : control.channels] if control.channels > 1 else _shade(pictures)


def opened(picture: Any) -> Image.Image:
    """A picture from a path, or one of PIL's, or an array (H, W, 3 or 4) uint8, as RGBA.

    Raises UserError where it cannot be read.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (3, 4)):
            raise UserError(f"control: an array {picture.shape} of {picture.dtype} is no picture; give (H, W, 4) uint8")
        return Image.fromarray(picture).convert("RGBA")
    if isinstance(picture, Image.Image):
        return picture.convert("RGBA")
    try:
        with Image.open(picture) as image:
            if image.width * image.height > LARGEST:
                raise UserError(f"{picture}: has {image.width}x{image.height} pixels; shrink it below 64 million")
            return image.convert("RGBA")
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{picture}: cannot be read ({error.strerror}); give a picture") from None
        raise unreadable(str(picture), error) from None


def of_picture(name: str, picture: Any, frame: tuple[int, int]) -> Tensor:
    """The hint (c, height, width) of anybody's picture for a frame (width, height); what is of another shape is centred.

    Raises UserError for an unknown control, and a picture that cannot be read.
    """
    control, image = kind_of(name), opened(picture)
    if name == "lineart" and (ink := sketched(image)) is not None:
        return _shrunk(ink, frame)
    if name == "softedge" and is_map(image):
        return as_drawn(name, framed(image, frame, clear=False))[0]
    return control.draw(framed(image, frame, clear=not control.given))[0]


def framed(picture: Any, frame: tuple[int, int], clear: bool = True) -> Tensor:
    """Anybody's picture in a frame (width, height), by `clear` cut out: (1, height, width, 4) straight RGBA uint8."""
    image = opened(picture)
    image = cut_out(image) if clear else image
    return torch.from_numpy(np.array(image if image.size == frame else _fit(image, frame)))[None]


def sketched(image: Image.Image) -> NDArray[np.float32] | None:
    """Ink (H, W) in [0, 1] of a picture that is itself a line drawing: grey strokes, thin, on bare paper; else None."""
    large = image if max(image.size) <= 1024 else image.copy()
    large.thumbnail((1024, 1024))
    x = np.asarray(large, np.float32) / 255
    colour, alpha = x[..., :3], x[..., 3]
    if float(((colour.max(-1) - colour.min(-1)) * alpha).mean()) > 0.03:
        return None  # coloured
    shade = (colour.mean(-1) * alpha + 1 - alpha).astype(np.float32)
    ink = 1 - shade
    if alpha.mean() > 0.5 and float(np.median(shade)) < 0.5:
        ink = shade * alpha  # white on black
    drawn = ink > 0.25
    if (
        not 0.002 < float(drawn.mean()) < 1 - PAPER
        or float(((ink > 0.15) & (ink < 0.6)).mean()) > 0.5 * float(drawn.mean()) + 0.02
    ):
        return None  # bare, full, or shaded
    # thin: hardly anything is left after as much as a pen's width is worn off
    width = max(round(0.07 * max(drawn.shape)) | 1, 3)
    worn = -F.max_pool2d(-torch.from_numpy(drawn.astype(np.float32))[None, None], width, 1, width // 2)
    return ink.astype(np.float32) if float(worn.mean()) < 0.1 * float(drawn.mean()) else None


def is_map(image: Image.Image) -> bool:
    """Whether a picture is a map of edges itself: grey and opaque, light on mostly black."""
    small = image.copy()
    small.thumbnail((512, 512))
    x = np.asarray(small, np.float32) / 255
    shade = x[..., :3].mean(-1)
    plain = float((x[..., :3].max(-1) - x[..., :3].min(-1)).mean()) < 0.02 and float(x[..., 3].min()) > 0.98
    return plain and float(np.median(shade)) < 0.1 and float((shade > 0.25).mean()) > 0.002 and float((shade > 0.5).mean()) < 0.3


def _shrunk(ink: NDArray[np.float32], frame: tuple[int, int]) -> Tensor:
    """Ink (H, W) fitted into a frame, lines thinner than a pixel kept: the darkest of each spot counts. (1, height, width)."""
    x = torch.from_numpy(ink)[None, None]
    scale = min(frame[0] / x.shape[3], frame[1] / x.shape[2])
    height, width = (max(1, round(side * scale)) for side in x.shape[2:])
    if scale < 0.5:  # to twice the size by the darkest, then to the size by the mean
        x = F.adaptive_max_pool2d(x, (2 * height, 2 * width))
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=scale < 1, align_corners=False)
    x = (x / x.amax().clamp(min=0.2) * 1.25).clamp(0, 1)
    out = torch.zeros(1, frame[1], frame[0])
    top, left = (frame[1] - height) // 2, (frame[0] - width) // 2
    out[:, top : top + height, left : left + width] = x[0]
    return out


def cut_out(image: Image.Image) -> Image.Image:
    """A picture whose opaque background is of one colour, without it: as a silhouette and colours of a thing are meant.

    The background is what hangs together with the border and is within a few shades of the border's usual colour.
    """
    if int(np.asarray(image)[..., 3].min()) < 250:
        return image
    small = image.copy()
    small.thumbnail((256, 256))
    x = np.asarray(small, np.int32)[..., :3]
    border = np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]])
    usual = np.median(border, axis=0)
    if (np.abs(border - usual).max(-1) > 24).mean() > 0.2:
        return image  # no such background
    same = np.abs(x - usual).max(-1) <= 24
    reached = np.zeros_like(same)
    height, width = same.shape
    queue = deque(
        (i, j) for i in range(height) for j in range(width) if (i in (0, height - 1) or j in (0, width - 1)) and same[i, j]
    )
    for i, j in queue:
        reached[i, j] = True
    while queue:
        i, j = queue.popleft()
        for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if 0 <= a < height and 0 <= b < width and same[a, b] and not reached[a, b]:
                reached[a, b] = True
                queue.append((a, b))
    if reached.mean() > 0.99:
        return image  # nothing would be left: a picture of one colour is meant as it is
    alpha = Image.fromarray(np.where(reached, 0, 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    out = image.copy()
    out.putalpha(alpha)
    return out


def shown(name: str, hint: Tensor) -> Image.Image:
    """A hint (c, H, W) as a picture to look at: lines dark on white, maps light on black, colours with their transparency."""
    x = hint.float().clamp(0, 1).cpu()
    if len(x) == 1:
        plane = 1 - x[0] if name == "lineart" else x[0]
        return Image.fromarray((plane * 255).round().to(torch.uint8).numpy())
    colour = x[:3] / x[3:].clamp(min=1 / 255) if len(x) == 4 else x
    full = torch.cat([colour.clamp(0, 1), x[3:]]) if len(x) == 4 else colour
    return Image.fromarray((full * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
