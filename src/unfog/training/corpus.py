"""Everything a training step reads, at hand: pictures as bytes, text states once a caption, an order by seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unfog.modalities.image.captions import captions
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.data import PictureSet
from unfog.training.buckets import Frame, bucketed
from unfog.training.pictures import Decoded
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
    frames: list[Frame] = field(default_factory=list)  # with buckets: (width, height) of each, and pictures are (N, pixels, 4)
    bucket: np.ndarray | None = None  # (N,) the frame of each picture
    mapped: bool = False  # pictures are in a file, and stay on the host

    def to(self, device: str) -> Corpus:
        """Move pictures and text states to a device, so that no step waits for a copy."""
        assert self.states is not None and self.masks is not None
        self.states, self.masks = self.states.to(device), self.masks.to(device)
        if not self.mapped:
            self.pictures = self.pictures.to(device)
        return self

    def alike(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Places in `chosen` of pictures of one frame each; all of them where there are no buckets."""
        if self.bucket is None:
            return [np.arange(len(chosen))]
        frames = self.bucket[chosen]
        return [np.flatnonzero(frames == b) for b in np.unique(frames)]

    def shape(self, chosen: np.ndarray, size: int) -> tuple[int, int]:
        """Height and width of these pictures, which are of one frame."""
        return (size, size) if self.bucket is None else self.frames[self.bucket[chosen[0]]][::-1]

    def pixels(self, chosen: np.ndarray) -> list[np.ndarray]:
        """These pictures as they were read, each (H, W, 4) straight RGBA uint8."""
        found = self.pictures[torch.from_numpy(chosen).to(self.pictures.device)].cpu().numpy()
        if self.bucket is None:
            return list(found)
        shapes = [self.frames[b] for b in self.bucket[chosen]]
        return [flat[: width * height].reshape(height, width, 4) for flat, (width, height) in zip(found, shapes, strict=True)]

    def x0(self, chosen: np.ndarray, frame: int | None = None) -> Tensor:
        """These pictures in model space, where the text states are; with buckets all of one frame."""
        assert self.states is not None
        pictures = self.pictures[torch.from_numpy(chosen).to(self.pictures.device)].to(self.states.device)
        if self.bucket is not None:
            width, height = self.frames[self.bucket[chosen[0]] if frame is None else frame]
            pictures = pictures[:, : width * height].reshape(len(chosen), height, width, 4)
        return self.codec.encode(pictures)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The order of one epoch over the plain pictures, a function of seed and epoch only."""
        return np.random.default_rng([seed, epoch]).permutation(self.plain)

    def chosen(self, recipe: Recipe, index: int) -> np.ndarray:
        """Which pictures batch `index` is made of, (B,)."""
        rng = np.random.default_rng([recipe.seed, index, 1])
        if self.bucket is not None:
            members = [np.flatnonzero(self.bucket[: self.plain] == b) for b in range(len(self.frames))]
            chosen = bucketed([m for m in members if len(m)], recipe.batch, recipe.seed, index)
            pool = self.plain + np.flatnonzero(self.bucket[self.plain :] == self.bucket[chosen[0]])
            if len(pool):
                swap = rng.random(len(chosen)) < recipe.recolour
                chosen = np.where(swap, pool[rng.integers(len(pool), size=len(chosen))], chosen)
            return chosen
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
        frame = None if self.bucket is None else int(self.bucket[chosen[0]])
        return self.x0(chosen[rows], frame), self.cond(text[rows], label[rows])

    def cond(self, text: np.ndarray, label: np.ndarray) -> dict[str, Tensor]:
        """Conditions for caption numbers (B,) and style numbers (B,)."""
        assert self.states is not None and self.masks is not None
        index = torch.from_numpy(np.asarray(text)).to(self.states.device)
        cond = {"text": self.states[index].float(), "text_mask": self.masks[index]}
        if self.styles:
            cond["class"] = torch.from_numpy(np.asarray(label, np.int64)).to(self.states.device)
        return cond


def build_corpus(
    data: PictureSet,
    recipe: Recipe,
    split: str = "train",
    styles: list[str] | None = None,
    codec: RGBACodec | None = None,
    out: Path | None = None,
    frames: list[Frame] | None = None,
) -> Corpus:
    """Read one split of a data set; held-out splits are given the training set's styles, codec and frames.

    out: the run's folder, for pictures that memory is too small for. Raises UserError where too many cannot be read.
    """
    rng = np.random.default_rng([recipe.seed, 2])
    found = Decoded(data, split, recipe, out, frames)
    records = found.records
    known = styles if styles is not None else data.styles
    lines = [captions(record, rng) for record in records]
    names = [record.file_name for record in records]
    labels = [known.index(s) if (s := record.style) in known else len(known) for record in records]
    plain, bucket = len(records), list(found.bucket)
    if found.turning:
        for j in map(int, rng.permutation(plain)[: plain // 3]):
            record = records[j]
            colours = found.turn(j, rng.uniform(0.15, 0.85))
            if (record.name or record.text) and colours and colours != record.colors:
                found.keep()
                labels.append(labels[j])
                names.append(names[j])
                bucket += bucket[j : j + 1]
                name = f"{colours[0]} {record.name or record.text}"
                lines.append([name, f"a {name}", *captions(record.model_copy(update={"colors": colours, "name": name}), rng)[2:]])
    numbers: dict[str, int] = {"": 0}
    texts = np.array([[numbers.setdefault(c, len(numbers)) for c in row] for row in lines])
    pictures = found.finish()
    pixels = sum(found.frames[b][0] * found.frames[b][1] for b in bucket[:plain]) if recipe.buckets else None
    codec = codec or RGBACodec.fit(pictures[:plain], pixels)
    return Corpus(torch.from_numpy(pictures), np.array(labels), texts, plain, list(numbers), list(known), codec, names,
                  frames=found.frames, bucket=np.array(bucket) if recipe.buckets else None,
                  mapped=isinstance(pictures, np.memmap))  # fmt: skip
