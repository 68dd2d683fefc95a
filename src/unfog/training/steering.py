"""Learning to follow hints: a branch beside a frozen network, taught on pictures and what controls see of them.

    loss = E‖x̂₀(x_t, caption, hints(x₀)) − x₀‖²

The caption is dropped from a share of the items (`drop_text`), where only the hint says what there is. An item has one kind of
hint, now and then two. Lines are drawn a little thicker or fainter at random, as pens do; where the exact outlines of a picture
are at hand (`outlines`) every second of its lines is those.
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
from unfog.modalities.image.controls import CONTROLS
from unfog.modalities.image.data import PictureSet
from unfog.networks.control import ControlBranch
from unfog.networks.steered import Steered
from unfog.networks.style import StyleReader
from unfog.networks.unet import UNet
from unfog.training.corpus import Asked
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe
from unfog.training.styling import styled_corpus

OFTEN = {"lineart": 2.0}  # how much more often than another a kind is drawn
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
    """Pictures with what the controls `kinds` see of them. outlines: exact line art (H, W) uint8, by file names."""

    kinds: list[str] = field(default_factory=list)
    outlines: dict[str, np.ndarray] = field(default_factory=dict)

    def hints(self, chosen: np.ndarray, wanted: np.ndarray, rng: np.random.Generator | None) -> Cond:
        """cond of hints: wanted (B, K) strengths; a hint that is not wanted is not drawn. rng: for the pens, None: none."""
        pictures = torch.from_numpy(np.stack(self.pixels(chosen)))
        parts = []
        for place, kind in enumerate(self.kinds):
            rows = np.flatnonzero(wanted[:, place] > 0)
            part = torch.zeros(len(chosen), CONTROLS[kind].channels, *pictures.shape[1:3])
            if len(rows):
                drawn = CONTROLS[kind].draw(pictures[torch.from_numpy(rows)])
                if kind == "lineart":
                    drawn = self._exact(drawn, chosen[rows], rng)
                    drawn = drawn if rng is None else worn(drawn, rng)
                part[torch.from_numpy(rows)] = drawn
            parts.append(part)
        device = self.states.device if self.states is not None else "cpu"
        told = {"control": torch.cat(parts, 1), "control_strength": torch.from_numpy(wanted.astype(np.float32))}
        return {key: value.to(device) for key, value in told.items()}

    def _exact(self, lines: Tensor, chosen: np.ndarray, rng: np.random.Generator | None) -> Tensor:
        half = np.zeros(len(chosen), bool) if rng is None else rng.random(len(chosen)) < 0.5
        for row in np.flatnonzero(half):
            outline = self.outlines.get(self.names[chosen[row]])
            if outline is not None and outline.shape == lines.shape[2:]:
                lines[row, 0] = 1 - torch.from_numpy(outline).float() / 255
        return lines

    def _alone(self, count: int, kind: int = 0) -> np.ndarray:
        wanted = np.zeros((count, len(self.kinds)))
        wanted[:, kind] = 1
        return wanted

    def batch(self, recipe: Recipe, index: int, rows: slice = slice(None)) -> tuple[Tensor, Cond]:
        """As the plain corpus has it, unmoved, and hints of one kind an item, or two."""
        x0, cond = super().batch(recipe.model_copy(update={"augment": 0.0}), index, rows)
        rng = np.random.default_rng([recipe.seed, index, 4])
        share = np.array([OFTEN.get(kind, 1.0) for kind in self.kinds])
        drawn = rng.random((recipe.batch, len(share))) ** (1 / share)  # the largest is each kind in proportion to its share
        order = np.argsort(-drawn, axis=1)
        wanted = np.zeros_like(drawn)
        wanted[np.arange(recipe.batch), order[:, 0]] = 1
        if len(share) > 1:
            two = np.flatnonzero(rng.random(recipe.batch) < SECOND)
            wanted[two, order[two, 1]] = 1
        chosen = self.chosen(recipe, index)
        hints = self.hints(chosen, wanted, np.random.default_rng([recipe.seed, index, 5]))
        return x0, {**cond, **{key: value[rows] for key, value in hints.items()}}

    def known(self, chosen: np.ndarray) -> tuple[Tensor, Cond]:
        """Each picture with its first caption, its style, and the hint of the first kind."""
        x0, cond = super().known(chosen)
        return x0, {**cond, **self.hints(chosen, self._alone(len(chosen)), None)}

    def asked(self, recipe: Recipe, rows: int) -> tuple[list[Asked], list[str]]:
        """The plain corpus's, each with the hint of its picture, of the kinds by turns."""
        asked, labels = super().asked(recipe, rows)
        pictures, told = self.shown(rows), []
        kinds = np.arange(len(labels)) // max(len(self.styles), 1) % len(self.kinds)
        for part in asked:
            wanted = np.eye(len(self.kinds))[kinds[part.places]]
            hints = self.hints(pictures[part.places], wanted, None)
            told.append(Asked(part.places, {**part.cond, **hints}, {**part.nothing, **hints}, part.shape))
        return told, [f"{self.kinds[kind]}: {label}" for kind, label in zip(kinds, labels, strict=True)]


def outlines_of(name: str | None) -> dict[str, np.ndarray]:
    """Line art (H, W) uint8, black on white, by file names: of a shipped data set or a file. Raises UserError where none is."""
    if name is None:
        return {}
    path = Path(name) if Path(name).exists() or "/" in name else unfog.data.path(name)
    data = PictureSet.open(path)
    return {record.file_name: np.ascontiguousarray(data.load(i)[..., 0]) for i, record in enumerate(data.records)}


def steered_corpora(recipe: Recipe, corpora: list[Any]) -> list[Any]:
    """The corpora of a run that learns hints or styles, with these; one object for one object. Others as they are."""
    if not (recipe.control or recipe.style_reference):
        return corpora
    outlines = outlines_of(recipe.outlines)
    made: dict[int, Any] = {}
    for corpus in {id(c): c for c in corpora}.values():
        if corpus.bucket is not None:
            raise UserError("buckets: hints and styles are learned on square pictures; set buckets to false")
        own = {f.name: getattr(corpus, f.name) for f in fields(PictureCorpus)}
        if recipe.style_reference:
            made[id(corpus)] = styled_corpus(recipe, own)
            continue
        made[id(corpus)] = ControlCorpus(**own, kinds=recipe.control, outlines=outlines)
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
