"""The judge of emoji pictures: a picture tower and a text tower that meet, and a style classifier.

    p = norm(MLP(z)),  q = norm(MLP(m)),  fit = p·q        z = standardised Lite0 features, m = MiniLM sentence vectors
    style = argmax W·l                                     l = standardised looks: texture, palette, outline

Only the two MLPs and W were trained, on the training split's real pictures and names alone; no generator has been
trained against it or chosen by its gradient. Source: Radford et al. 2021, arXiv:2103.00020 (two towers).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unfog.errors import UserError
from unfog.evaluation import looks as looks_
from unfog.evaluation.features import Lite0
from unfog.files import MANIFEST, load_weights, read_checked, sha256, write_weights
from unfog.networks.text import WIDTH as TEXT_WIDTH
from unfog.networks.text import TextEncoder

FOLDER = Path(__file__).parent.parent / "pretrained" / "emoji-scorer"
WEIGHTS, SETTINGS = "scorer.safetensors", "scorer.json"
SIDE = 96  # pixels a side that Lite0 reads; at 128 held-out R@1 is 2 points higher and the cost doubles
HIDDEN, JOINT = 512, 256
BATCH = 16  # larger batches are slower on a CPU: the wide early layers leave the cache


class Scorer(nn.Module):
    """Pictures and texts to vectors of one space, and pictures to styles."""

    mean: Tensor
    spread: Tensor
    looks_mean: Tensor
    looks_spread: Tensor

    def __init__(self, styles: Sequence[str]) -> None:
        super().__init__()
        self.style_names = tuple(styles)
        self.hash = ""  # of the folder's manifest, once there is one
        self.lite0 = Lite0()
        self.register_buffer("mean", torch.zeros(Lite0.WIDTH))
        self.register_buffer("spread", torch.ones(Lite0.WIDTH))
        self.register_buffer("looks_mean", torch.zeros(looks_.WIDTH))
        self.register_buffer("looks_spread", torch.ones(looks_.WIDTH))
        self.picture = tower(Lite0.WIDTH)
        self.text = tower(TEXT_WIDTH)
        self.style = nn.Linear(looks_.WIDTH, len(self.style_names))

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Scorer:
        """The shipped scorer, or the one in `folder`.

        Raises: UserError where a file is missing, damaged (sha256) or not this scorer's.
        """
        try:
            settings = json.loads(read_checked(folder, SETTINGS))
            scorer = cls(settings["styles"])
            scorer.load_state_dict({k: v.float() for k, v in load_weights(folder, WEIGHTS).items()})
            scorer.hash = sha256((folder / MANIFEST).read_bytes())[:16]
        except (KeyError, TypeError, RuntimeError, json.JSONDecodeError):
            raise UserError(f"{folder}: not a scorer of this version of unfog; reinstall unfog") from None
        return scorer.eval().requires_grad_(False)

    def save(self, folder: Path, provenance: dict[str, object]) -> None:
        """Write the folder whole or not at all, weights as float16, with a sha256 manifest."""
        weights = {name: value.half() for name, value in self.state_dict().items()}
        write_weights(folder, WEIGHTS, weights, SETTINGS, {"styles": list(self.style_names), "side": SIDE, **provenance})

    @torch.inference_mode()
    def features(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Standardised features (N, 1752) of straight-alpha RGBA pictures (N, H, W, 4) uint8."""
        out = [self.lite0(prepare(pictures[i : i + BATCH])) for i in range(0, len(pictures), BATCH)]
        return self.standardise(torch.cat(out)) if out else torch.zeros(0, Lite0.WIDTH)

    def standardise(self, raw: Tensor) -> Tensor:
        """Zero mean and unit spread over the training pictures; a far outlier may not rule the rest."""
        return ((raw - self.mean) / self.spread).clamp(-5, 5)

    def standardise_looks(self, raw: Tensor) -> Tensor:
        """The same for looks (N, 616)."""
        return ((raw - self.looks_mean) / self.looks_spread).clamp(-5, 5)

    def picture_vectors(self, features: Tensor) -> Tensor:
        """Features (N, 1752) to unit vectors (N, 256)."""
        return F.normalize(self.picture(features), dim=1)

    def text_vectors(self, sentences: Tensor) -> Tensor:
        """Sentence vectors (N, 384) from `describe` to unit vectors (N, 256)."""
        # Unit length over 384 numbers would reach the first layer far below unit variance.
        return F.normalize(self.text(F.normalize(sentences, dim=1) * TEXT_WIDTH**0.5), dim=1)

    @torch.inference_mode()
    def styles(self, pictures: NDArray[np.uint8]) -> list[str]:
        """The style that each straight-alpha RGBA picture (N, H, W, 4) uint8 looks like."""
        found: list[str] = []
        for i in range(0, len(pictures), BATCH):
            raw = looks_.looks(self.lite0, sized(pictures[i : i + BATCH], looks_.SIDE))
            best = self.style(self.standardise_looks(raw)).argmax(1).tolist()
            found += [self.style_names[k] for k in best]
        return found


def tower(width: int, dropout: float = 0.3) -> nn.Sequential:
    """Two linear layers; dropout keeps 1,759 training concepts from being learnt by heart."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, HIDDEN), nn.GELU(), nn.Dropout(dropout), nn.Linear(HIDDEN, JOINT))


def prepare(pictures: NDArray[np.uint8]) -> Tensor:
    """Straight RGBA (N, H, W, 4) over white, resized to 96×96, as (N, 3, 96, 96) in [−1, 1], channels last."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    x = x[:, :3] * x[:, 3:] + 1 - x[:, 3:]
    x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=x.shape[-1] > SIDE).clamp(0, 1)
    return (x * 2 - 1).contiguous(memory_format=torch.channels_last)


def sized(pictures: NDArray[np.uint8], side: int) -> Tensor:
    """Straight RGBA (N, H, W, 4) uint8 to straight RGBA (N, 4, side, side) in [0, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if x.shape[-2:] == (side, side):
        return x
    # Resized premultiplied, else the colours hidden under transparency bleed into the edges.
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
    return straight(F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False))


def straight(premultiplied: Tensor) -> Tensor:
    """Premultiplied RGBA (N, 4, H, W) to straight; where nothing is seen the colour is 0."""
    alpha = premultiplied[:, 3:].clamp(0, 1)
    return torch.cat([(premultiplied[:, :3] / alpha.clamp(min=1e-3)).clamp(0, 1), alpha], 1)


def describe(encoder: TextEncoder, names: Sequence[str], tags: Sequence[Sequence[str]]) -> Tensor:
    """Sentence vectors (N, 384) of concepts: half the name alone, half the name with its tags."""
    tagged = [", ".join([name, *more]) for name, more in zip(names, tags, strict=True)]
    return F.normalize(sentences(encoder, names) + sentences(encoder, tagged), dim=1)


def sentences(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Unit sentence vectors (N, 384): the mean of a text's token states, as MiniLM was trained to be read."""
    out = []
    for i in range(0, len(texts), 64):
        states, mask = encoder(texts[i : i + 64])
        weight = mask.unsqueeze(-1).float()
        out.append(F.normalize((states * weight).sum(1) / weight.sum(1), dim=1))
    return torch.cat(out) if out else torch.zeros(0, TEXT_WIDTH)
