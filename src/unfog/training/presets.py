"""Named settings of a recipe: which network, at which size, with which batch and learning rate, for how long.

All predict x0 and count errors in v's space (arXiv:2511.13720; recipes/emoji_64.py says what predicting v did here). At half
the side the same content stands at half the noise, so 32 px train on less noise than emoji-64's 0.9 at 64 px: ln 2 less.
Convolutions before attention: at equal time a U-Net took in two to three times as many pictures as a transformer did, and its
prompts were the first that could be guessed (about 60,000 pictures at 32 px; at 64 px 365,000 for emoji-64).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unfog.errors import unknown
from unfog.training.recipe import Recipe

DEFAULT = "small"  # where nothing is measured
EPOCHS = 1000  # beyond, a network only learns its pictures by heart ...
LEAST_STEPS = 3000  # ... but fewer steps than this do not teach it to draw


@dataclass(frozen=True)
class Preset:
    """`cost`: seconds a trained picture, as a multiple of tiny's; `wanted`: pictures from which on it pays to take this one."""

    about: str
    cost: float
    wanted: int
    fields: dict[str, Any]

    def recipe(self, **own: Any) -> Recipe:
        """The recipe with these settings, and `own` ones beside them."""
        return Recipe.model_validate({**COMMON, **self.fields, **own})


COMMON: dict[str, Any] = {"prediction": "x0", "weight": "v", "weight_limit": 30.0, "noise_std": 1.4, "dropout": 0.0,
                          "ema": 0.08, "recolour": 0.0, "warm_up": 100}  # fmt: skip


def _unet(widths: list[int], blocks: list[int], attention: list[bool], embedding: int, unshuffle: int) -> dict[str, Any]:
    return {"unshuffle": unshuffle, "widths": widths, "blocks": blocks, "attention": attention, "embedding": embedding,
            "text_dim": 384}  # fmt: skip


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        "32 px, U-Net of 1.4M: the first pictures within a minute", 1.0, 0,
        {"size": 32, "settings": _unet([48, 96], [1, 1], [False, True], 96, 4), "batch": 32, "lr": 2e-3, "noise_mean": 0.2,
         "report_steps": 50, "steps": 3000},
    ),
    "small": Preset(
        "32 px, U-Net of 2.2M", 1.6, 60_000,
        {"size": 32, "settings": _unet([32, 64, 128], [1, 1, 1], [False, True, False], 128, 2), "batch": 32, "lr": 2e-3,
         "noise_mean": 0.2, "report_steps": 200, "steps": 6000},
    ),
    "dit-small": Preset(
        "32 px, transformer of 4.3M; for a GPU", 6.5, 0,  # never chosen, only named
        {"size": 32, "network": "dit", "batch": 64, "lr": 1e-3, "noise_mean": 0.2, "report_steps": 200, "steps": 10_000,
         "settings": {"size": 32, "patch": 4, "width": 192, "depth": 8, "heads": 3, "bottleneck": 64, "text_dim": 384}},
    ),
    "base": Preset(
        "64 px, U-Net of 6.7M, as emoji-64", 6.2, 300_000,
        {"size": 64, "settings": _unet([64, 128, 192], [1, 2, 1], [False, True, False], 192, 4), "batch": 64, "lr": 2e-3,
         "noise_mean": 0.9, "warm_up": 200, "report_steps": 500, "steps": 12_000},
    ),
    "large": Preset(
        "64 px, U-Net of 15M", 18.0, 1_000_000,
        {"size": 64, "settings": _unet([128, 192, 256], [2, 2, 1], [False, True, True], 256, 4), "batch": 64, "lr": 1.5e-3,
         "noise_mean": 0.9, "warm_up": 300, "report_steps": 500, "steps": 30_000},
    ),
}  # fmt: skip
CHOSEN = ("large", "base", "small", "tiny")  # in this order, the first whose `wanted` a budget reaches


def preset(name: str) -> Preset:
    """The preset of this name. Raises UserError naming the nearest."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
