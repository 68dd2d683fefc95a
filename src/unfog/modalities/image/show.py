"""Pictures on disk and side by side: PNG files that carry their own recipe, and contact sheets.

The recipe is sorted JSON in an iTXt chunk named "unfog"; the file's bytes depend on the pixels and the recipe
alone (no date, no metadata of the source, fixed compression), so equal pictures are equal files.
Source: PNG specification, third edition, 11.3.3 (iTXt).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from unfog.errors import UserError
from unfog.files import recipe_from, write_bytes

CHUNK = "unfog"
COMPRESSION = 6  # zlib's own default, pinned: the level decides the bytes
# One side of the checkerboard's squares and the two greys, as image editors draw "transparent".
SQUARE, LIGHT, DARK = 8, (255, 255, 255), (236, 236, 236)
MARGIN = 8  # pixels around each picture of a sheet
CAPTION_SIZE, CAPTION_LINES, INK = 12, 2, (40, 40, 40)


def png_bytes(image: Image.Image, recipe: Mapping[str, Any] | None = None) -> bytes:
    """The PNG file of a picture: equal pixels and recipe give equal bytes.

    Args: image, mode L, RGB or RGBA; recipe, anything JSON can hold (no NaN).
    """
    text = PngImagePlugin.PngInfo()
    if recipe is not None:
        text.add_itxt(CHUNK, json.dumps(recipe, sort_keys=True, ensure_ascii=False, allow_nan=False))
    # A bare copy: Pillow would otherwise write colour profiles, EXIF and resolution from image.info.
    bare = Image.frombytes(image.mode, image.size, image.tobytes())
    file = BytesIO()
    bare.save(file, "PNG", compress_level=COMPRESSION, pnginfo=text)
    return file.getvalue()


def save_png(image: Image.Image, path: str | os.PathLike[str], recipe: Mapping[str, Any] | None = None) -> None:
    """Write a picture with its recipe inside, whole or not at all; an existing file is replaced.

    Raises: UserError where the file cannot be written.
    """
    write_bytes(Path(path), png_bytes(image, recipe))


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The recipe inside a PNG that unfog made.

    Raises: UserError where the file is missing, no PNG, or carries no readable recipe.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # a picture whose pixels are cut off is refused here, before anyone relies on it
            text = image.info.get(CHUNK)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a PNG that unfog made") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a readable PNG"
        raise UserError(f"{path}: cannot be read ({reason}); give a PNG that unfog made") from None
    if not isinstance(text, str):
        raise UserError(f"{path}: carries no recipe; give a PNG that unfog made and no other program saved again")
    recipe = recipe_from(text)
    if recipe is None:
        raise UserError(f"{path}: its recipe is damaged; give a PNG that unfog made and no other program changed")
    return recipe


def recipe_of(image: Image.Image) -> dict[str, Any]:
    """The recipe inside an opened picture; {} where it carries none that can be read."""
    text = image.info.get(CHUNK)
    return (recipe_from(text) if isinstance(text, str) else None) or {}


def checkerboard(width: int, height: int) -> Image.Image:
    """The light checkerboard (RGB, sizes in pixels) that stands for transparency."""
    tile = Image.new("RGB", (2 * SQUARE, 2 * SQUARE), LIGHT)
    draw = ImageDraw.Draw(tile)
    for x, y in ((SQUARE, 0), (0, SQUARE)):
        draw.rectangle((x, y, x + SQUARE - 1, y + SQUARE - 1), fill=DARK)
    board = Image.new("RGB", (width, height))
    for y in range(0, height, 2 * SQUARE):
        for x in range(0, width, 2 * SQUARE):
            board.paste(tile, (x, y))
    return board


def contact_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    background: Literal["checkerboard", "white"] = "checkerboard",
    scale: int = 2,
) -> Image.Image:
    """All pictures on one sheet (RGB), row by row, transparency over the background, captions below.

    Args: labels, one for each picture; columns, from 1 (None = about a square); scale, whole, from 1.
    Raises: UserError where there are no pictures or the counts differ.
    """
    if not images:
        raise UserError("contact sheet: there are no pictures; give at least one")
    if labels is not None and len(labels) != len(images):
        raise UserError(f"contact sheet: {len(labels)} labels for {len(images)} pictures; give one for each")
    if scale < 1 or (columns is not None and columns < 1):
        raise UserError(f"contact sheet: scale {scale} and columns {columns} must be 1 or more")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    width = scale * max(image.width for image in images)
    height = scale * max(image.height for image in images)
    font = ImageFont.load_default(size=CAPTION_SIZE)
    line = math.ceil(sum(font.getmetrics())) if isinstance(font, ImageFont.FreeTypeFont) else CAPTION_SIZE
    captions = [_fit(label, width, font) for label in labels] if labels is not None else []
    below = MARGIN // 2 + line * max((len(lines) for lines in captions), default=0) if captions else 0
    cell_width, cell_height = width + MARGIN, height + below + MARGIN
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    board = checkerboard(width, height) if background == "checkerboard" else Image.new("RGB", (width, height), LIGHT)
    for i, image in enumerate(images):
        x, y = MARGIN + i % columns * cell_width, MARGIN + i // columns * cell_height
        # Pillow resizes RGBA through premultiplied alpha, so hidden colours do not bleed into the edges.
        size = (image.width * scale, image.height * scale)
        large = image.convert("RGBA").resize(size, Image.Resampling.LANCZOS)
        cell = board.crop((0, 0, *size)).convert("RGBA")
        cell.alpha_composite(large)
        sheet.paste(cell.convert("RGB"), (x, y))
        for k, words in enumerate(captions[i] if captions else ()):
            draw.text((x, y + height + MARGIN // 2 + k * line), words, fill=INK, font=font)
    return sheet


def _fit(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """A caption in at most CAPTION_LINES lines of `width` pixels, the last one cut with an ellipsis."""
    lines: list[str] = []
    rest = " ".join(label.split())[:500]
    while rest:
        if font.getlength(rest) <= width:
            return [*lines, rest]
        last = len(lines) == CAPTION_LINES - 1
        end = len(rest)
        while end > 1 and font.getlength(rest[:end].rstrip() + ("…" if last else "")) > width:
            end -= 1
        if last:
            return [*lines, rest[:end].rstrip() + "…"]
        space = rest.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return lines
