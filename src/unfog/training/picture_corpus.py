"""Everything a training step reads of captioned pictures, at hand: bytes, text states once a caption, an order by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unfog.modalities.image.augment import NUMBERS, drawn, labels, moved
from unfog.modalities.image.captions import captions
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.latent import LatentCodec, read_autoencoder
from unfog.training.buckets import Frame, bucketed
from unfog.training.corpus import Asked, Told
from unfog.training.pictures import Decoded
from unfog.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES = 32  # on a sheet: with the losses, some 9 steps' worth of work for a batch of 64
Encode = Callable[[list[str]], tuple[Tensor, Tensor]]


@dataclass
class PictureCorpus:
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
    codec: RGBACodec | LatentCodec
    names: list[str]  # the file of each picture
    states: Tensor | None = None  # (captions, T, width) float16
    masks: Tensor | None = None  # (captions, T) bool
    frames: list[Frame] = field(default_factory=list)  # with buckets: (width, height) of each, and pictures are (N, pixels, 4)
    bucket: np.ndarray | None = None  # (N,) the frame of each picture
    mapped: bool = False  # pictures are in a file, and stay on the host
    latents: Tensor | None = None  # (N, C, h, w) float16, where x0 are latents that were made once

    def to(self, device: str) -> PictureCorpus:
        """Move pictures (or their latents) and text states to a device, so that no step waits for a copy."""
        assert self.states is not None and self.masks is not None
        self.states, self.masks = self.states.to(device), self.masks.to(device)
        if self.latents is not None:
            self.latents = self.latents.to(device)
        elif not self.mapped:
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
        if self.latents is not None:
            return self.latents[torch.from_numpy(chosen).to(self.latents.device)].float()
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
        x0, cond = self.x0(chosen[rows], frame), self.cond(text[rows], label[rows])
        if recipe.augment:
            changes = drawn(np.random.default_rng([recipe.seed, index, 3]), recipe.batch, recipe.augment)[rows]
            clear = self.codec.encode(torch.zeros(1, 1, 1, 4, dtype=torch.uint8))[0, :, 0, 0]
            x0, cond = moved(x0, changes, clear), {**cond, "augment": labels(changes).to(x0.device)}
        return x0, cond

    def known(self, chosen: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """x0 and cond of these pictures, each with its first caption and its style."""
        return self.x0(chosen), self.cond(self.texts[chosen, 0], self.classes[chosen])

    def shown(self, rows: int) -> np.ndarray:
        """The pictures whose captions a sheet shows, in its order, each as often as there are styles."""
        rows = rows_shown(len(self.styles), self.plain, rows)
        return np.repeat(np.random.default_rng(1).permutation(self.plain)[:rows], max(len(self.styles), 1))

    def asked(self, recipe: Recipe, rows: int) -> tuple[list[Asked], list[str]]:
        """At most `rows` captions in every style, about SAMPLES in all; with buckets each in the shape of its picture."""
        columns, texts = max(len(self.styles), 1), self.shown(rows)
        label = np.tile(np.arange(columns), len(texts) // columns)  # a folder may have fewer pictures than rows
        numbers = self.texts[texts, 0]
        nothing = self.cond(np.zeros(1, int), np.array([len(self.styles)]))
        asked = [Asked(places, self.cond(numbers[places], label[places]), nothing,
                       self.codec.shape(*self.shape(texts[places], recipe.size)[::-1]))
                 for places in self.alike(texts)]  # fmt: skip
        return asked, [self.captions[n] for n in numbers]

    def decode(self, x0: Tensor, cond: dict[str, Tensor]) -> list[np.ndarray]:
        """Pictures (H, W, 4) straight RGBA uint8 of x0."""
        return list(self.codec.decode(x0))

    def sheet(self, items: Sequence[np.ndarray], labels: list[str]) -> Image:
        """Samples as `asked` orders them on one contact sheet."""
        from PIL import Image

        from unfog.modalities.image.show import contact_sheet

        return contact_sheet([Image.fromarray(p) for p in items], labels, columns=max(len(self.styles), 1) * 2)

    def changed(self, cond: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[Told]]:
        """`cond` with the second caption and the first style, with another caption, and with no style."""
        cond, found = dict(cond), []
        if "text" in cond and self.states is not None and self.masks is not None:
            cond["text"] = self.states[1 % len(self.states)].float().expand_as(cond["text"])
            cond["text_mask"] = self.masks[1 % len(self.masks)].expand_as(cond["text_mask"])
        if self.styles:
            cond["class"] = torch.zeros(len(next(iter(cond.values()))), dtype=torch.long, device=next(iter(cond.values())).device)
        if "text" in cond:
            found.append(("captions", {**cond, "text": cond["text"].flip(-1) * 1.5},
                          "build the network with text_dim 384, and pass cond to it"))  # fmt: skip
        if self.styles:
            found.append(("styles", {**cond, "class": cond["class"] + len(self.styles)},
                          f"build the network with classes {len(self.styles)}, and pass cond to it"))  # fmt: skip
        return cond, found

    def network_settings(self, recipe: Recipe) -> dict[str, Any]:
        """What the network is built with for these classes."""
        told = {"augment": NUMBERS} if recipe.augment else {}
        return {"channels": self.codec.channels, "classes": len(self.styles), **told, **recipe.settings}

    def card(self, recipe: Recipe) -> dict[str, Any]:
        """Size, codec, styles and frames, as `modalities/image` reads them."""
        frames = {"buckets": self.frames} if self.frames else {}
        return {"size": recipe.size, "codec": self.codec.card(), "text": "minilm-l6", "styles": self.styles, **frames}

    def cond(self, text: np.ndarray, label: np.ndarray) -> dict[str, Tensor]:
        """Conditions for caption numbers (B,) and style numbers (B,)."""
        assert self.states is not None and self.masks is not None
        index = torch.from_numpy(np.asarray(text)).to(self.states.device)
        cond = {"text": self.states[index].float(), "text_mask": self.masks[index]}
        if self.styles:
            cond["class"] = torch.from_numpy(np.asarray(label, np.int64)).to(self.states.device)
        return cond


def rows_shown(styles: int, pictures: int, rows: int = 8) -> int:
    """Captions on a sheet, each in every style."""
    return min(max(2, min(rows, SAMPLES // max(styles, 1))), pictures)


def build_corpus(
    data: PictureSet,
    recipe: Recipe,
    split: str = "train",
    styles: list[str] | None = None,
    codec: RGBACodec | LatentCodec | None = None,
    out: Path | None = None,
    frames: list[Frame] | None = None,
) -> PictureCorpus:
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
    if codec is None:
        latent = recipe.autoencoder is not None
        codec = read_autoencoder(str(recipe.autoencoder))[0] if latent else RGBACodec.fit(pictures[:plain], pixels)
    return PictureCorpus(torch.from_numpy(pictures), np.array(labels), texts, plain, list(numbers), list(known), codec, names,
                  frames=found.frames, bucket=np.array(bucket) if recipe.buckets else None,
                  mapped=isinstance(pictures, np.memmap))  # fmt: skip
