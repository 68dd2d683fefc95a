"""A tiny model with data of its own, of which some pictures are held out."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from unfog.modalities.image.codec import RGBACodec
from unfog.model import Model, save_model
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe
from unfog.training.run import build_network

STYLES = ["flat", "round"]


def write_model(folder, data, **changes):
    fields = {"name": "tiny", "data": str(data), "size": 16, "defaults": {"steps": 4, "scale": 2.0, "sampler": "dpmpp_2m"},
              "settings": {"unshuffle": 4, "widths": [16], "blocks": [1], "attention": [True], "embedding": 16}}  # fmt: skip
    recipe = Recipe.model_validate(fields | changes)
    torch.manual_seed(0)
    network = build_network(recipe, {"channels": 4, "classes": len(STYLES)})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    empty = np.zeros(0, np.int64)
    corpus = PictureCorpus(torch.zeros(0, 16, 16, 4), empty, empty, 0, [""], STYLES, RGBACodec(), [])
    save_model(folder, recipe, corpus, network, 3, {"0": 0.5})
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "pictures"
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)).save(folder / f"{i:02}.png")
        lines.append({"file_name": f"{i:02}.png", "text": f"thing {i}", "style": STYLES[i % 2], "concept": f"c{i // 2}",
                      "split": "heldout_pair" if i >= 12 else "train"})  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def folder(data, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("plots") / "tiny", data)


@pytest.fixture(scope="session")
def model(folder):
    return Model(folder, dtype=torch.float32)
