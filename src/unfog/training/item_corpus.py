"""Items of any kind to learn from: what `modalities/contract.py` promises, made a `Corpus`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.errors import UserError
from unfog.modalities.contract import Items, Modality, Space, without
from unfog.training.corpus import Asked, Cond, Told
from unfog.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES = 16  # on a sheet


@dataclass
class ItemCorpus:
    """One split of a data set; items are encoded as they are wanted, with random crops and turns of their own."""

    kind: Modality
    space: Space
    raw: Sequence[Any]
    prompts: list[str]
    names: list[str]
    device: str = "cpu"

    @property
    def plain(self) -> int:
        return len(self.raw)

    @property
    def styles(self) -> list[str]:
        return []

    def to(self, device: str) -> ItemCorpus:
        """Batches are made on the host and moved."""
        self.device = device
        return self

    def chosen(self, recipe: Recipe, index: int) -> NDArray[np.int64]:
        """Which items batch `index` is made of: in each epoch each once, in an order of seed and epoch."""
        places = np.arange(index * recipe.batch, (index + 1) * recipe.batch)
        epochs = places // self.plain
        orders = {int(e): np.random.default_rng([recipe.seed, int(e)]).permutation(self.plain) for e in np.unique(epochs)}
        return np.array([orders[int(e)][p % self.plain] for e, p in zip(epochs, places, strict=True)])

    def batch(self, recipe: Recipe, index: int, rows: slice = slice(None)) -> tuple[Tensor, Cond]:
        """x0 and cond of these rows: item k of batch i is cut, turned and told by generators of (seed, i, k) alone."""
        chosen = self.chosen(recipe, index)
        places = range(recipe.batch)[rows]
        rngs = [np.random.default_rng([recipe.seed, index, 2, k]) for k in places]
        nothing = np.random.default_rng([recipe.seed, index, 1]).random(recipe.batch) < recipe.drop_text
        seeds = [int(rng.integers(2**62)) for rng in rngs]
        prompts = [None if nothing[k] else self.prompts[chosen[k]] for k in places]
        x0, own = self.space.encode([self.raw[chosen[k]] for k in places], rngs)
        return self._moved(x0, {**self.space.ask(prompts, seeds), **own})

    def known(self, chosen: NDArray[np.int64]) -> tuple[Tensor, Cond]:
        """x0 and cond of these items as they stand."""
        x0, own = self.space.encode([self.raw[i] for i in chosen])
        asked = self.space.ask([self.prompts[i] for i in chosen], [int(i) for i in chosen])
        return self._moved(x0, {**asked, **own})

    def alike(self, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """All: every x0 of a model has one shape."""
        return [np.arange(len(chosen))]

    def asked(self, recipe: Recipe, rows: int) -> tuple[list[Asked], list[str]]:
        """SAMPLES prompts of the data, in an order by a fixed seed."""
        count = min(SAMPLES, max(2 * rows, 1))
        places = np.arange(count)
        order = np.resize(np.random.default_rng(1).permutation(self.plain), count)
        labels = [self.prompts[i] for i in order]
        cond = self.space.ask(labels, places.tolist())
        _, cond = self._moved(torch.zeros(0), cond)
        _, nothing = self._moved(torch.zeros(0), self.space.ask([None] * count, places.tolist()))
        return [Asked(places, cond, without(cond, nothing), tuple(self.space.shape))], labels

    def decode(self, x0: Tensor, cond: Cond) -> Sequence[Any]:
        """Items of x0."""
        return self.space.decode(x0, cond)

    def sheet(self, items: Sequence[Any], labels: list[str]) -> Image:
        """Samples on one picture."""
        return self.kind.render(items, labels)

    def changed(self, cond: Cond) -> tuple[Cond, list[Told]]:
        """What prompts say, and nothing said; not what stands for the items themselves (a mask, a past)."""
        count = len(next(iter(cond.values()))) if cond else 0
        said = [p for p in dict.fromkeys(self.prompts) if p][:2]
        if not count or not said:
            return cond, []
        seeds = list(range(count))
        first, other = (self._moved(torch.zeros(0), self.space.ask([p] * count, seeds))[1] for p in (said[0], None))
        base = {**cond, **{k: v for k, v in first.items() if k != "mask"}}
        found = [(f"condition {key!r}", {**base, key: other[key]}, "pass it on to the network")
                 for key in other if key != "mask" and not torch.equal(base[key], other[key])]  # fmt: skip
        return base, found

    def network_settings(self, recipe: Recipe) -> dict[str, Any]:
        """What the space decides, then the recipe's own."""
        return {**self.space.network(), **recipe.settings}

    def card(self, recipe: Recipe) -> dict[str, Any]:
        """The space, for `Modality.space` to read."""
        return {"space": self.space.card(), "styles": []}

    def _moved(self, x0: Tensor, cond: Cond) -> tuple[Tensor, Cond]:
        return x0.to(self.device), {key: value.to(self.device) for key, value in cond.items()}


def item_corpora(kind: Modality, items: Items, space: Space) -> tuple[ItemCorpus, ItemCorpus]:
    """What to learn from, and what to watch with: the items held out, or, where there are none, the same.

    Raises UserError where nothing is there to learn from, or an item does not fit the space.
    """

    def part(places: list[int]) -> ItemCorpus:
        return ItemCorpus(kind, space, [items.raw[i] for i in places], [items.prompts[i] for i in places],
                          [items.names[i] for i in places])  # fmt: skip

    trained, held = items.split("train"), items.split("heldout")
    if not trained:
        raise UserError(f"{items.path}: no item of split 'train'; put some there")
    x0, _ = space.encode([items.raw[trained[0]]])
    if tuple(x0.shape[1:]) != tuple(space.shape) or not math.prod(space.shape):
        raise UserError(f"{items.path}: an item becomes {tuple(x0.shape[1:])}, not {tuple(space.shape)}; mend the kind's encode")
    corpus = part(trained)
    return corpus, part(held) if held else corpus
