"""Build the emoji data set: captioned 64x64 RGBA pictures in five styles, as one zip with a `metadata.jsonl`.

    python tools/data/emoji.py --cache CACHE --out src/unfog/data/emoji-64.zip

Needs `npm` (only to fetch the pinned packages, whose sha256 is checked) and the extra `unfog[data]` (resvg-py).
Licences of the art are listed in NOTICE. Art of Apple, Facebook and JoyPixels is never read.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from packages import NPM, fetch, lossless, metadata, run, write_zip
from PIL import Image

from unfog.modalities.image.captions import caption
from unfog.modalities.image.colours import main_colours
from unfog.modalities.image.data import Record

SIZE = 64
# package, file that `npm pack` writes, sha256
PACKAGES = {
    "noto": (
        "emoji-datasource-google@16.0.0",
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "twemoji": (
        "emoji-datasource-twitter@16.0.0",
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
    "openmoji": ("openmoji@17.0.0", "openmoji-17.0.0.tgz", "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68"),
    "fluent-3d": (
        "@lobehub/fluent-emoji-3d@1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "fluent-flat": (
        "@iconify-json/fluent-emoji-flat@1.2.6",
        "iconify-json-fluent-emoji-flat-1.2.6.tgz",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "names": (
        "emojibase-data@17.0.0",
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
}
STYLES = ("noto", "twemoji", "openmoji", "fluent-3d", "fluent-flat")
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
GROUPS = ["smileys-emotion", "people-body", "component", "animals-nature", "food-drink", "travel-places",
          "activities", "objects", "symbols", "flags"]  # fmt: skip
HELD_OUT = 0.05
NEAR_DUPLICATE = 0.03  # RMS over premultiplied RGBA in [0, 1] at 32x32; looked at: below it only twins are found


def members(path: Path, prefix: str, suffix: str) -> dict[str, bytes]:
    """Files below `package/<prefix>` of an npm archive, by stem (lower case, without the variation selector)."""
    files = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = member.name.removeprefix("package/")
            if member.isfile() and name.startswith(prefix) and name.endswith(suffix):
                handle = tar.extractfile(member)
                assert handle is not None
                files[key_of(Path(name).stem)] = handle.read()
    return files


def key_of(codepoints: str) -> str:
    """One key for a concept in every package: lower-case code points without fe0f, at least four digits each."""
    return "-".join(p.zfill(4) for p in codepoints.lower().replace("_", "-").split("-") if p != "fe0f")


def shrink(image: Image.Image, size: int = SIZE) -> np.ndarray:
    """Any RGBA picture to (size, size, 4) uint8, resized with premultiplied colour so that edges keep theirs."""
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    if rgba.shape[:2] != (size, size):
        planes = [Image.fromarray(rgba[..., c]).resize((size, size), Image.Resampling.BOX
                  if image.width % size == 0 else Image.Resampling.LANCZOS) for c in range(4)]  # fmt: skip
        rgba = np.clip(np.stack([np.asarray(p) for p in planes], -1), 0, 1)
    alpha = rgba[..., 3:]
    colour = np.where(alpha > 0, rgba[..., :3] / np.maximum(alpha, 1 / 255), 0)
    out = np.concatenate([colour, alpha], -1)
    out = np.round(np.clip(out, 0, 1) * 255).astype(np.uint8)
    out[out[..., 3] == 0] = 0
    return out


def from_svg(svg: str, size: int = SIZE, finer: int = 4) -> np.ndarray:
    import resvg_py

    # supersampling, then a box filter: sharper and more even than rendering thin strokes at 64 px
    png = resvg_py.svg_to_bytes(svg_string=svg, width=finer * size, height=finer * size)
    return shrink(Image.open(io.BytesIO(bytes(png))), size)


def read_styles(paths: dict[str, Path]) -> dict[str, dict[str, np.ndarray]]:
    """style -> concept key -> picture, skin-tone variants left out."""

    def plain(files: dict[str, bytes]) -> dict[str, bytes]:
        return {k: v for k, v in files.items() if not SKIN_TONES & set(k.split("-"))}

    def opened(files: dict[str, bytes]) -> dict[str, np.ndarray]:
        return {k: shrink(Image.open(io.BytesIO(v))) for k, v in plain(files).items()}

    pictures = {
        "noto": opened(members(paths["noto"], "img/google/64/", ".png")),
        "twemoji": opened(members(paths["twemoji"], "img/twitter/64/", ".png")),
        "openmoji": {k: from_svg(v.decode()) for k, v in plain(members(paths["openmoji"], "color/svg/", ".svg")).items()},
        "fluent-3d": opened(members(paths["fluent-3d"], "assets/", ".webp")),
    }
    with tarfile.open(paths["fluent-flat"]) as tar:

        def read(name: str) -> dict:
            handle = tar.extractfile(f"package/{name}")
            assert handle is not None
            return json.load(handle)

        icons, chars = read("icons.json"), read("chars.json")
    flat = {}
    for code, name in chars.items():
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        key = key_of(code)
        if name in icons["icons"] and not SKIN_TONES & set(key.split("-")):
            body = icons["icons"][name]["body"]
            flat[key] = from_svg(f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                                 f'viewBox="0 0 32 32">{body}</svg>')  # fmt: skip
    pictures["fluent-flat"] = flat
    return pictures


def read_names(path: Path) -> dict[str, dict]:
    with tarfile.open(path) as tar:
        handle = tar.extractfile("package/en/data.json")
        assert handle is not None
        entries = json.load(handle)
    return {
        key_of(e["hexcode"]): {
            "name": e["label"].replace("⊛ ", "").lower(),
            "tags": [t.lower() for t in e.get("tags", [])],
            "category": GROUPS[e["group"]] if "group" in e else "symbols",
        }
        for e in entries
    }


def small(picture: np.ndarray) -> np.ndarray:
    rgba = picture.astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba.reshape(32, 2, 32, 2, 4).mean((1, 3)).ravel()


def twins(pictures: dict[str, dict[str, np.ndarray]], concepts: list[str]) -> list[tuple[str, str, str]]:
    """(style, concept, concept) pairs whose pictures are near-duplicates, e.g. the flags of Norway and Svalbard."""
    found = []
    for style in STYLES:
        keys = [c for c in concepts if c in pictures[style]]
        x = np.stack([small(pictures[style][k]) for k in keys])
        squared = (x**2).sum(1)
        distance = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * x @ x.T, 0) / x.shape[1])
        for i, j in np.argwhere(np.triu(distance < NEAR_DUPLICATE, 1)):
            found.append((style, keys[i], keys[j]))
    return found


def split(concepts: list[str], pairs: list[tuple[str, str]], alike: list[tuple[str, str, str]]) -> tuple[set, set]:
    """Concepts held out in every style, and (concept, style) pairs held out; twins always fall on the same side."""
    parent = {c: c for c in concepts}

    def root(c: str) -> str:
        while parent[c] != c:
            c = parent[c]
        return c

    for _, a, b in alike:
        parent[root(b)] = root(a)
    groups = defaultdict(list)
    for c in concepts:
        groups[root(c)].append(c)
    rng = np.random.default_rng(20260101)
    order = rng.permutation(sorted(groups))
    held: set[str] = set()
    for g in order:
        # a large family (a row of look-alike flags) would fill the held-out set with one kind of picture
        if len(groups[g]) <= 3 and len(held) < HELD_OUT * len(concepts):
            held |= set(groups[g])
    # a pair whose twin stays in training would be seen after all
    twinned = {(c, s) for s, a, b in alike for c in (a, b)}
    free = [p for p in pairs if p[0] not in held and p not in twinned]
    chosen = rng.permutation(len(free))[: round(HELD_OUT * len(pairs))]
    return held, {free[i] for i in chosen}


def build(cache: Path, out: Path) -> None:
    paths = fetch(cache, NPM, PACKAGES)
    pictures, names = read_styles(paths), read_names(paths["names"])
    concepts = sorted(set(names).intersection(*(pictures[s] for s in STYLES[:4])))
    pairs = [(c, s) for s in STYLES for c in concepts if c in pictures[s]]
    alike = twins(pictures, concepts)
    held, held_pairs = split(concepts, pairs, alike)
    twin_of = defaultdict(set)
    for style, a, b in alike:
        twin_of[a, style].add(b)
        twin_of[b, style].add(a)
    records = []

    def files() -> Iterator[tuple[str, bytes]]:
        for concept, style in pairs:
            picture = pictures[style][concept]
            record = {"file_name": f"{style}/{concept}.webp", "style": style, "concept": concept,
                      **names[concept], "colors": main_colours(picture),
                      "split": "heldout_concept" if concept in held else "heldout_pair" if (concept, style) in held_pairs
                      else "train"}  # fmt: skip
            if twin_of[concept, style]:
                record["near_duplicates"] = sorted(twin_of[concept, style])
            record = {"file_name": record["file_name"], "text": caption(Record(**record)), **record}
            records.append(record)
            yield record["file_name"], lossless(Image.fromarray(picture))
        yield metadata(records)

    written = write_zip(out, files(), stored=(".webp", ".jsonl"))
    print(f"{out}: {len(records)} pictures of {len(concepts)} concepts, {dict(Counter(r['split'] for r in records))}, "
          f"{len(alike)} near-duplicate pairs, {written}")  # fmt: skip


if __name__ == "__main__":
    run(build, __doc__, "src/unfog/data/emoji-64.zip")
