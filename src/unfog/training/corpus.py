"""Everything a training step reads, held in memory: pictures as bytes, text states once a caption, an order by seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unfog.modalities.image.captions import captions
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.colours import main_colours, turn_hue
from unfog.modalities.image.data import PictureSet
from unfog.training.recipe import Recipe

Encode = Callable[[list[str]], tuple[Tensor, Tensor]]


@dataclass
class Corpus:
    """What a run trains on.

    pictures (N, S, S, 4) straight RGBA uint8, on the device that trains; classes (N,), where the number of styles means
    none; texts (N, K) caption numbers, of which 0 is the empty caption.
    """

    pictures: Tensor
    classes: np.ndarray
    texts: np.ndarray
    plain: int  # the first `plain` pictures are as found, the rest are recoloured
    captions: list[str]
    styles: list[str]
    codec: RGBACodec
    names: list[str]  # the file of each picture
    states: Tensor | None = None  # (captions, T, width) float16
    masks: Tensor | None = None  # (captions, T) bool

    def encode_captions(self, encode: Encode, chunk: int = 256) -> None:
        """Run the frozen text encoder once over every caption."""
        parts = [encode(self.captions[i : i + chunk]) for i in range(0, len(self.captions), chunk)]
        self.states = torch.cat([s.half() for s, _ in parts])
        self.masks = torch.cat([m for _, m in parts])

    def to(self, device: str) -> Corpus:
        """Move pictures and text states to a device, so that no step waits for a copy."""
        assert self.states is not None and self.masks is not None
        self.pictures, self.states, self.masks = self.pictures.to(device), self.states.to(device), self.masks.to(device)
        return self

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of one epoch over the plain pictures, a function of seed and epoch only."""
        return np.random.default_rng([seed, epoch]).permutation(self.plain)

    def chosen(self, recipe: Recipe, index: int) -> np.ndarray:
        """Which pictures batch `index` is made of, (B,)."""
        rng = np.random.default_rng([recipe.seed, index, 1])
        places = np.arange(index * recipe.batch, (index + 1) * recipe.batch)
        epochs = places // self.plain
        orders = {int(e): self.order(recipe.seed, int(e)) for e in np.unique(epochs)}
        chosen = np.array([orders[int(e)][p % self.plain] for e, p in zip(epochs, places, strict=True)])
        extra = len(self.pictures) - self.plain
        if extra:
            swap = rng.random(len(chosen)) < recipe.recolour
            chosen = np.where(swap, self.plain + rng.integers(extra, size=len(chosen)), chosen)
        return chosen

    def batch(self, recipe: Recipe, index: int, rows: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        """x0 and cond of these rows of batch `index`: a function of the recipe's seed and that only, so a resumed run is the
        same."""
        assert self.states is not None and self.masks is not None
        chosen, rng = self.chosen(recipe, index), np.random.default_rng([recipe.seed, index, 2])
        text = self.texts[chosen, rng.integers(self.texts.shape[1], size=len(chosen))]
        label = self.classes[chosen]
        # without text *and* style: the unconditional branch of guidance; without style alone: prompts that name none
        nothing = rng.random(len(chosen)) < recipe.drop_text
        text = np.where(nothing, 0, text)
        label = np.where(nothing | (rng.random(len(chosen)) < recipe.drop_style), len(self.styles), label)
        pictures = self.pictures[torch.from_numpy(chosen[rows]).to(self.pictures.device)]
        return self.codec.encode(pictures), self.cond(text[rows], label[rows])

    def cond(self, text: np.ndarray, label: np.ndarray) -> dict[str, Tensor]:
        """Conditions for caption numbers (B,) and style numbers (B,)."""
        assert self.states is not None and self.masks is not None
        index = torch.from_numpy(np.asarray(text)).to(self.states.device)
        cond = {"text": self.states[index].float(), "text_mask": self.masks[index]}
        if self.styles:
            cond["class"] = torch.from_numpy(np.asarray(label, np.int64)).to(self.states.device)
        return cond


def build_corpus(data: PictureSet, recipe: Recipe, split: str = "train", styles: list[str] | None = None,
                 codec: RGBACodec | None = None) -> Corpus:  # fmt: skip
    """Read one split of a data set; held-out splits are given the training set's styles and codec."""
    rng = np.random.default_rng([recipe.seed, 2])
    indices = data.split(split)
    known = styles if styles is not None else data.styles
    pictures = [data.load(i, recipe.size) for i in indices]
    lines = [captions(data.records[i], rng) for i in indices]
    names = [data.records[i].file_name for i in indices]
    labels = [known.index(s) if (s := data.records[i].style) in known else len(known) for i in indices]
    plain = len(pictures)
    if recipe.recolour and split == "train":
        for j in rng.permutation(plain)[: plain // 3]:
            record = data.records[indices[j]]
            turned = turn_hue(pictures[j], rng.uniform(0.15, 0.85))
            colours = main_colours(turned)
            if (record.name or record.text) and colours and colours != record.colors:
                pictures.append(turned)
                labels.append(labels[j])
                names.append(names[j])
                name = f"{colours[0]} {record.name or record.text}"
                lines.append([name, f"a {name}", *captions(record.model_copy(update={"colors": colours, "name": name}), rng)[2:]])
    numbers: dict[str, int] = {"": 0}
    texts = np.array([[numbers.setdefault(c, len(numbers)) for c in row] for row in lines])
    stacked = np.stack(pictures)
    codec = codec or RGBACodec.fit(stacked[:plain])
    return Corpus(torch.from_numpy(stacked), np.array(labels), texts, plain, list(numbers), list(known), codec, names)
