"""Learning to follow hints: a branch beside a frozen network, taught on pictures and what controls see of them.

    loss = E‖x̂₀(x_t, caption, hints(x₀)) − x₀‖²

The caption is dropped from a share of the items (`drop_text`), where only the hint says what there is. An item has one kind of
hint, now and then two. Lines are drawn a little thicker or fainter at random, as pens do; where a picture's exact hint is at
hand (`pairs`) it is taken every second time, and always of kinds that no picture shows by itself.
Source: Zhang et al. 2023, arXiv:2302.05543.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unfog.data
from unfog.errors import UserError
from unfog.modalities.image.controls import CONTROLS, as_drawn
from unfog.modalities.image.data import PictureSet
from unfog.networks.control import ControlBranch
from unfog.networks.steered import Steered
from unfog.networks.style import StyleReader
from unfog.networks.unet import UNet
from unfog.training.corpus import Asked
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe
from unfog.training.styling import styled_corpus

OFTEN = {"lineart": 2.0, "depth": 3.0, "normals": 3.0}  # how much more often than another a kind is drawn, where it can be
EXACT = 0.5  # share of the hints of a picture that has a pair that are it
SECOND = 0.25  # share of items with two kinds
Cond = dict[str, Tensor]


def channels_of(kinds: list[str]) -> list[int]:
    return [CONTROLS[kind].channels for kind in kinds]


def worn(lines: Tensor, rng: np.random.Generator) -> Tensor:
    """Lines (B, 1, H, W) as different pens draw them: as they are, two or three pixels wide, blurred, fainter."""
    how = rng.integers(4, size=len(lines))
    wide = F.max_pool2d(F.pad(lines, (0, 1, 0, 1)), 2, 1)
    wider = F.max_pool2d(lines, 3, 1, 1)
    soft = F.avg_pool2d(lines, 3, 1, 1) * 2
    chosen = torch.stack([lines, wide, wider, soft.clamp(0, 1)])[torch.from_numpy(how), torch.arange(len(lines))]
    gain = torch.from_numpy(rng.uniform(0.6, 1.0, len(lines)).astype(np.float32))
    return chosen * gain[:, None, None, None].to(chosen.device)


@dataclass
class ControlCorpus(PictureCorpus):
    """Pictures with what the controls `kinds` see of them. pairs: of each kind exact hints (c, H, W) uint8, by file names."""

    kinds: list[str] = field(default_factory=list)
    pairs: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [set(self.pairs.get(kind, {}) if CONTROLS[kind].given else self.names) for kind in self.kinds]
        self.there = np.array([[name in own for own in known] for name in self.names])  # (N, K): whether there is such a hint

    def hints(self, chosen: np.ndarray, wanted: np.ndarray, rng: np.random.Generator | None) -> Cond:
        """cond of hints: wanted (B, K) strengths; a hint that is not wanted is not drawn. rng: for the pens, None: none."""
        pictures = torch.from_numpy(np.stack(self.pixels(chosen)))
        parts = []
        for place, kind in enumerate(self.kinds):
            rows = np.flatnonzero(wanted[:, place] > 0)
            part = torch.zeros(len(chosen), CONTROLS[kind].channels, *pictures.shape[1:3])
            if len(rows):
                drawn = CONTROLS[kind].draw(pictures[torch.from_numpy(rows)])
                drawn = self._exact(kind, drawn, chosen[rows], rng)
                if kind == "lineart" and rng is not None:
                    drawn = worn(drawn, rng)
                part[torch.from_numpy(rows)] = drawn
            parts.append(part)
        device = self.states.device if self.states is not None else "cpu"
        told = {"control": torch.cat(parts, 1), "control_strength": torch.from_numpy(wanted.astype(np.float32))}
        return {key: value.to(device) for key, value in told.items()}

    def _exact(self, kind: str, drawn: Tensor, chosen: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        """Drawn hints (B, c, H, W), some of them replaced by exact ones: all of a kind that cannot be drawn."""
        pairs = self.pairs.get(kind)
        if not pairs or (rng is None and not CONTROLS[kind].given):
            return drawn
        taken = np.ones(len(chosen), bool) if rng is None or CONTROLS[kind].given else rng.random(len(chosen)) < EXACT
        for row in np.flatnonzero(taken):
            if (pair := pairs.get(self.names[chosen[row]])) is not None:
                drawn[row] = pair.float() / 255
        return drawn

    def _one(self, chosen: np.ndarray, kinds: np.ndarray | int = 0) -> np.ndarray:
        """Strengths (B, K) of one kind each: this one where there is such a hint, else the first that there is."""
        there = self.there[chosen]
        kinds = np.broadcast_to(kinds, len(chosen))
        kinds = np.where(there[np.arange(len(chosen)), kinds], kinds, there.argmax(1))
        return np.eye(len(self.kinds))[kinds] * there

    def batch(self, recipe: Recipe, index: int, rows: slice = slice(None)) -> tuple[Tensor, Cond]:
        """As the plain corpus has it, unmoved, and hints of one kind an item, or two."""
        x0, cond = super().batch(recipe.model_copy(update={"augment": 0.0}), index, rows)
        rng = np.random.default_rng([recipe.seed, index, 4])
        share, chosen = np.array([OFTEN.get(kind, 1.0) for kind in self.kinds]), self.chosen(recipe, index)
        drawn = rng.random((recipe.batch, len(share))) ** (1 / share)  # the largest is each kind in proportion to its share
        order = np.argsort(-drawn * self.there[chosen], axis=1)
        wanted = np.zeros_like(drawn)
        wanted[np.arange(recipe.batch), order[:, 0]] = 1
        if len(share) > 1:
            two = np.flatnonzero(rng.random(recipe.batch) < SECOND)
            wanted[two, order[two, 1]] = 1
        hints = self.hints(chosen, wanted * self.there[chosen], np.random.default_rng([recipe.seed, index, 5]))
        return x0, {**cond, **{key: value[rows] for key, value in hints.items()}}

    def known(self, chosen: np.ndarray) -> tuple[Tensor, Cond]:
        """Each picture with its first caption, its style, and the hint of the first kind."""
        x0, cond = super().known(chosen)
        return x0, {**cond, **self.hints(chosen, self._one(chosen), None)}

    def asked(self, recipe: Recipe, rows: int) -> tuple[list[Asked], list[str]]:
        """The plain corpus's, each with the hint of its picture, of the kinds by turns."""
        asked, labels = super().asked(recipe, rows)
        pictures, told = self.shown(rows), []
        kinds = np.arange(len(labels)) // max(len(self.styles), 1) % len(self.kinds)
        for part in asked:
            wanted = self._one(pictures[part.places], kinds[part.places])
            kinds[part.places] = wanted.argmax(1)
            hints = self.hints(pictures[part.places], wanted, None)
            told.append(Asked(part.places, {**part.cond, **hints}, {**part.nothing, **hints}, part.shape))
        return told, [f"{self.kinds[kind]}: {label}" for kind, label in zip(kinds, labels, strict=True)]


def paired(kind: str, name: str, size: int) -> dict[str, Tensor]:
    """Exact hints (c, size, size) uint8 of a kind by file names, of a shipped data set or a file of them.

    Raises UserError where none is.
    """
    data = PictureSet.open(Path(name) if Path(name).exists() or "/" in name else unfog.data.path(name))
    read = (torch.tensor(data.load(i, size))[None] for i in range(len(data)))
    return {record.file_name: (as_drawn(kind, picture)[0] * 255).round().to(torch.uint8)
            for record, picture in zip(data.records, read, strict=True)}  # fmt: skip


def steered_corpora(recipe: Recipe, corpora: list[Any]) -> list[Any]:
    """The corpora of a run that learns hints or styles, with these; one object for one object. Others as they are."""
    if not (recipe.control or recipe.style_reference):
        return corpora
    pairs = {kind: paired(kind, name, recipe.size) for kind, name in recipe.pairs.items()}
    made: dict[int, Any] = {}
    for corpus in {id(c): c for c in corpora}.values():
        if corpus.bucket is not None:
            raise UserError("buckets: hints and styles are learned on square pictures; set buckets to false")
        own = {f.name: getattr(corpus, f.name) for f in fields(PictureCorpus)}
        if recipe.style_reference:
            made[id(corpus)] = styled_corpus(recipe, own)
            continue
        made[id(corpus)] = ControlCorpus(**own, kinds=recipe.control, pairs=pairs)
    return [made[id(corpus)] for corpus in corpora]


def branch_of(recipe: Recipe, network: nn.Module) -> tuple[nn.Module, Callable[[nn.Module], Steered]]:
    """A fresh branch or reader of style, its first values of the recipe's seed, and what makes a steered network of a branch.

    Raises UserError for a network that is no U-Net.
    """
    if not isinstance(network, UNet):
        raise UserError("start: a branch is made for networks of the kind unet; start from a model with one")
    torch.manual_seed(recipe.seed)
    branch = ControlBranch(network, channels_of(recipe.control)) if recipe.control else StyleReader(network)

    def whole(average: nn.Module) -> Steered:
        if isinstance(average, StyleReader):
            return Steered(network, None, average)
        assert isinstance(average, ControlBranch)
        return Steered(network, average)

    return branch, whole
