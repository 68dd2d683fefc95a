"""Build the emoji of emoji-64 at 128x128: the same concepts, styles, captions and splits, drawn anew from vectors.

    python tools/data/emoji_128.py --cache CACHE --out data/emoji-128.zip
    python tools/data/emoji_128.py --cache CACHE --out src/unfog/data/emoji-128-heldout.zip --held-out

Noto, Twemoji, OpenMoji and Fluent flat are vectors, Fluent 3D are 256x256 pictures. What is built follows the metadata of the
shipped emoji-64.zip; a picture that a package has no vector of is left out. Needs what tools/data/emoji.py needs.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from emoji import PACKAGES, from_svg, key_of, members, shrink
from packages import NPM, fetch, lossless, metadata, write_zip
from PIL import Image

import unfog.data
from unfog.modalities.image.captions import caption
from unfog.modalities.image.colours import main_colours
from unfog.modalities.image.data import Record

SIZE = 128
VECTORS = {
    "noto": (
        "@iconify-json/noto@1.2.9",
        "iconify-json-noto-1.2.9.tgz",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "twemoji": (
        "@iconify-json/twemoji@1.2.5",
        "iconify-json-twemoji-1.2.5.tgz",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "fluent-flat": PACKAGES["fluent-flat"],
    "openmoji": PACKAGES["openmoji"],
    "fluent-3d": PACKAGES["fluent-3d"],
}
Draw = Callable[[str], np.ndarray | None]  # concept -> picture


def icons(path: Path) -> Draw:
    """Of an archive of @iconify-json: every vector that a code point names."""
    with tarfile.open(path) as tar:

        def read(name: str) -> dict:
            handle = tar.extractfile(f"package/{name}")
            assert handle is not None
            return json.load(handle)

        whole, chars = read("icons.json"), {key_of(code): name for code, name in read("chars.json").items()}

    def draw(concept: str) -> np.ndarray | None:
        name = chars.get(concept)
        parent = whole.get("aliases", {}).get(name, {}).get("parent", name)
        if parent not in whole["icons"]:
            return None
        icon = whole["icons"][parent]
        width, height = (icon.get(side, whole.get(side, 32)) for side in ("width", "height"))
        return from_svg(f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                        f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>', SIZE, 2)  # fmt: skip

    return draw


def files_of(path: Path, prefix: str, suffix: str, made: Callable[[bytes], np.ndarray]) -> Draw:
    """Of an archive with a file for each code point."""
    found = members(path, prefix, suffix)
    return lambda concept: made(found[concept]) if concept in found else None


def rescaled(svg: bytes) -> np.ndarray:
    # a size in pixels of its own would win over the wanted one
    return from_svg(re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"', r"\1", svg.decode()), SIZE, 2)


def build(cache: Path, out: Path, held_out: bool) -> None:
    paths = fetch(cache, NPM, VECTORS)
    draw = {name: icons(paths[name]) for name in ("noto", "twemoji", "fluent-flat")}
    draw["openmoji"] = files_of(paths["openmoji"], "color/svg/", ".svg", rescaled)
    draw["fluent-3d"] = files_of(paths["fluent-3d"], "assets/", ".webp", lambda b: shrink(Image.open(io.BytesIO(b)), SIZE))
    with zipfile.ZipFile(unfog.data.path("emoji-64")) as archive:
        known = [json.loads(line) for line in archive.read("metadata.jsonl").decode().splitlines()]
    records, missing = [], Counter[str]()

    def files() -> Iterator[tuple[str, bytes]]:
        for record in known:
            if held_out and record["split"] == "train":
                continue
            picture = draw[record["style"]](record["concept"])
            if picture is None:
                missing[record["style"]] += 1
                continue
            record["colors"] = main_colours(picture)
            record["text"] = caption(Record(**{k: v for k, v in record.items() if k != "text"}))
            records.append(record)
            yield record["file_name"], lossless(Image.fromarray(picture))
        yield metadata(records)

    written = write_zip(out, files(), stored=(".webp", ".jsonl"))
    print(f"{out}: {len(records)} pictures, {dict(Counter(r['split'] for r in records))}, not there: {dict(missing)}, {written}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the downloaded packages")
    parser.add_argument("--out", type=Path, default=Path("data/emoji-128.zip"))
    parser.add_argument("--held-out", action="store_true", help="the held-out pictures alone")
    given = parser.parse_args()
    build(given.cache, given.out, given.held_out)
