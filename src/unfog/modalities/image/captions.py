"""Captions composed from a record's fields: name, tags, main colours, style, background; long, short and in between.

Long descriptive captions teach more than any trick of architecture, and short ones are what people type, so training
mixes both (Photoroom PRX part 2 measured the first half of that).
"""

from __future__ import annotations

import numpy as np

from unfog.modalities.image.data import Record

STYLE_WORDS = {
    "noto": "noto",
    "twemoji": "flat twemoji",
    "openmoji": "outlined openmoji",
    "fluent-3d": "3D render",
    "fluent-flat": "fluent flat",
}


def caption(record: Record) -> str:
    """The one long caption of a record: name, tags that the name does not say, main colours."""
    tags = [t for t in record.tags if t not in record.name][:4]
    parts = [record.name, ", ".join(tags), " and ".join(record.colors)]
    return ", ".join(p for p in parts if p)


def captions(record: Record, rng: np.random.Generator) -> list[str]:
    """Four captions of one picture, shortest first: the name; with its colour; with tags; everything with the style."""
    if not record.name:
        return [record.text] * 4  # a user's own sentence is left as it is
    name = record.name
    tags = [t for t in record.tags if t not in name]
    some = list(rng.permutation(tags)[:3]) if tags else []
    colours = " and ".join(record.colors)
    style = STYLE_WORDS.get(record.style, record.style)
    full = [f"{style} emoji of {name}" if style else name, ", ".join(some), colours, "transparent background"]
    middle = [name, ", ".join(some)] if some else [name, colours]
    short = f"{record.colors[0]} {name}" if record.colors and rng.random() < 0.5 else f"{_article(name)} {name}"
    return [name, short, ", ".join(p for p in middle if p), ", ".join(p for p in full if p)]


def _article(name: str) -> str:
    return "an" if name[:1] in "aeiou" else "a"
