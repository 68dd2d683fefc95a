"""Frames of several shapes but about one area, so that pictures need not be square: aspect-ratio buckets.

A batch is of one frame. Source of the idea: NovelAI 2022, "Aspect ratio bucketing".
"""

from __future__ import annotations

import inspect
import math
from functools import cache

import numpy as np

from unfog.training.recipe import Recipe

Frame = tuple[int, int]  # width, height in pixels
ASPECTS = (1, 5 / 4, 4 / 3, 3 / 2, 16 / 9, 2)  # and their inverses: what screens, films and papers have
FEWEST = 4  # a frame is used where its pictures fill a quarter of a batch: else a batch would show one picture often


def multiple(recipe: Recipe) -> int:
    """What both sides must be divisible by, by the recipe's network and its settings."""
    from unfog.networks.dit import DiT
    from unfog.networks.unet import UNet

    network = {"unet": UNet, "dit": DiT}[recipe.network]
    own = {key: p.default for key, p in inspect.signature(network).parameters.items()} | recipe.settings
    return own["patch"] if recipe.network == "dit" else own["unshuffle"] * 2 ** (len(own["widths"]) - 1)


@cache
def frames(size: int, step: int) -> tuple[Frame, ...]:
    """Frames with about size² pixels from 1:2 to 2:1, sides multiples of `step`, the narrowest first."""
    sides = range(step, 2 * size + 1, step)
    wide = [(w, h) for w in sides for h in sides if h <= w <= 2 * h]
    found = set()
    for aspect in ASPECTS:
        w, h = min(wide, key=lambda f: abs(math.log(f[0] / f[1] / aspect)) + abs(math.log(f[0] * f[1] / size**2)))
        found |= {(w, h), (h, w)}
    return tuple(sorted(found, key=lambda f: f[0] / f[1]))


def nearest(frame: Frame, known: list[Frame]) -> int:
    """Which of the known frames is nearest in shape."""
    shape = math.log(frame[0] / frame[1])
    return min(range(len(known)), key=lambda i: abs(math.log(known[i][0] / known[i][1]) - shape))


def used_frames(sizes: list[Frame], recipe: Recipe) -> list[Frame]:
    """The frames in which enough of the pictures of these sizes lie; one at least."""
    known = list(frames(recipe.size, multiple(recipe)))
    counts = np.bincount([nearest(size, known) for size in sizes], minlength=len(known))
    enough = [i for i, count in enumerate(counts) if count * FEWEST >= recipe.batch]
    return [known[i] for i in enough or [int(counts.argmax())]]


def bucketed(members: list[np.ndarray], batch: int, seed: int, index: int) -> np.ndarray:
    """The pictures of batch `index`, (B,), all of one bucket: a function of its arguments only.

    In each round through a bucket each of its pictures comes once; what is too little for a batch begins with the next
    round, so that none is left out and none comes more often. Which bucket is next is drawn by (seed, epoch).
    """
    counts = [len(m) for m in members]

    def before(epoch: int) -> int:
        return sum(epoch * n // batch for n in counts)

    epoch = index * batch // sum(counts)
    while before(epoch + 1) <= index:
        epoch += 1
    there = [(b, k) for b, n in enumerate(counts) for k in range(epoch * n // batch, (epoch + 1) * n // batch)]
    bucket, number = there[np.random.default_rng([seed, epoch, 3]).permutation(len(there))[index - before(epoch)]]
    rounds, places = np.divmod(np.arange(number * batch, (number + 1) * batch), counts[bucket])
    orders = {int(r): np.random.default_rng([seed, int(r), 4, bucket]).permutation(counts[bucket]) for r in np.unique(rounds)}
    return members[bucket][[orders[int(r)][p] for r, p in zip(rounds, places, strict=True)]]
