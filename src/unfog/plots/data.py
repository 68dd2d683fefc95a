"""Pictures of the data that a model was trained on, or of other data: named splits, some pictures of each, one a concept."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np

from unfog import data
from unfog.errors import UserError
from unfog.evaluation.samples import data_at
from unfog.modalities.image.data import PictureSet
from unfog.model import CARD, Model

HELD = ("heldout_pair", "heldout_concept")


def pictures_of(name: str | None, model: Model | None) -> PictureSet:
    """The data of this name or place, or those that the model names as its own, or emoji-64. Raises UserError."""
    if name is None and model is not None:
        source = str(model.card.get("training", {}).get("data", ""))
        try:
            return PictureSet.open(Path(source) if Path(source).exists() else data.path(source))
        except UserError:
            raise UserError(f"data: those of {model.folder / CARD}, {source!r}, are not here; give others") from None
    return data_at(name or "emoji-64")


def held_out(pictures: PictureSet) -> str | None:
    """The split that training watches its losses on; None where there is none."""
    return next((split for split in HELD if pictures.split(split)), None)


def some_of(pictures: PictureSet, split: str, count: int, seed: int = 0) -> PictureSet:
    """At most `count` records of a split, drawn by the seed, no two of one concept while there are others."""
    rows = np.random.default_rng(seed).permutation(pictures.split(split)).tolist()
    seen: dict[str, int] = {}
    first: list[int] = []
    more: list[int] = []
    for row in rows:
        record = pictures.records[row]
        concept = record.concept or record.file_name
        (more if concept in seen else first).append(row)
        seen[concept] = row
    few = copy.copy(pictures)
    few.records = [pictures.records[row] for row in [*first, *more][:count]]
    return few
