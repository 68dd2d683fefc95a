"""What a model of pictures is asked for, and how its pictures are shaped and shown: a model card read back."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.errors import UserError, unknown
from unfog.modalities.contract import Cond
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.latent import LatentCodec
from unfog.networks.said import Said, fits, states
from unfog.networks.text import TextEncoder

ASPECT_NEAR = 1.15  # an aspect that is off by more than this factor is another


def buckets_of(card: dict[str, Any]) -> list[tuple[int, int]]:
    """Width and height of each shape of picture that a model was trained on, the squarest first."""
    given = card.get("buckets", [[card["size"], card["size"]]])
    try:
        found = [(operator.index(width), operator.index(height)) for width, height in given]
    except (TypeError, ValueError):
        found = []
    if not found or min(min(pair) for pair in found) < 1 or max(max(pair) for pair in found) > 16_384:
        raise UserError("buckets must be [width, height] pairs of pixels; get the model again")
    return sorted(found, key=lambda pair: (abs(math.log(pair[0] / pair[1])), pair))


def codec_of(card: dict[str, Any]) -> RGBACodec | LatentCodec:
    """The codec that a model's card names; one of latents has no weights yet. Raises UserError for one that is not known."""
    name = card.get("name", "rgba")
    if name == "latent":
        return LatentCodec(card)
    if name != "rgba":
        raise UserError(f"codec {name!r} is not known to this unfog; update unfog")
    return RGBACodec(tuple(card["mean"]), tuple(card["std"]))


class PictureSpace:
    """size: pixels a side in training; buckets: every frame (width, height); styles: classes apart from the prompt; words:
    vectors of learned words, by their names."""

    reads = True  # prompts are the language of unfog.prompts

    def __init__(self, card: dict[str, Any]) -> None:
        self.size: int = card["size"]
        self.styles: list[str] = card["styles"]
        self.codec = codec_of(card["codec"])
        self.buckets = buckets_of(card)
        self.words: dict[str, Tensor] = {}
        self._encoder: TextEncoder | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the x0 of the squarest frame: channels, height and width."""
        return self.codec.shape(*self.buckets[0])

    def frame(self, aspect: str | None, name: str) -> tuple[int, int]:
        """Width and height of a picture: near the aspect W:H, or the squarest. Raises UserError where none is near."""
        if aspect is None:
            return self.buckets[0]
        width, height = map(int, aspect.split(":"))

        def off(pair: tuple[int, int]) -> float:
            return abs(math.log(pair[0] / pair[1] * height / width))

        best = min(self.buckets, key=off)
        if off(best) > math.log(ASPECT_NEAR):
            known = ", ".join(f"{w // math.gcd(w, h)}:{h // math.gcd(w, h)} ({w}x{h})" for w, h in sorted(self.buckets))
            raise UserError(f"aspect: {name} makes no pictures near {aspect}; give one of: {known}")
        return best

    def card(self) -> dict[str, Any]:
        frames = {"buckets": self.buckets} if len(self.buckets) > 1 else {}
        return {"size": self.size, "codec": self.codec.card(), "text": "minilm-l6", "styles": self.styles, **frames}

    def network(self) -> dict[str, Any]:
        return {"channels": self.codec.channels, "classes": len(self.styles)}

    def encode(self, raw: Sequence[np.ndarray], rngs: Sequence[np.random.Generator] | None = None) -> tuple[Tensor, Cond]:
        """x0 of straight RGBA pictures (H, W, 4) uint8 of one frame."""
        return self.codec.encode(np.stack(list(raw))), {}

    @property
    def encoder(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = TextEncoder.load()
        return self._encoder

    def fits(self, text: str) -> bool:
        """Whether the text encoder reads it in one piece."""
        return fits(self.encoder, text, self.words)

    def ask(self, prompts: Sequence[Said | None], seeds: Sequence[int], styles: Sequence[str | None] | None = None) -> Cond:
        """Text states and style numbers; a style of None is the learnt "any style". Text is taken as it stands."""
        named = [None] * len(prompts) if styles is None else list(styles)
        for style in named:
            if style is not None and style not in self.styles:
                raise unknown("style", style, self.styles)
        found, mask = states(self.encoder, [p or "" for p in prompts], self.words)
        cond = {"text": found, "text_mask": mask}
        if self.styles:
            cond["class"] = torch.tensor([len(self.styles) if s is None else self.styles.index(s) for s in named])
        return cond

    def decode(self, x0: Tensor, cond: Cond) -> list[np.ndarray]:
        """Straight RGBA pictures (H, W, 4) uint8."""
        return list(self.codec.decode(x0))
