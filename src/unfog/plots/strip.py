"""Pictures in rows and columns with words around them, by Pillow alone: title, heads, names of rows, lines under pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK, DIM, RULE, GROUND = (27, 31, 36), (95, 103, 115), (214, 218, 224), (255, 255, 255)
BODY, SMALL, HEAD = 13, 12, 17  # sizes of letters in pixels
GAP, MARGIN = 8, 16
SMALLEST = 128  # pixels that a picture's shorter side is drawn with, at least, by a whole factor
WIDEST_NAME = 220  # pixels of a row's name before it goes on in the next line


@dataclass(frozen=True)
class Panel:
    """rows × columns of pictures (None: an empty place), all drawn with one size; under[r][c]: lines under a picture."""

    pictures: Sequence[Sequence[Image.Image | None]]
    heads: Sequence[Sequence[str]]  # lines above each column
    names: Sequence[Sequence[str]]  # lines left of each row
    under: Sequence[Sequence[Sequence[str]]] | None = None
    foot: Sequence[Sequence[str]] = ()  # lines below each column
    title: str = ""


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: the same letters on every machine."""
    return ImageFont.load_default(size=size)


def wrapped(text: str, width: float, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int = 4) -> list[str]:
    """Text in at most `most` lines of `width` pixels, parted at spaces where there are any, the last cut with an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text.split())[:500]
    while rest:
        if letters.getlength(rest) <= width:
            return [*lines, rest]
        end = len(rest)
        last = len(lines) == most - 1
        while end > 1 and letters.getlength(rest[:end].rstrip() + ("…" if last else "")) > width:
            end -= 1
        if last:
            return [*lines, rest[:end].rstrip() + "…"]
        space = rest.rfind(" ", 1, end + 1)
        end = space if space > 0 else end
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return lines


def flat(picture: Image.Image) -> Image.Image:
    """On a light ground, where it is transparent."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, (*GROUND, 255))
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def enlarged(picture: Image.Image, factor: int, smooth: bool) -> Image.Image:
    """`factor` times as large; smooth: for pictures, not for noise, whose pixels should be seen."""
    size = (picture.width * factor, picture.height * factor)
    # Pillow resizes RGBA through premultiplied alpha
    return flat(picture.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST))


def draw(panels: Sequence[Panel], title: str = "", sub: str = "", smooth: bool = True, smallest: int = SMALLEST) -> Image.Image:
    """Panels under each other with a title (RGB). All pictures are enlarged by one whole factor, to `smallest` pixels or more."""
    sizes = [p.size for panel in panels for row in panel.pictures for p in row if p is not None]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    factor = max(1, math.ceil(smallest / min(width, height)))
    width, height = width * factor, height * factor
    parts = [_panel(panel, width, height, factor, smooth) for panel in panels]
    wide = max(part.width for part in parts)
    above: list[tuple[str, int, tuple[int, int, int]]] = []
    for text, size, colour, most in ((title, HEAD, INK, 3), (sub, SMALL, DIM, 6)):
        above += [(line, size, colour) for line in wrapped(text, max(wide, 480), font(size), most)]
    wide = max([wide, *(math.ceil(font(size).getlength(line)) for line, size, _ in above)])
    top = sum(_line(size) for _, size, _ in above) + (GAP if above else 0)
    whole = Image.new(
        "RGB", (wide + 2 * MARGIN, top + sum(p.height for p in parts) + GAP * (len(parts) - 1) + 2 * MARGIN), GROUND
    )
    pen, y = ImageDraw.Draw(whole), MARGIN
    for line, size, colour in above:
        pen.text((MARGIN, y), line, fill=colour, font=font(size))
        y += _line(size)
    y += GAP if above else 0
    for part in parts:
        whole.paste(part, (MARGIN, y))
        y += part.height + GAP
    return whole


def _line(size: int) -> int:
    return math.ceil(size * 1.3)


def _panel(panel: Panel, width: int, height: int, factor: int, smooth: bool) -> Image.Image:
    body, small = font(BODY), font(SMALL)
    columns = max(len(row) for row in panel.pictures)
    under = panel.under or [[[] for _ in row] for row in panel.pictures]
    lines = [t for row in under for cell in row for t in cell] + [t for column in panel.foot for t in column]
    width_of_cell = max([width, *(math.ceil(small.getlength(line)) for line in lines)])
    heads = [[part for line in head for part in wrapped(line, width_of_cell, body, 3)] for head in panel.heads]
    names = [[part for line in name for part in wrapped(line, WIDEST_NAME, body)] for name in panel.names]
    left = max([0, *(math.ceil(body.getlength(line)) for name in names for line in name)])
    left += GAP if left else 0
    title = _line(BODY) + GAP // 2 if panel.title else 0
    head = _line(BODY) * max([0, *map(len, heads)])
    deep = max([0, *(len(cell) for row in under for cell in row)])
    row_height = height + _line(SMALL) * deep + GAP
    foot = _line(SMALL) * max([0, *map(len, panel.foot)])
    size = (left + columns * (width_of_cell + GAP) - GAP + 1, title + head + GAP // 2 + len(panel.pictures) * row_height + foot)
    if panel.title:
        size = (max(size[0], math.ceil(body.getlength(panel.title))), size[1])
    sheet = Image.new("RGB", size, GROUND)
    pen = ImageDraw.Draw(sheet)
    if panel.title:
        pen.text((0, 0), panel.title, fill=INK, font=body)

    def middle(c: int) -> float:
        return left + c * (width_of_cell + GAP) + width_of_cell / 2

    for c, texts in enumerate(heads):
        for k, line in enumerate(texts):
            pen.text((middle(c), title + k * _line(BODY)), line, fill=INK, font=body, anchor="ma")
    y = title + head + GAP // 2
    for r, row in enumerate(panel.pictures):
        for k, line in enumerate(names[r] if r < len(names) else ()):
            shift = (k - len(names[r]) / 2) * _line(BODY)
            pen.text((left - GAP, y + height / 2 + shift), line, fill=INK, font=body, anchor="ra")
        for c, picture in enumerate(row):
            x = left + c * (width_of_cell + GAP)
            if picture is not None:
                large = enlarged(picture, factor, smooth)
                place = (x + (width_of_cell - large.width) // 2, y + (height - large.height) // 2)
                sheet.paste(large, place)
                pen.rectangle((place[0] - 1, place[1] - 1, place[0] + large.width, place[1] + large.height), outline=RULE)
            for k, line in enumerate(under[r][c]):
                pen.text((middle(c), y + height + 3 + k * _line(SMALL)), line, fill=DIM, font=small, anchor="ma")
        y += row_height
    for c, below in enumerate(panel.foot):
        for k, line in enumerate(below):
            pen.text((middle(c), y - GAP // 2 + k * _line(SMALL)), line, fill=DIM, font=small, anchor="ma")
    return sheet


def tiled(pictures: Sequence[Image.Image]) -> Image.Image:
    """Several pictures of one size as one, about a square, transparent between them."""
    if len(pictures) == 1:
        return pictures[0]
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    whole = Image.new("RGBA", (columns * width, math.ceil(len(pictures) / columns) * height))
    for k, picture in enumerate(pictures):
        whole.paste(picture.convert("RGBA"), (k % columns * width, k // columns * height))
    return whole
