"""A tiny data set and a tiny recipe, so that a training step takes milliseconds."""

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.modalities.image.codec import RGBACodec
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe

SETTINGS = {"unshuffle": 4, "widths": [16, 16], "blocks": [1, 1], "attention": [False, True], "embedding": 16, "text_dim": 12}


@pytest.fixture
def one_thread():
    """torch on one thread, so that the bits of two runs can be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_recipe():
    """A function from changes to a recipe."""
    base = {"size": 16, "settings": SETTINGS, "steps": 6, "batch": 4, "warm_up": 2, "dropout": 0.2, "recolour": 0.3}
    return lambda **changes: Recipe.model_validate(base | changes)


@pytest.fixture
def tiny_corpus():
    """10 plain pictures, each of one flat colour of its own, and 3 recoloured ones, with made-up text states."""
    pictures = np.zeros((13, 16, 16, 4), np.uint8)
    pictures[..., 0] = np.arange(13)[:, None, None] * 20
    pictures[..., 1] = 90
    pictures[..., 3] = 255
    generator = torch.Generator().manual_seed(0)
    texts = np.arange(1, 27).reshape(13, 2)
    return PictureCorpus(
        torch.from_numpy(pictures), np.arange(13) % 2, texts, 10, [f"caption {i}" for i in range(27)], ["flat", "round"],
        RGBACodec.fit(pictures), [f"{i:02}.png" for i in range(13)], torch.randn(27, 5, 12, generator=generator).half(),
        torch.arange(5)[None] < torch.randint(1, 6, (27, 1), generator=generator),
    )  # fmt: skip


@pytest.fixture
def picture_folder(tmp_path):
    """12 pictures with .txt sidecars: (path)."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (20, 16, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"thing number {i}\n", encoding="utf-8")
    return folder
