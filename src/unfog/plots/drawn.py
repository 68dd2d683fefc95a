"""A plot once it is drawn, and the file that it becomes: PNG for pictures; SVG, or PNG and PDF by matplotlib, for curves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfog.errors import UserError
from unfog.page import Lines, standalone, svg

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = "unfog plot"  # by which a later run knows that it may replace the file


@dataclass(frozen=True)
class Sheet:
    """Pictures with words: the whole, the numbers behind it, the pictures in it in their own size, row by row."""

    image: Image
    facts: dict[str, Any]
    pictures: Sequence[Image]

    SUFFIXES = (".png",)

    def data(self, suffix: str = ".png") -> bytes:
        """The file's bytes."""
        from unfog.modalities.image.show import png_bytes

        return png_bytes(self.image, {"made": MARK, **self.facts})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it, whole or not at all. Raises UserError where the place or its suffix does not do."""
        return _saved(self, Path(path))


@dataclass(frozen=True)
class Curve:
    """Lines with intervals, and the numbers behind them; `lines` may also stand in a page (`unfog.page`)."""

    lines: Lines
    facts: dict[str, Any]

    SUFFIXES = (".svg", ".png", ".pdf")

    def data(self, suffix: str = ".svg") -> bytes:
        """The file's bytes. Raises UserError where .png or .pdf lacks matplotlib."""
        if suffix == ".svg":
            return standalone(svg(self.lines)).replace("<style>", f"<desc>{MARK}</desc><style>", 1).encode()
        from unfog.plots.curves import draw

        return draw(self.lines, suffix.removeprefix("."), MARK, self.facts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it, whole or not at all. Raises UserError where the place or its suffix does not do, or matplotlib is missing."""
        return _saved(self, Path(path))


Drawn = Sheet | Curve


def _saved(drawn: Drawn, path: Path) -> Path:
    from unfog.files import write_bytes

    check_place(path, drawn.SUFFIXES)
    data = drawn.data(path.suffix.lower())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {path.parent} cannot be made ({error.strerror}); choose another place") from None
    write_bytes(path, data)
    return path


def check_place(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse, before any work, a file of the wrong kind, one that cannot be written, and one that is no plot of ours."""
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise UserError(f"--out: {path} does not end in {' or '.join(suffixes)}; give such a name")
    if suffix in (".png", ".pdf") and len(suffixes) > 1:
        from unfog.plots.curves import check_matplotlib

        check_matplotlib(suffix)
    place = Path(os.path.abspath(path)).parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"--out: {place} is no folder that may be written to; choose another place")
    if os.path.lexists(path) and not _ours(path):
        raise UserError(f"--out: {path} exists and is no plot of unfog's; choose another name")


def _ours(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size < 1 << 28 and MARK.encode() in path.read_bytes()
    except OSError:
        return False
