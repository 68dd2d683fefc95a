"""Learning to follow the style of a picture: items with a reference of the same style that shows another concept.

    loss = E‖x̂₀(x_t, caption, no style, looks of a reference) − x₀‖²

The style's own name is never told, so that the reference is all that says it. Half of the items are filtered together with
their reference into a look of their own (`modalities/image/restyle.py`), so that looks are read and not one of a few styles.
Before, where the model knows styles by name, the reader learns to tell those by their looks, and that part is left alone from
then on: it takes half a minute and draws the right style nearly as often as the name itself. Denoising made it forget that: after
900 steps a quarter of the references were still nearest to the right name.
Source: Ye et al. 2023, arXiv:2308.06721.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.errors import unknown
from unfog.modalities.image.codec import premultiply
from unfog.modalities.image.restyle import restyled
from unfog.networks.style import StyleReader
from unfog.networks.unet import UNet
from unfog.training.corpus import Asked
from unfog.training.denoising import mixed
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe

FILTERED, UNREFERENCED = 0.5, 0.05  # shares of items in a look of their own, and without a reference
MEASURED, PRIMING, NAMED, RATE = 4096, 1500, 256, 2e-3  # pictures whose looks are measured; steps, pictures a step, rate
SMOOTHED = 0.02  # of each label, so that looks between two styles may lie between their names
Cond = dict[str, Tensor]


@dataclass
class StyledCorpus(PictureCorpus):
    """Pictures with references to their style."""

    def references(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each another picture, as found, of its style and, where there is one, of another concept: (B,)."""
        members = {label: np.flatnonzero(self.classes[: self.plain] == label) for label in np.unique(self.classes)}
        found = []
        for place in chosen:
            others = members[self.classes[place]]
            order = others[rng.integers(len(others), size=8)]
            own = PurePath(self.names[place]).stem
            found.append(next((int(o) for o in order if PurePath(self.names[o]).stem != own), int(order[0])))
        return np.array(found)

    def told(self, pictures: np.ndarray, weight: np.ndarray) -> Cond:
        """cond of one reference an item, (B, H, W, 4), by weight (B,)."""
        device = self.states.device if self.states is not None else "cpu"
        image = premultiply(torch.from_numpy(pictures))[:, None]
        return {"image": image.to(device), "image_mask": torch.from_numpy(weight.astype(np.float32))[:, None].to(device)}

    def batch(self, recipe: Recipe, index: int, rows: slice = slice(None)) -> tuple[Tensor, Cond]:
        """As the plain corpus has it, unmoved, without its style's name, and a reference for each."""
        plain = recipe.model_copy(update={"augment": 0.0, "drop_style": 1.0})
        _, cond = super().batch(plain, index, rows)
        chosen, rng = self.chosen(recipe, index), np.random.default_rng([recipe.seed, index, 6])
        references = self.references(chosen, rng)
        filtered, weight = rng.random(recipe.batch) < FILTERED, (rng.random(recipe.batch) >= UNREFERENCED).astype(np.float32)
        targets, shown = np.stack(self.pixels(chosen)), np.stack(self.pixels(references))
        for row in np.arange(recipe.batch)[rows]:
            if filtered[row]:
                pair = restyled(np.stack([targets[row], shown[row]]), mixed(recipe.seed, index, int(row), 7))
                targets[row], shown[row] = pair
        weight = np.where(filtered, 1.0, weight)  # without a reference nothing tells of a filter
        told = self.told(shown, weight)
        x0 = self.codec.encode(torch.from_numpy(targets[rows]).to(told["image"].device))
        return x0, {**cond, **{key: value[rows] for key, value in told.items()}}

    def _with(self, chosen: np.ndarray, cond: Cond) -> Cond:
        references = self.references(chosen, np.random.default_rng(2))
        told = self.told(np.stack(self.pixels(references)), np.ones(len(chosen)))
        return {**cond, **({"class": torch.full_like(cond["class"], len(self.styles))} if "class" in cond else {}), **told}

    def known(self, chosen: np.ndarray) -> tuple[Tensor, Cond]:
        """Each picture with its first caption and a reference."""
        x0, cond = super().known(chosen)
        return x0, self._with(chosen, cond)

    def asked(self, recipe: Recipe, rows: int) -> tuple[list[Asked], list[str]]:
        """The plain corpus's, each with a reference of the style that it would have been told."""
        asked, labels = super().asked(recipe, rows)
        found = []
        for part in asked:
            label = part.cond["class"].cpu().numpy() if "class" in part.cond else np.zeros(len(part.places), int)
            some = [np.flatnonzero(self.classes[: self.plain] == k) for k in label]
            every = np.arange(self.plain)
            places = np.array([(s if len(s) else every)[i % max(len(s), 1)] for i, s in enumerate(some)])
            cond = self._with(places, part.cond)
            nothing = {**part.nothing, "image": cond["image"], "image_mask": torch.zeros_like(cond["image_mask"])}
            found.append(Asked(part.places, cond, nothing, part.shape))
        return found, labels


def primed(reader: StyleReader, network: UNet, corpus: StyledCorpus, seed: int) -> float:
    """Measure how looks are spread over the pictures, and teach the reader to tell the styles that have names by them.

    -> the share of the pictures whose style it tells at the end; 0 where the model knows no names.
    """
    rng, plain = np.random.default_rng([seed, 8]), np.arange(corpus.plain)
    chosen = rng.permutation(plain)[:MEASURED]
    device = reader.looks.mean.device
    with torch.no_grad():
        parts = [corpus.pixels(chosen[first : first + NAMED]) for first in range(0, len(chosen), NAMED)]
        raw = torch.cat([reader.looks(premultiply(torch.from_numpy(np.stack(part))).to(device)) for part in parts])
        reader.looks.mean.copy_(raw.mean(0))
        reader.looks.spread.copy_(raw.std(0, correction=0) + 1e-3)
    label = network.conditioning.label
    named = corpus.classes[chosen] < len(corpus.styles)
    if label is None or not named.any():
        return 0.0
    reader.names.copy_((label.weight[:-1] - label.weight[-1]).detach())
    looks = ((raw - reader.looks.mean) / reader.looks.spread)[torch.from_numpy(named).to(device)]
    styles = torch.from_numpy(corpus.classes[chosen][named].astype(np.int64)).to(device)
    reader.kinds.requires_grad_(True)
    optimiser = torch.optim.AdamW(reader.kinds.parameters(), lr=RATE, weight_decay=0.1)
    for step in range(PRIMING):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, 2 * (1 - step / PRIMING))
        rows = torch.from_numpy(rng.integers(len(looks), size=NAMED)).to(device)
        loss = F.cross_entropy(reader.kinds(looks[rows]), styles[rows], label_smoothing=SMOOTHED)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    reader.kinds.requires_grad_(False)
    with torch.no_grad():
        return float((reader.kinds(looks).argmax(1) == styles).double().mean())


def styled_corpus(recipe: Recipe, own: dict[str, Any]) -> StyledCorpus:
    """A corpus of these fields without the held-out style. Raises UserError for a style that the data lack."""
    if recipe.held_style is None:
        return StyledCorpus(**own)
    if recipe.held_style not in own["styles"]:
        raise unknown("held_style", recipe.held_style, own["styles"])
    kept = np.flatnonzero(own["classes"] != own["styles"].index(recipe.held_style))
    plain = int((kept < own["plain"]).sum())
    fewer = {"pictures": own["pictures"][torch.from_numpy(kept)], "classes": own["classes"][kept], "texts": own["texts"][kept],
             "plain": plain, "names": [own["names"][i] for i in kept if i < len(own["names"])]}  # fmt: skip
    return StyledCorpus(**{**own, **fewer})
