"""Copies among samples: how many lie nearer to a training picture than all but one in a hundred real unseen pictures do.

What the detector finds of copies planted on purpose stands beside it: a share of 0 excludes what it finds, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unfog.evaluation.copies import copy_threshold, lower_quantile, nearest, planted, thumbnails
from unfog.evaluation.report import Beside, Figure, Measure, rate
from unfog.evaluation.samples import ALL, SIDE, Samples
from unfog.modalities.image.data import PictureSet

MOST_COPIES = 500  # samples whose nearest training picture is looked for
PLANTED = 200  # imperfect copies of training pictures, to see what a threshold finds


def memory(samples: Samples, data: PictureSet, concepts: Sequence[str], seed: int) -> list[Measure]:
    """Copies among the samples of a split whose real pictures the model has not seen, where the data has one."""
    train = data.split("train") or list(range(len(data)))
    pictures = np.stack([data.load(row, SIDE) for row in train])
    known, known_concepts = thumbnails(pictures), [concepts[row] for row in train]
    split = next((s for s in ("heldout_pair", "heldout_concept") if (samples.splits == s).any()), ALL)
    places = samples.of(split)[:MOST_COPIES]
    made, _ = nearest(thumbnails(_even(samples.pictures[places])), known)
    drawn = np.random.default_rng(seed).permutation(len(train))[:PLANTED]
    noisy, soft = (nearest(thumbnails(part), known)[0] for part in planted(pictures[drawn], seed))
    thresholds = {"twins": copy_threshold(known, known_concepts, known, known_concepts, seed=seed)}
    held = [row for row, record in enumerate(data.records) if record.split != "train"]
    unseen = np.random.default_rng(seed).permutation(held)[:MOST_COPIES].tolist()
    real: NDArray[np.float32] | None = None
    if unseen:
        real, _ = nearest(thumbnails(np.stack([data.load(row, SIDE) for row in unseen])), known)
        thresholds = {"unseen": lower_quantile(real), **thresholds}
    clusters = [concepts[samples.rows[i]] if samples.rows[i] >= 0 else f"sample {i}" for i in places]
    rows = []
    for name, threshold in thresholds.items():
        beside = []
        if real is not None:
            beside = [Beside(name="real, held out", figure=rate(real < threshold, [concepts[r] for r in unseen]))]
        planted_concepts = [known_concepts[i] for i in drawn]
        beside += [Beside(name=f"found of planted copies, {kind}", figure=rate(found < threshold, planted_concepts))
                   for kind, found in (("noisy", noisy), ("softened", soft))]  # fmt: skip
        rows.append(Measure(group="memory", name=f"copies ({name})", of=split, figure=rate(made < threshold, clusters), unit="%",
                            better="lower", beside=beside))  # fmt: skip
    beside = [] if real is None else [Beside(name="real, held out", figure=_median(real))]
    rows.append(Measure(group="memory", name="distance to the nearest training picture", of=split, figure=_median(made),
                        beside=beside, note="median"))  # fmt: skip
    return rows


def _median(distance: NDArray[np.float32]) -> Figure:
    return Figure(value=float(np.median(distance)), n=len(distance))


def _even(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same pictures at 64×64 where their side is no multiple of 32, which the copy detector needs."""
    if pictures.shape[1] % 32 == 0 and pictures.shape[2] % 32 == 0:
        return pictures
    from PIL import Image

    # Pillow resizes RGBA through premultiplied alpha.
    return np.stack([np.asarray(Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BOX)) for p in pictures])
