"""How much there is to learn from, and what reading it takes: pictures by a few of them, other items by all."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unfog.errors import UserError
from unfog.modalities import modality
from unfog.modalities.contract import Items
from unfog.modalities.image.captions import captions
from unfog.modalities.image.data import PictureSet
from unfog.model import Model
from unfog.networks.text import TOKENS, WIDTH, TextEncoder
from unfog.training.corpus import Corpus
from unfog.training.item_corpus import item_corpora
from unfog.training.latents import latent_states
from unfog.training.machine import Peak, resident
from unfog.training.picture_corpus import build_corpus
from unfog.training.recipe import Recipe
from unfog.training.watch import NEAR

SAMPLE, CAPTIONS = 128, 96  # pictures read and captions encoded to learn how fast that goes


@dataclass(frozen=True)
class Data:
    """A data set as measured on a few of its pictures."""

    corpus: Corpus  # of pictures a few, with text states that are some captions' own
    pictures: int  # in the whole set, trained on and held out
    captions: int
    seconds: float  # to read all, text states included
    bytes_kept: int  # all pictures and text states
    bytes_peak: int  # most that is held while they are read
    base: int  # bytes of the process without any


def measure_data(data: PictureSet | Items, recipe: Recipe, model: Model | None = None) -> Data:
    """What there is to learn from, and what reading it takes."""
    return _measure_items(data, recipe, model) if isinstance(data, Items) else _measure_pictures(data, recipe, model)


def _measure_items(items: Items, recipe: Recipe, model: Model | None) -> Data:
    """The items are at hand already; 128 of them, encoded, say how large they are in model space."""
    kind, base = modality(recipe.kind), resident()
    start = time.perf_counter()
    corpus, _ = item_corpora(kind, items, model.space if model else kind.fit(items, kind.options.model_validate(recipe.options)))
    x0, _ = corpus.known(np.arange(min(SAMPLE, corpus.plain)))
    kept = round(x0[0].numel() * x0.element_size() * min(corpus.plain, NEAR))  # what looking for copies holds
    return Data(corpus, corpus.plain, 0, time.perf_counter() - start, kept, 2 * kept, base)


def _measure_pictures(data: PictureSet, recipe: Recipe, model: Model | None) -> Data:
    """Read SAMPLE pictures and encode CAPTIONS captions, and reckon what all of them take."""
    base = resident()
    encoder = TextEncoder.load()
    trained = data.split("train")
    held_out = next((found for s in ("heldout_pair", "heldout_concept") if (found := data.split(s))), [])
    if not trained:
        raise UserError(f"{data.path}: no picture of split 'train'; put some there")
    few = copy.copy(data)
    few.records = [data.records[i] for i in np.unique(np.linspace(0, len(trained) - 1, SAMPLE).astype(int)).tolist()
                   for i in [trained[i]]]  # fmt: skip
    theirs: dict[str, Any] = {"styles": model.styles, "codec": model.codec} if model else {}
    start = time.perf_counter()
    with Peak() as peak:
        corpus = build_corpus(few, recipe, **theirs)
        latent_states(corpus, None)
    each = (time.perf_counter() - start) / corpus.plain
    count = len(trained) + len(held_out)
    rng = np.random.default_rng(0)
    lines = sorted({line for i in [*trained, *held_out] for line in captions(data.records[i], rng)} | {""})
    plain = {line for record in few.records for line in captions(record, rng)} | {""}
    recoloured = max(len(corpus.captions) - len(plain), 0) * len(trained) / corpus.plain if recipe.recolour else 0
    total = len(lines) + round(recoloured)
    chosen = [lines[i] for i in rng.permutation(len(lines))[:CAPTIONS]]
    encoder(chosen[:4])
    start = time.perf_counter()
    states, masks = encoder(chosen)
    rate = (time.perf_counter() - start) / len(chosen)
    index = torch.arange(len(corpus.captions)) % len(chosen)
    corpus.states, corpus.masks = states.half()[index], masks[index]
    state_bytes = total * TOKENS * (WIDTH * 2 + 1)
    kept = round(count * len(corpus.pictures) / corpus.plain) * recipe.size**2 * 4
    # text states are held twice while they are put together, and once more while they are written
    reading = max(round(peak.growth / corpus.plain * count), kept + 2 * state_bytes)
    base = max(resident() - sum(t.numel() * t.element_size() for t in (corpus.pictures, corpus.states)), base)
    return Data(corpus, count, total, each * count + rate * total, kept + state_bytes, reading, base)
