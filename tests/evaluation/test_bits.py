"""Bits a dimension of pictures under a denoiser that knows its training pictures by heart: few for these, many for others."""

import math
from pathlib import Path

import numpy as np
import torch

from unfog.diffusion.denoisers import DataSetDenoiser
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.schedules import Cosine
from unfog.evaluation.bits import likelihood
from unfog.modalities.image.codec import RGBACodec
from unfog.modalities.image.data import PictureSet
from unfog.modalities.image.records import Record

SIDE, KNOWN, NEW = 8, 40, 8


class ByHeart:
    """A model whose denoiser is exact for its training pictures and for nothing else."""

    styles: tuple[str, ...] = ()

    def __init__(self, pictures: np.ndarray) -> None:
        self.codec = RGBACodec.fit(pictures)
        alpha = pictures[..., 3:] / 255
        premultiplied = np.concatenate([np.rint(pictures[..., :3] * alpha), pictures[..., 3:]], -1) / 255
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (self.codec.mean, self.codec.std))
        x0 = (torch.from_numpy(premultiplied).permute(0, 3, 1, 2) - mean) / std
        self.denoiser = DataSetDenoiser(Gaussian(Cosine()), x0)
        self.denoiser.sigma_min = 0.02  # type: ignore[attr-defined]

    def frame(self) -> tuple[int, int]:
        return SIDE, SIDE

    def condition(self, prompts: list[str], styles: list[str | None]) -> dict[str, torch.Tensor]:
        return {"text": torch.zeros(len(prompts), 1)}


def test_what_is_known_by_heart_costs_few_bits_and_what_is_not_many() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (KNOWN + NEW, SIDE, SIDE, 4), dtype=np.uint8)
    records = [Record(file_name=f"{i}.png", text=f"picture {i}", split="train" if i < KNOWN else "heldout_concept")
               for i in range(KNOWN + NEW)]  # fmt: skip
    data = PictureSet(Path("none"), records, lambda name: pictures[int(name.split(".")[0])])
    (row,), new = likelihood(ByHeart(pictures[:KNOWN]), data, NEW)  # type: ignore[arg-type]
    seen = row.against("seen in training")
    exact = math.log2(KNOWN) / (4 * SIDE * SIDE)  # which of them it is
    assert seen.value is not None and exact - 0.02 < seen.value < exact + 0.25
    assert row.of == "held out" and len(new) == NEW and row.figure.value is not None and row.figure.value > 3
    bare = PictureSet(Path("none"), records[:KNOWN], data._read)
    (alone,), _ = likelihood(ByHeart(pictures[:KNOWN]), bare, 4)  # type: ignore[arg-type]
    assert alone.of == "train" and not alone.beside and "no picture is held out" in alone.note
