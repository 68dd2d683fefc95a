"""Pictures <-> normalised latents of an autoencoder: a codec like `RGBACodec`, and the autoencoder's own folder.

    x0 = (μ(p) − mean)/std a channel,  p premultiplied RGBA in [0, 1]

A folder is `autoencoder.json` (settings, mean and std of each latent channel over training pictures), `autoencoder.safetensors`
and `manifest.json`. A model of latents carries both in its own folder: the card as its `codec`, the weights as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.errors import UserError
from unfog.files import load_weights, read_checked, write_weights
from unfog.modalities.image.codec import premultiply, straight
from unfog.networks.autoencoder import TILE, Autoencoder, tiled

CARD, WEIGHTS = "autoencoder.json", "autoencoder.safetensors"
SHIPPED = Path(__file__).parents[2] / "pretrained"
BATCH = 16  # pictures of 128 px at once, or as many pixels
FORMAT = 1


class LatentCodec:
    """mean, std: of each latent channel. Without weights (`take`) it knows shapes only."""

    def __init__(self, card: Mapping[str, Any]) -> None:
        """card: what `card` gave. Raises KeyError, TypeError or ValueError where it is none."""
        self.settings: dict[str, Any] = dict(card["settings"])
        self.mean, self.std = (tuple(float(v) for v in card[key]) for key in ("mean", "std"))
        with torch.device("meta"):
            self.network = Autoencoder(**self.settings)
        self.factor, self.channels = self.network.factor, self.network.latent
        if not (len(self.mean) == len(self.std) == self.channels and min(self.std) > 0):
            raise ValueError(f"its mean and std are not those of {self.channels} channels")
        self.weights: dict[str, Tensor] = {}

    def take(self, weights: Mapping[str, Tensor], device: str = "cpu", dtype: torch.dtype = torch.float32) -> LatentCodec:
        """Use these weights, on a device and in a number format. Raises UserError where they are another autoencoder's."""
        self.weights = {k: v.detach().cpu().half() for k, v in weights.items()}  # as they are written
        try:
            self.network.load_state_dict({k: v.to(device, dtype) for k, v in weights.items()}, assign=True)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[-1].strip()[:120]
            raise UserError(f"{WEIGHTS}: does not fit its settings ({reason}); get the model again") from None
        network = self.network.eval().requires_grad_(False)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def card(self) -> dict[str, Any]:
        """Plain values for model.json."""
        return {"name": "latent", "settings": self.settings, "mean": list(self.mean), "std": list(self.std)}

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Of an x0 of pictures so wide and high. Raises UserError where that is no whole number of cells."""
        if width % self.factor or height % self.factor:
            raise UserError(f"size: {width}x{height} is not a multiple of {self.factor}; choose one")
        return self.channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def encode(self, pictures: Tensor | np.ndarray) -> Tensor:
        """Straight RGBA (B, H, W, 4) uint8 -> x0 (B, latent, H/factor, W/factor) float32: the mean of the posterior."""
        parts = []
        for some in torch.as_tensor(pictures).split(self._batch(pictures.shape[1] * pictures.shape[2])):
            planes = premultiply(some.to(self._like().device)).to(self._like().dtype)
            mean = tiled(lambda x: self.network.encode(x)[0], planes, self.factor, 1, self.network.reach["encode"])
            parts.append((mean.float() - self._column(self.mean)) / self._column(self.std))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> np.ndarray:
        """x0 (B, latent, h, w) -> straight RGBA (B, h·factor, w·factor, 4) uint8 on the host."""
        parts = []
        for some in x0.detach().split(self._batch(x0.shape[2] * x0.shape[3] * self.factor**2)):
            z = self._latents(some)
            parts.append(straight(tiled(self.network.decode, z, 1, self.factor, self.network.reach["decode"]).float()))
        return np.concatenate(parts)

    @torch.no_grad()
    def preview(self, x0: Tensor) -> np.ndarray:
        """x0 -> straight RGBA uint8 of a quarter of the size, by one linear map: for looking on while sampling."""
        return straight(self.network.preview(self._latents(x0)).float())

    def _latents(self, x0: Tensor) -> Tensor:
        return (x0.float() * self._column(self.std) + self._column(self.mean)).to(self._like().dtype)

    def _like(self) -> Tensor:
        return next(self.network.parameters())

    def _batch(self, pixels: int) -> int:
        return max(BATCH * 128**2 // max(min(pixels, (TILE * self.factor) ** 2), 1), 1)

    def _column(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._like().device)[:, None, None]


def write_autoencoder(folder: Path, network: Autoencoder, card: Mapping[str, Any]) -> None:
    """Write an autoencoder's folder whole: float16 weights and a card (settings, mean, std, and what else it tells)."""
    weights = {k: v.detach().cpu().half() for k, v in network.state_dict().items()}
    write_weights(folder, WEIGHTS, weights, CARD, {"format": FORMAT, **card})


def autoencoder_folder(name: str | Path) -> Path | None:
    """The folder that a name means: itself, of the run that made it, or a shipped one; None where there is none."""
    for folder in (Path(name), Path(name) / "model", SHIPPED / name):
        if (folder / CARD).is_file() and not (folder / "model.json").is_file():
            return folder
    return None


def read_autoencoder(name: str | Path) -> tuple[LatentCodec, dict[str, Any]]:
    """The codec of an autoencoder (see `autoencoder_folder`), with its weights; and its card.

    Raises UserError naming the file that is missing, damaged or too new.
    """
    place = autoencoder_folder(name)
    if place is None:
        known = ", ".join(sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD}")))
        raise UserError(f"{name}: no {CARD} there; give an autoencoder's folder, {known}, or train one (docs/latent.md)")
    try:
        card = json.loads(read_checked(place, CARD))
        if card["format"] != FORMAT:
            raise UserError(f"{place / CARD}: format {card['format']} is not known to this unfog; update unfog")
        codec = LatentCodec(card)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place / CARD}: cannot be read ({error!r:.80}); get it again") from None
    return codec.take(load_weights(place, WEIGHTS)), card
