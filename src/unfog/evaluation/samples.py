"""Samples to be judged: made by a model for the captions of a data set, or found in a folder.

For each split of the data (captions seen in training, (concept, style) pairs unseen, concepts unseen) pictures are made
from the names alone, with the style given beside them, seeds first, first + 1, ... Two models asked with the same seed
get the same captions and seeds, so their pictures are pairs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unfog.errors import UserError

if TYPE_CHECKING:
    from unfog.modalities.image.data import PictureSet, Record

SPLITS = ("train", "heldout_pair", "heldout_concept")
SIDE = 64
ALL = "all"


class PictureModel(Protocol):
    """What is asked of a model."""

    name: str
    hash: str
    styles: list[str]
    defaults: dict[str, Any]
    card: dict[str, Any]

    def evaluations(self, sampler: str | None = None, steps: int | None = None, scale: float | None = None) -> int: ...

    def make(
        self,
        prompts: Sequence[str],
        styles: Sequence[str | None],
        seeds: Sequence[int],
        batch: int = 16,
        steps: int | None = None,
        scale: float | None = None,
        sampler: str | None = None,
    ) -> list[Any]: ...


@dataclass(frozen=True)
class Asked:
    """How a model is asked for pictures; None: as its own defaults say."""

    n: int
    seed: int = 0
    batch: int = 16
    sampler: str | None = None
    steps: int | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Samples:
    """Pictures (N, H, W, 4) straight RGBA uint8, the split of each, and the record of the data whose caption each was made
    for (-1: none, which a folder's may be)."""

    name: str
    hash: str
    pictures: NDArray[np.uint8]
    splits: NDArray[np.str_]
    rows: NDArray[np.int64]
    settings: dict[str, str]
    styles: Sequence[str] = ()
    seconds: float | None = None  # to make one
    evaluations: int | None = None  # of the network, for one
    pairs: Sequence[object] = field(default_factory=tuple)  # two samples of one name are alike in caption and seed

    def of(self, split: str) -> NDArray[np.int64]:
        """Places of one split, or of all."""
        return np.arange(len(self.splits)) if split == ALL else np.flatnonzero(self.splits == split)


def data_at(against: str | Path) -> PictureSet:
    """A shipped data set by its name, or what lies at a place. Raises UserError where there is nothing."""
    from unfog.data import path
    from unfog.modalities.image.data import PictureSet

    place = Path(against)
    return PictureSet.open(place if place.exists() or place.suffix or len(place.parts) > 1 else path(str(against)))


def caption(record: Record) -> str:
    """What a picture is asked for by: its name, else its text."""
    return (record.name or record.text).strip()


def made_by(model: PictureModel, data: PictureSet, asked: Asked) -> Samples:
    """Pictures for each split that the data set has, a split's records in an order drawn by the seed.

    Raises: UserError where the data has no split that is known, or n is too small for them.
    """
    splits = [split for split in SPLITS if data.split(split)]
    if not splits:
        raise UserError(f"{data.path}: no picture is in a split of {', '.join(SPLITS)}; leave `split` out or set it")
    if asked.n < len(splits):
        raise UserError(f"n: {asked.n} pictures cannot cover the {len(splits)} splits of the data; give {len(splits)} or more")
    rows: list[int] = []
    names: list[str] = []
    for k, split in enumerate(splits):
        count = asked.n // len(splits) + (k < asked.n % len(splits))
        order = np.random.default_rng([asked.seed, k]).permutation(data.split(split)).tolist()
        rows += [order[i % len(order)] for i in range(count)]
        names += [split] * count
    wanted = [data.records[row] for row in rows]
    seeds = list(range(asked.seed, asked.seed + asked.n))
    styles = [record.style if record.style in model.styles else None for record in wanted]
    start = time.perf_counter()
    made = np.stack(model.make([caption(record) for record in wanted], styles, seeds, batch=asked.batch, steps=asked.steps,
                               scale=asked.scale, sampler=asked.sampler))  # fmt: skip
    spent = (time.perf_counter() - start) / asked.n
    sampler = asked.sampler or model.defaults["sampler"]
    scale = model.defaults["scale"] if asked.scale is None else asked.scale
    settings = {
        "sampler": f"{sampler}, {asked.steps or model.defaults['steps']} steps, scale {scale:g}",
        "seeds": f"{seeds[0]} to {seeds[-1]}",
        "batch": str(asked.batch),
        "weights": _weights(model),
    }
    pairs = list(zip((caption(r) for r in wanted), (r.style for r in wanted), seeds, strict=True))
    return Samples(model.name, model.hash, made, np.array(names), np.array(rows), settings, model.styles, spent,
                   model.evaluations(asked.sampler, asked.steps, asked.scale), pairs)  # fmt: skip


def _weights(model: PictureModel) -> str:
    """Which weights a model folder holds: how long their average is."""
    training = model.card.get("training") or {}
    recipe = training.get("recipe") or {}
    if "ema" not in recipe:
        return "as given"
    if not training.get("averaged", True):
        return f"of step {training.get('steps', '?')}"
    return f"average of width {recipe['ema']:g} after step {training.get('steps', '?')}"


def found_in(folder: PictureSet, data: PictureSet, n: int | None = None) -> Samples:
    """The pictures of a folder as samples: those of unfog with the caption that stands in them, others with their text.

    n: at most so many, the first. Pictures of other sizes than the first one are brought to it. Raises UserError.
    """
    count = min(n or len(folder), len(folder))
    first = folder.load(0)
    side = max(first.shape[:2])
    pictures = np.stack([folder.load(i, (first.shape[1], first.shape[0])) for i in range(count)])
    place = {(caption(r), r.style): i for i, r in reversed(list(enumerate(data.records)))}
    name = {caption(r): i for i, r in reversed(list(enumerate(data.records)))}
    rows = []
    for i in range(count):
        record, told = folder.records[i], _told(folder, i)
        prompt, style = told or (caption(record), record.style)
        rows.append(place.get((prompt, style), name.get(prompt, -1)))
    return Samples(folder.path.name, folder_hash(folder, count), pictures, np.array([ALL] * count), np.array(rows),
                   {"made": "elsewhere", "size": f"{side}"}, data.styles)  # fmt: skip


def _told(folder: PictureSet, index: int) -> tuple[str, str] | None:
    """Prompt and style of a picture that unfog made, from its recipe."""
    from unfog.modalities.image.show import read_recipe

    path = folder.path / folder.records[index].file_name
    if not path.is_file():
        return None
    try:
        recipe = read_recipe(path)
    except UserError:
        return None
    prompt = recipe.get("prompt")
    return (prompt, recipe.get("style") or "") if isinstance(prompt, str) else None


def folder_hash(folder: PictureSet, count: int) -> str:
    """A short hash of the first `count` pictures' pixels."""
    import hashlib

    total = hashlib.sha256()
    for i in range(count):
        total.update(np.ascontiguousarray(folder.load(i)).tobytes())
    return total.hexdigest()[:16]
