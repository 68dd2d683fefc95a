"""The gate's look at items that are no pictures: their range in model space, copies among them, what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from unfog.training.corpus import Corpus
from unfog.training.gate_scene import Finding, Scene, error, warning

LOOKED_AT = 1024
EXACT = 0.2  # share of copies from which on they are told


def _first(corpus: Corpus, count: int = LOOKED_AT) -> tuple[Tensor, dict[str, Tensor]]:
    return corpus.known(np.arange(min(corpus.plain, count)))


def encoded(scene: Scene) -> Iterator[Finding]:
    """x0 finite, about zero mean and unit variance where it is data."""
    x0, cond = _first(scene.corpus, 256)
    mask = cond.get("mask")
    if mask is not None:
        x0 = x0[mask.reshape(*mask.shape, *(1,) * (x0.ndim - mask.ndim)).expand(x0.shape)]
    if not torch.isfinite(x0).all():
        yield error("finite", "data: encoded items hold NaN or infinity; mend the data, or the kind's encode")
        return
    mean, std = float(x0.mean()), float(x0.std())
    if not 0.4 < std < 2.2 or abs(mean) > 1.2:
        far = not 0.1 < std < 8 or abs(mean) > 4
        yield (error if far else warning)(
            "range", f"data: in model space items have mean {mean:.2g} and deviation {std:.2g}, not 0 and 1; mend the kind's fit"
        )


def repeated(scene: Scene) -> Iterator[Finding]:
    """The same item again, and items held out that are learned from."""
    seen, held = (_digests(corpus) for corpus in (scene.corpus, scene.held))
    copies = 1 - len(set(seen)) / len(seen)
    if len(set(seen)) == 1 and len(seen) > 1:
        yield error("duplicates", f"data: all {len(seen)} items are the same; give others")
    elif copies > EXACT:
        yield warning("duplicates", f"data: {copies:.0%} of the items are copies of another and learned by heart; remove them")
    both = sum(d in set(seen) for d in held) if scene.held is not scene.corpus else 0
    if both > 0.01 * len(held):
        told = f"data: {both} of {len(held)} held-out items are trained on too, so that the held-out loss flatters"
        yield (error if both > 0.5 * len(held) else warning)("held out", f"{told}; remove them from one of the splits")


def _digests(corpus: Corpus) -> list[bytes]:
    """Of each item, what it is and what it is asked for by."""
    x0, cond = _first(corpus)
    rows = torch.cat([v.reshape(len(v), -1).double().cpu() for v in (x0, *cond.values())], 1).numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
