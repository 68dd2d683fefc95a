"""Build the outlines of OpenMoji: the black drawing that each colour picture of the style was filled from, 64x64, as one zip.

    python tools/data/lineart.py --cache CACHE --out src/unfog/data/emoji-64-lines.zip

OpenMoji holds 4,495 pairs of a black and a colour SVG, exact to the pixel; kept are those whose colour picture is in emoji-64,
under the same file names, grey, black on white. Needs what emoji.py needs. Licence: CC BY-SA 4.0 (NOTICE).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from emoji import PACKAGES, SKIN_TONES, from_svg, members
from packages import NPM, fetch, lossless, run, write_zip
from PIL import Image

import unfog.data
from unfog.modalities.image.data import PictureSet


def inked(svg: str) -> Image.Image:
    """Black on white."""
    rgba = from_svg(svg).astype(np.float32) / 255
    shade = rgba[..., :3].mean(-1) * rgba[..., 3] + 1 - rgba[..., 3]
    return Image.fromarray((shade * 255).round().astype(np.uint8))


def build(cache: Path, out: Path) -> None:
    paths = fetch(cache, NPM, {"openmoji": PACKAGES["openmoji"]})
    black = members(paths["openmoji"], "black/svg/", ".svg")
    known = [record.file_name for record in PictureSet.open(unfog.data.path("emoji-64")).records if record.style == "openmoji"]
    every = sum(not SKIN_TONES & set(key.split("-")) for key in black)

    def files() -> Iterator[tuple[str, bytes]]:
        for name in known:
            svg = black.get(Path(name).stem)
            if svg is not None:
                yield name, lossless(inked(svg.decode()))

    written = write_zip(out, files(), stored=(".webp",))
    print(f"{out}: outlines of {len(known)} pictures ({len(black)} in the package, {every} without skin tones), {written}")


if __name__ == "__main__":
    run(build, __doc__, "src/unfog/data/emoji-64-lines.zip")
